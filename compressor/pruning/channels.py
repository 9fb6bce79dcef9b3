"""Remove whole channels until a network fits a budget; what is left is an ordinary dense network.

groups (Torch-Pruning's graph) -> proof on random weights -> importance -> search -> surgery
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor, nn

from compressor.core.errors import StageError, TargetError
from compressor.pruning.budget import Budget, LayerCost, Measure, total
from compressor.pruning.budget import layers as layers_of
from compressor.pruning.groups import OUTPUT, Group, find
from compressor.pruning.importance import scores
from compressor.pruning.search import Scope, Step, choose, ladder, strongest
from compressor.pruning.surgery import Kept, proved, remove_

Say = Callable[[str], None]
_PROOFS = 2  # random selections tried on each group before its channels are believed


@dataclass(frozen=True, slots=True)
class Target:
    """How much of a network may stay.

    Attributes:
        measure: What is counted: MACs, parameters, or the channels of groups that can be cut.
        keep: Fraction kept, above 0 and at most 1.
        word: How the config calls it, for messages: ``target_macs: 0.5``.
    """

    measure: Measure
    keep: float
    word: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """How channels are chosen; see ``stages.prune`` for the meaning of each."""

    round_to: int = 8
    importance: Literal["l2", "random"] = "l2"
    scope: Scope = "global"
    max_ratio: float = 0.8
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """The network before the first of several prunings: what fractions refer to."""

    macs: int
    parameters: int
    channels: int
    widths: Mapping[str, int]

    def of(self, measure: Measure) -> int:
        """The total of one measure."""
        return {"macs": self.macs, "parameters": self.parameters}.get(measure, self.channels)


@dataclass(frozen=True, slots=True)
class Cut:
    """What one pruning did.

    Attributes:
        reference: What the fractions refer to.
        widths: Group name to (before, after), for groups that were cut.
        kept: Group name to the channels that stay, for the same groups.
        whole: Group name to the reason why it was left whole, the network's output aside.
        macs: Multiply-accumulates per sample afterwards.
        parameters: Afterwards.
        channels: Afterwards, in groups that can be cut.
    """

    reference: Reference
    widths: Mapping[str, tuple[int, int]]
    kept: Mapping[str, tuple[int, ...]]
    whole: Mapping[str, str]
    macs: int
    parameters: int
    channels: int

    def of(self, measure: Measure) -> int:
        """The total of one measure afterwards."""
        return {"macs": self.macs, "parameters": self.parameters}.get(measure, self.channels)


def examine(model: nn.Module, example: Sequence[Tensor]) -> tuple[Group, ...]:
    """Groups of ``model``; each that is not left whole has been proved on random weights.

    A trace cannot see everything: a channel shuffle, a hard-coded ``view`` or an addition of the
    network's own input look harmless to it. So channels are removed from a copy and silenced in
    another, and where the two differ, the group stays whole.
    """
    groups = find(model, example)
    if _provable(model, groups, example):
        return groups
    accepted: list[Group] = []
    for group in groups:
        if not group.whole and not _provable(model, [*accepted, group], example):
            group = replace(group, whole="removing its channels changes what the others compute")
        accepted.append(group)
    return tuple(accepted)


def _provable(model: nn.Module, groups: Sequence[Group], example: Sequence[Tensor]) -> bool:
    for seed in range(_PROOFS):
        rng = np.random.default_rng(seed)
        kept = {}
        for group in groups:
            if not group.whole and group.width > 1:
                count = int(rng.integers(max(1, group.width // 4), group.width))
                chosen = rng.permutation(group.width)[:count]
                kept[group.name] = np.sort(chosen).astype(np.int64)
        if kept and not proved(model, groups, kept, example, seed):
            return False
    return True


def prune_channels_(
    model: nn.Module,
    example: Sequence[Tensor],
    target: Target,
    options: Options,
    *,
    portion: float = 1.0,
    reference: Reference | None = None,
    macs: int | None = None,
) -> Cut:
    """Cut ``model`` in place until it is at or below the target and no further step fits under it.

    Deterministic: the same weights, options and seed cut the same channels. An optimizer made
    before does not know the new parameters; make a new one.

    Args:
        model: On the CPU. Unchanged where the target is met already.
        example: Positional inputs, batch dimension of at least 2 first.
        target: Fraction to keep.
        options: How to choose.
        portion: How much of the way to go now: ``i / n`` in the i-th of n steps.
        reference: Of the first step; None takes the model as it is.
        macs: The model's MACs by the caller's count, where it knows more than convolutions and
            linear layers; what they do not explain is taken as fixed.

    Raises:
        TargetError: Out of reach; the message names the nearest reachable value.
        StageError: The network cannot be traced, or the surgery cannot be proved right.
    """
    groups = examine(model, example)
    ledger = _Ledger(model, layers_of(model, example), groups, macs)
    reference = reference or ledger.reference()
    ranked = scores(model, groups, options.importance, options.seed)
    steps = ladder(
        groups,
        ranked,
        round_to=options.round_to,
        max_ratio=options.max_ratio,
        reference={g.name: reference.widths.get(g.name, g.width) for g in groups},
    )
    full = reference.of(target.measure)
    _check_reach(ledger.budget(target.measure), steps, target, options, groups, full)
    budget = ledger.budget(target.measure)
    limit = _limit(1 - (1 - target.keep) * portion, full)
    chosen = choose(steps, budget, limit, options.scope)
    kept = {name: strongest(ranked[name], width) for name, width in chosen.items()}
    _operate_(model, groups, kept, example)
    cut = ledger.settle(model, example, reference, kept)
    if cut.of(target.measure) != budget.total:
        raise StageError(
            f"pruning: planned {budget.total} {target.measure}, the cut network has "
            f"{cut.of(target.measure)}; this is a bug in compressor.pruning.budget"
        )
    return cut


class _Ledger:
    """What a network costs before and after; knows the part that no group explains."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, LayerCost],
        groups: Sequence[Group],
        macs: int | None,
    ) -> None:
        self._layers, self._groups = layers, groups
        counted = total(layers.values(), "macs")
        self._macs = counted if macs is None else macs
        self._parameters = sum(p.numel() for p in model.parameters())
        self._channels = sum(g.width for g in groups if not g.whole)
        self._unseen: dict[Measure, int] = {
            "macs": self._macs - counted,
            "parameters": self._parameters - total(layers.values(), "parameters"),
            "channels": 0,
        }

    def reference(self) -> Reference:
        widths = {g.name: g.width for g in self._groups}
        return Reference(self._macs, self._parameters, self._channels, widths)

    def budget(self, measure: Measure) -> Budget:
        layers = {name: replace(layer) for name, layer in self._layers.items()}
        return Budget(layers, self._groups, measure, self._unseen[measure])

    def settle(
        self,
        model: nn.Module,
        example: Sequence[Tensor],
        reference: Reference,
        kept: Kept,
    ) -> Cut:
        """Count the cut network anew, from its own shapes."""
        widths = {g.name: (g.width, len(kept[g.name])) for g in self._groups if g.name in kept}
        return Cut(
            reference=reference,
            widths=widths,
            kept={name: tuple(channels.tolist()) for name, channels in kept.items()},
            whole={g.name: g.whole for g in self._groups if g.whole not in ("", OUTPUT)},
            macs=total(layers_of(model, example).values(), "macs") + self._unseen["macs"],
            parameters=sum(p.numel() for p in model.parameters()),
            channels=self._channels - sum(before - after for before, after in widths.values()),
        )


def _operate_(
    model: nn.Module, groups: Sequence[Group], kept: Kept, example: Sequence[Tensor]
) -> None:
    if not kept:
        return
    if not proved(model, groups, kept, example):
        raise StageError(
            f"pruning: removing the chosen channels of {', '.join(sorted(kept))} does not give "
            "the network with those channels silenced; nothing was cut. Use `method: weights`."
        )
    remove_(model, groups, kept)


def _limit(fraction: float, full: int) -> int:
    """Largest whole total within ``fraction`` of ``full``; 1 - 0.9 of 80 is 8, not 7."""
    return math.floor(fraction * full * (1 + 1e-12))


def _check_reach(
    budget: Budget,
    steps: Sequence[Step],
    target: Target,
    options: Options,
    groups: Sequence[Group],
    full: int,
) -> None:
    """Raise TargetError if even all steps together stay above the target."""
    for step in steps:
        budget.shrink(step.group, step.channels)
    if budget.total <= _limit(target.keep, full):
        return
    whole = [f"{g.name} ({g.whole})" for g in groups if g.whole not in ("", OUTPUT)]
    left = f"; left whole: {', '.join(whole[:4])}{' ...' if len(whole) > 4 else ''}"
    raise TargetError(
        f"{target.word or target.measure}: out of reach. The nearest reachable value is "
        f"{_reachable(budget.total / full if full else 1.0, target)} with round_to "
        f"{options.round_to} and max_ratio {options.max_ratio:g}; a smaller round_to or a larger "
        f"max_ratio reaches further{left if whole else ''}"
    )


def _reachable(keep: float, target: Target) -> str:
    """The nearest value, rounded so that asking for it succeeds."""
    if target.measure == "channels":
        return f"{math.floor((1 - keep) * 1e4) / 1e4:g}"  # a fraction removed
    return f"{math.ceil(keep * 1e4) / 1e4:g}"
