"""Remove channels from layers, or silence them, and prove that both give the same network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.core.errors import StageError
from compressor.pruning.groups import (
    CONVOLUTIONS,
    NORMS,
    TRANSPOSED,
    Group,
    Side,
    depthwise,
)

Kept = Mapping[str, NDArray[np.int64]]  # group name -> indices of its channels that stay, sorted

# Relative to the largest output. In float64 two correct forms differ by rounding only (1e-13
# and less); a single wrong index is off by the size of a channel's signal.
_TOLERANCE = 1e-8


def gone(groups: Iterable[Group], kept: Kept) -> dict[tuple[str, Side], NDArray[np.int64]]:
    """Positions to remove on each axis of each layer, sorted; groups not in ``kept`` stay."""
    lists: dict[tuple[str, Side], list[NDArray[np.int64]]] = {}
    for group in groups:
        if group.name not in kept or len(kept[group.name]) == group.width:
            continue
        drop = np.setdiff1d(np.arange(group.width), kept[group.name])
        for member in group.members:
            lists.setdefault((member.layer, member.side), []).append(member.where[drop].ravel())
    return {axis: np.sort(np.concatenate(parts)) for axis, parts in lists.items()}


def remove_(model: nn.Module, groups: Iterable[Group], kept: Kept) -> None:
    """Cut channels out of every layer that carries them. Parameters are new objects afterwards.

    Args:
        model: Changed in place; an optimizer made before no longer sees its parameters.
        groups: As found on this model.
        kept: Group name to the channels that stay.
    """
    for (layer, side), drop in gone(groups, kept).items():
        module = model.get_submodule(layer)
        stay = np.setdiff1d(np.arange(axis_length(module, side)), drop)
        _resize_(module, side, torch.from_numpy(stay))


def mask_(model: nn.Module, groups: Iterable[Group], kept: Kept, *, readers: bool = False) -> None:
    """Silence channels without removing them: zero weight, bias, gamma and beta.

    Args:
        model: Changed in place, shapes stay.
        groups: As found on this model.
        kept: Group name to the channels that stay.
        readers: Also zero the weights that read them; then activations that map 0 to something
            else (sigmoid) do not matter.
    """
    for (layer, side), drop in gone(groups, kept).items():
        module: Any = model.get_submodule(layer)
        index = torch.from_numpy(drop)
        with torch.no_grad():
            if side == "out" and not isinstance(module, nn.PReLU):
                for tensor in (module.weight, module.bias):
                    if tensor is not None:
                        axis = 1 if isinstance(module, TRANSPOSED) and tensor.ndim > 1 else 0
                        tensor.index_fill_(axis, index.to(tensor.device), 0.0)
                if isinstance(module, NORMS) and module.weight is None:
                    # Without gamma the mean is what can silence a channel, if its input is 0.
                    module.running_mean.index_fill_(0, index.to(module.running_mean.device), 0.0)
            elif side == "in" and readers:
                axis = 0 if isinstance(module, TRANSPOSED) else 1
                module.weight.index_fill_(axis, index.to(module.weight.device), 0.0)


def axis_length(module: Any, side: Side) -> int:
    """Channels on one axis of a layer."""
    if isinstance(module, NORMS):
        return int(module.num_features)
    if isinstance(module, nn.PReLU):
        return int(module.num_parameters)
    if isinstance(module, nn.Linear):
        return module.out_features if side == "out" else module.in_features
    return int(module.out_channels if side == "out" else module.in_channels)


def _resize_(module: Any, side: Side, stay: Tensor) -> None:
    if isinstance(module, nn.PReLU):
        if module.num_parameters > 1:  # one slope for all channels has no axis
            _slice_(module, "weight", 0, stay)
            module.num_parameters = len(stay)
    elif isinstance(module, NORMS):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _slice_(module, name, 0, stay)
        module.num_features = len(stay)
    elif isinstance(module, nn.Linear):
        _slice_(module, "weight", 0 if side == "out" else 1, stay)
        if side == "out":
            _slice_(module, "bias", 0, stay)
            module.out_features = len(stay)
        else:
            module.in_features = len(stay)
    else:
        _resize_convolution_(module, side, stay)


def _resize_convolution_(module: Any, side: Side, stay: Tensor) -> None:
    if depthwise(module):  # one axis carries both sides
        _slice_(module, "weight", 0, stay)
        _slice_(module, "bias", 0, stay)
        module.in_channels = module.out_channels = module.groups = len(stay)
        return
    out_axis = 1 if isinstance(module, TRANSPOSED) else 0
    _slice_(module, "weight", out_axis if side == "out" else 1 - out_axis, stay)
    if side == "out":
        _slice_(module, "bias", 0, stay)
        module.out_channels = len(stay)
    else:
        module.in_channels = len(stay)


def _slice_(module: nn.Module, name: str, axis: int, stay: Tensor) -> None:
    old = getattr(module, name)
    if old is None:
        return
    new = old.detach().index_select(axis, stay.to(old.device)).contiguous()
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        setattr(module, name, new)


def proved(
    model: nn.Module, groups: Sequence[Group], kept: Kept, example: Sequence[Tensor], seed: int = 0
) -> bool:
    """True if the network with channels removed computes what the silenced one computes.

    Runs on copies with random weights in float64, because a trained network can hide a wrong
    index behind a channel that happens to be zero (a residual branch with gamma 0).
    """
    reference = copy.deepcopy(model).cpu().double().eval()
    scramble_(reference, seed)
    cut = copy.deepcopy(reference)
    mask_(reference, groups, kept, readers=True)
    rng = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(x.shape, generator=rng, dtype=torch.float64) if x.is_floating_point() else x
        for x in (x.cpu() for x in example)
    ]
    with torch.no_grad():
        want = _run(reference, inputs)
        try:
            remove_(cut, groups, kept)
            have = cut(*inputs)
        except Exception:  # shapes that no longer fit, in the user's own forward
            return False
    if not isinstance(have, Tensor) or have.shape != want.shape:
        return False
    scale = float(want.abs().max())
    return bool((have - want).abs().max() <= _TOLERANCE * scale)


def _run(model: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    try:
        output = model(*inputs)
    except Exception as error:  # whatever the user's forward raises
        raise StageError(
            f"pruning: the network fails in float64, in which surgery is checked: {error}"
        ) from error
    if not isinstance(output, Tensor):
        raise StageError(f"pruning: the network returns {type(output).__name__}, not one tensor")
    return output


def scramble_(model: nn.Module, seed: int) -> None:
    """Random weights and statistics at a scale that keeps activations near 1."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 0
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.copy_(noise * (2 / fan) ** 0.5 if fan else 1 + 0.3 * noise)
        for module in model.modules():
            if isinstance(module, NORMS) and module.running_mean is not None:
                shape = module.running_mean.shape
                module.running_mean.copy_(0.3 * torch.randn(shape, generator=rng))
                assert module.running_var is not None  # they come in pairs
                module.running_var.copy_(0.5 + torch.rand(shape, generator=rng))


__all__ = ["CONVOLUTIONS", "Kept", "axis_length", "gone", "mask_", "proved", "remove_", "scramble_"]
