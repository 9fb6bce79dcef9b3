"""Zero single weights by magnitude and hold them at zero.

Zeros make a file compress better; they make nothing faster. ONNX Runtime multiplies by them like
by any other number, so only ``zstd_bytes`` shows what they are worth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from compressor.core.errors import StageError, TargetError
from compressor.pruning.groups import CONVOLUTIONS, TRANSPOSED
from compressor.pruning.schedule import Ramp

Scope = Literal["global", "local"]

# A layer that global ranking empties would cut the network in two. Gale et al. 2019
# (arXiv 1902.09574) and GMP practice cap layers at 95-98 %.
LAYER_CAP = 0.98


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of convolutions and linear layers, by parameter name, shared ones once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            weight = module._parameters.get("weight")
            if weight is not None and id(weight) not in seen:
                seen.add(id(weight))
                found[f"{path}.weight" if path else "weight"] = weight
    if not found:
        raise StageError("pruning: the network has no convolution and no linear layer")
    return found


def ends(model: nn.Module, example: Sequence[Tensor]) -> set[str]:
    """Weight names of the first and the last layer that run, which per-layer pruning spares.

    They hold few weights and lose most by pruning (Zhu and Gupta 2017, section 4).
    """
    ran: list[str] = []
    handles = []
    for name in prunable(model):
        module = model.get_submodule(name.rpartition(".")[0])
        handles.append(module.register_forward_hook(lambda *_, name=name: ran.append(name)))
    modes = [(m, m.training) for m in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(*example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return {ran[0], ran[-1]} if ran else set()


def masks(
    weights: Mapping[str, Tensor],
    amount: float,
    scope: Scope,
    *,
    previous: Mapping[str, Tensor] | None = None,
    cap: float = LAYER_CAP,
) -> dict[str, Tensor]:
    """Which weights stay. Exactly ``round(amount * n)`` go, whatever the ties.

    Args:
        weights: Name to values, in a fixed order.
        amount: Fraction to zero, in 0..1: of all together for ``global``, of each tensor for
            ``local``. Python's ``round``: half goes to even.
        scope: ``global`` ranks all weights together.
        previous: Masks that stay masks: what was zeroed stays zeroed, so masks only grow.
        cap: Largest fraction of one tensor that ``global`` may zero.

    Returns:
        Name to bool [shape], True where the weight stays. Of equal magnitudes the one with the
        lower index (in the order of ``weights``) goes first.

    Raises:
        TargetError: ``amount`` is above what ``cap`` allows.
    """
    keys = {
        name: _magnitude(weight, None if previous is None else previous[name])
        for name, weight in weights.items()
    }
    if scope == "local":
        chosen = {n: _lowest(key, round(amount * key.numel())) for n, key in keys.items()}
    else:
        chosen = _global(keys, amount, cap)
    return {name: ~chosen[name].view(weight.shape) for name, weight in weights.items()}


def _magnitude(weight: Tensor, previous: Tensor | None) -> Tensor:
    """Sorting key [n]: |w|, and -1 for what is gone already, which ranks below any weight."""
    key = weight.detach().abs().flatten().float()
    return key if previous is None else key.masked_fill(~previous.flatten(), -1.0)


def _lowest(key: Tensor, count: int) -> Tensor:
    """Bool [n]: the ``count`` smallest, and all that are gone already."""
    gone = key < 0
    order = torch.argsort(key, stable=True)
    gone[order[:count]] = True
    return gone


def _global(keys: Mapping[str, Tensor], amount: float, cap: float) -> dict[str, Tensor]:
    total = sum(key.numel() for key in keys.values())
    count = round(amount * total)
    quota = {name: int(cap * key.numel()) for name, key in keys.items()}
    reachable = sum(quota.values())
    if count > reachable:
        raise TargetError(
            f"sparsity: {amount:g} is out of reach. The nearest reachable value is "
            f"{int(1e4 * reachable / total) / 1e4:g}: no layer is zeroed beyond {cap:g} of its "
            "weights, so that signals get through; use scope: local to go further"
        )
    open_keys = []
    for name, key in keys.items():
        # Beyond its quota a layer's weights rank last; within a layer the order is the same.
        order = torch.argsort(key, stable=True)
        open_keys.append(key.index_fill(0, order[quota[name] :], float("inf")))
    picked = _lowest(torch.cat(open_keys), count)
    sizes = [key.numel() for key in keys.values()]
    return dict(zip(keys, torch.split(picked, sizes), strict=True))


class Masks:
    """Masks that follow a schedule and survive a kill: the hook that ``fit_`` calls.

    The masks are tensors that change in place, so that a training checkpoint carries them:
    weights alone do not tell a pruned zero from one that happens to be zero.

    Attributes:
        state: Name to bool [shape], True where the weight stays; given to ``fit_``.
    """

    def __init__(
        self, model: nn.Module, ramp: Ramp, scope: Scope, spared: set[str] | None = None
    ) -> None:
        """Start with everything kept; with a one-shot ramp, at full sparsity.

        Args:
            model: Its parameters are changed in place only.
            ramp: When and how much.
            scope: As for :func:`masks`.
            spared: Weight names that are never zeroed.

        Raises:
            TargetError: The ramp ends above what can be zeroed: said now, not at its end.
        """
        self._model, self._ramp, self._scope = model, ramp, scope
        spared = spared or set()
        self._names = [n for n in prunable(model) if n not in spared]
        if not self._names:
            raise TargetError(
                "sparsity: every layer is the first or the last one, which scope: local spares; "
                "use scope: global"
            )
        parameters = dict(model.named_parameters())
        masks(self._weights(), ramp.final, scope)
        self.state = {n: torch.ones_like(parameters[n], dtype=torch.bool) for n in self._names}
        self.after_step(0)

    def after_step(self, step: int) -> None:
        """Draw masks where the schedule says so, then zero what is masked."""
        weights = self._weights()
        if self._ramp.due(step):
            present = {n: mask.to(weights[n].device) for n, mask in self.state.items()}
            drawn = masks(weights, self._ramp.at(step), self._scope, previous=present)
            for name, mask in drawn.items():
                self.state[name].copy_(mask)
        self.apply_()

    def apply_(self) -> None:
        """Zero what is masked: after every step, because momentum and decay move zeros."""
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.mul_(self.state[name].to(weight.device))

    def _weights(self) -> dict[str, Tensor]:
        parameters = dict(self._model.named_parameters())
        return {name: parameters[name] for name in self._names}


def zero_fraction(model: nn.Module) -> float:
    """Zeros among the weights of convolutions and linear layers, in 0..1."""
    weights = list(prunable(model).values())
    zeros = sum(int((w == 0).sum()) for w in weights)
    return zeros / sum(w.numel() for w in weights)
