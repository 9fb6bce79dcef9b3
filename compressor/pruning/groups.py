"""Which channels must be removed together: the one file behind which Torch-Pruning sits.

A group is a set of channels that exist in several layers at once: a convolution's outputs, the
batch normalisation behind it, the inputs of every layer that reads it and, through residual
additions, the outputs of other convolutions. Torch-Pruning 1.6 finds them from an autograd trace
(DepGraph, arXiv 2301.12900). Nothing else of it is used: importance, selection and surgery are
ours, because its own silently skip layers, overshoot and keep state between models.

Everything that cannot be proved harmless is *left whole*: the group is kept, with the reason.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.core.environment import require
from compressor.core.errors import StageError

Side = Literal["out", "in"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
OUTPUT = "it is the network's output"
RESIZABLE: tuple[type[nn.Module], ...] = (
    *CONVOLUTIONS, *TRANSPOSED, *NORMS, nn.Linear, nn.PReLU
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one layer that carries a group's channels.

    Attributes:
        layer: Module path.
        side: ``out`` also stands for layers whose inputs and outputs are the same channels
            (batch normalisation, depthwise convolution, PReLU).
        where: [channels of the group, positions per channel], int64: where each channel lies on
            that axis. More than one position where a feature map was flattened.
    """

    layer: str
    side: Side
    where: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """Channels that can only be removed together.

    Attributes:
        name: Path of the first layer that produces them.
        width: How many channels.
        members: Every axis that carries them, in module order.
        whole: Why no channel may be removed, or empty.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    whole: str = ""


def depthwise(module: nn.Module) -> bool:
    """True for a convolution with one filter per channel; one channel alone is ordinary."""
    return (
        isinstance(module, CONVOLUTIONS)
        and module.groups == module.in_channels == module.out_channels
        and module.groups > 1
    )


def find(model: nn.Module, example: Sequence[Tensor]) -> tuple[Group, ...]:
    """All groups of ``model``, in module order. The model is left exactly as it was.

    Args:
        model: Any module that autograd can trace.
        example: Its positional inputs, batch dimension of at least 2 first (with 1, a layer that
            loses the batch dimension goes unnoticed).

    Raises:
        MissingError: torch-pruning is not installed.
        StageError: The network cannot be traced, or has layers that only run in training.
    """
    require(("torch_pruning",), "train", "pruning channels")
    with torch.inference_mode(False):  # tensors made under it can never be traced
        return _find(model, example)


def _find(model: nn.Module, example: Sequence[Tensor]) -> tuple[Group, ...]:
    # A copy: tracing needs gradients and evaluation mode, and hooks are attached to it.
    shadow = copy.deepcopy(model).eval()
    order = {name: i for i, (name, _) in enumerate(shadow.named_modules())}
    calls = _calls(shadow, example)
    unsafe = _unsafe(shadow, calls)
    groups = []
    for members, reason in _trace(shadow, example):
        ordered = tuple(sorted(members, key=lambda m: (order[m.layer], m.side)))
        producers = [m for m in ordered if m.side == "out" and _produces(shadow, m.layer)]
        layer = next((m.layer for m in ordered if m.layer in unsafe), None)
        if not reason and layer is not None:
            reason = f"{layer} {unsafe[layer]}"
        groups.append(Group(producers[0].layer, len(producers[0].where), ordered, reason))
    return _disjoint(sorted(groups, key=lambda g: order[g.name]))


def _produces(model: nn.Module, layer: str) -> bool:
    module = model.get_submodule(layer)
    return isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear))


def _calls(shadow: nn.Module, example: Sequence[Tensor]) -> Counter[str]:
    """How often each layer with parameters runs in evaluation. Raises StageError, see above."""
    counts: dict[bool, Counter[str]] = {}
    owners = {
        name: module
        for name, module in shadow.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }
    for training in (True, False):
        count: Counter[str] = Counter()
        probe = copy.deepcopy(shadow).train(training)  # training moves running statistics
        for name in owners:
            probe.get_submodule(name).register_forward_hook(_counter(count, name))
        with torch.no_grad(), torch.random.fork_rng():
            _forward(probe, example)
        counts[training] = count
    hidden = sorted(set(counts[True]) - set(counts[False]))
    if hidden:
        raise StageError(
            f"pruning: {', '.join(hidden[:3])} run in training but not in evaluation, so their "
            "channels cannot be followed; build the model without its auxiliary heads"
        )
    return counts[False]


def _counter(count: Counter[str], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        count[name] += 1

    return hook


def _forward(model: nn.Module, example: Sequence[Tensor]) -> Any:
    try:
        return model(*example)
    except Exception as error:  # whatever the user's forward raises
        shapes = ", ".join(str(tuple(x.shape)) for x in example)
        raise StageError(f"pruning: the network fails on inputs {shapes}: {error}") from error


def _unsafe(shadow: nn.Module, calls: Counter[str]) -> dict[str, str]:
    """Layer to the reason why its channels must stay."""
    owners = Counter(
        id(p) for m in shadow.modules() for p in m._parameters.values() if p is not None
    )
    reasons = {}
    for name, module in shadow.named_modules():
        parameters = [p for p in module._parameters.values() if p is not None]
        if not isinstance(module, RESIZABLE):
            # Layer and group normalisation mix channels; attention has heads.
            reasons[name] = f"is a {type(module).__name__}, which is never cut"
        elif "weight" not in module._parameters:
            reasons[name] = "has a computed weight (a parametrization or a mask)"
        elif isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and (
            module.groups > 1 and not depthwise(module)
        ):
            reasons[name] = f"has {module.groups} convolution groups"
        elif calls[name] > 1:
            reasons[name] = f"is used {calls[name]} times"
        elif any(owners[id(p)] > 1 for p in parameters):
            reasons[name] = "shares its weights with another layer"
    return reasons


def _trace(shadow: nn.Module, example: Sequence[Tensor]) -> Iterator[tuple[list[Member], str]]:
    """Members of each of Torch-Pruning's groups, and a reason to leave it whole."""
    import torch_pruning

    for parameter in shadow.parameters():
        parameter.requires_grad_(True)  # a frozen layer would be invisible to autograd
    names = {module: name for name, module in shadow.named_modules()}
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # A forward function of our own: without one, a batch is unpacked into arguments and
            # a bare `except` hides why the model refused them. Fresh lists for every argument.
            graph = torch_pruning.DependencyGraph().build_dependency(
                shadow,
                tuple(example),
                forward_fn=lambda model, inputs: model(*inputs),
                unwrapped_parameters=[],
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
            found = list(graph.get_all_groups(ignored_layers=[]))
        except Exception as error:
            raise StageError(
                f"pruning: Torch-Pruning cannot follow this network ({error}); use "
                "`method: weights`, or a network without data-dependent control flow"
            ) from error
        for group in found:
            yield _members(group, names)


def _members(group: Any, names: dict[nn.Module, str]) -> tuple[list[Member], str]:
    """Read one of Torch-Pruning's groups. Indices are exact: taken per root channel."""
    width = len(group[0].idxs)
    members: list[Member] = []
    reason = ""
    for item in group:
        module, node = item.dep.target.module, item.dep.target
        side: Side = "out" if item.dep.handler.__name__ == "prune_out_channels" else "in"
        if side == "out" and not node.outputs:
            reason = reason or OUTPUT
        if isinstance(module, nn.Parameter):
            reason = reason or "it reaches a parameter outside any layer"
        if module not in names or isinstance(module, nn.Parameter):
            continue  # concatenation, addition, reshape: no weights to cut
        where = _positions(item.idxs, item.root_idxs, width)
        if where is None:
            reason = reason or f"its channels reach {names[module]} unevenly"
            continue
        members.append(Member(names[module], side, where))
    return members, reason


def _positions(
    indices: Sequence[int], roots: Sequence[int | None], width: int
) -> NDArray[np.int64] | None:
    """[width, k]: positions on the axis per channel; None unless every channel has the same k."""
    rows: list[list[int]] = [[] for _ in range(width)]
    for index, root in zip(indices, roots, strict=True):
        if root is None:
            return None
        rows[root].append(int(index))
    counts = {len(row) for row in rows}
    if len(counts) != 1 or 0 in counts:
        return None
    return np.array([sorted(row) for row in rows], dtype=np.int64)


def _disjoint(groups: list[Group]) -> tuple[Group, ...]:
    """Leave groups whole that claim a position another group claims too."""
    claims: dict[tuple[str, Side, int], set[int]] = {}
    for i, group in enumerate(groups):
        for member in group.members:
            for position in member.where.ravel().tolist():
                claims.setdefault((member.layer, member.side, position), set()).add(i)
    clash = {i for owners in claims.values() if len(owners) > 1 for i in owners}
    return tuple(
        replace(g, whole=g.whole or "its channels overlap another group's") if i in clash else g
        for i, g in enumerate(groups)
    )
