"""Which channels go, so that a budget is met: pure functions of scores and costs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compressor.pruning.budget import Budget
from compressor.pruning.groups import Group

Scope = Literal["global", "local"]


@dataclass(frozen=True, slots=True)
class Step:
    """One cut of one group, from one allowed width to the next smaller one.

    Attributes:
        group: Name.
        after: Width after the cut.
        channels: How many it removes.
        score: Mean importance of the channels that it removes.
        removed: Fraction of the group's reference width that is gone after it.
        depth: Position among the group's cuts, from 0.
    """

    group: str
    after: int
    channels: int
    score: float
    removed: float
    depth: int


def widths(full: int, reference: int, round_to: int, max_ratio: float) -> list[int]:
    """Allowed widths of a group that is cut, descending, without ``full`` itself.

    Multiples of ``round_to``, at least ``round_to``, and at least ``1 - max_ratio`` of the
    reference width: a cap per group, held after rounding (it is checked on the result, so no
    single step can jump over it).
    """
    floor = max(round_to, math.ceil((1 - max_ratio) * reference - 1e-9))
    first = (full - 1) // round_to * round_to
    return [w for w in range(first, 0, -round_to) if w >= floor]


def ladder(
    groups: Sequence[Group],
    scores: Mapping[str, NDArray[np.float64]],
    *,
    round_to: int,
    max_ratio: float,
    reference: Mapping[str, int],
) -> list[Step]:
    """Every possible cut. Within a group the least important channels go first.

    Args:
        groups: Those left whole give no steps.
        scores: Group name to importance [width].
        round_to: Kept widths are multiples of it.
        max_ratio: Largest fraction of a group's reference width that may go.
        reference: Group name to its width before the first of several prunings.
    """
    steps = []
    for group in groups:
        if group.whole:
            continue
        ascending = np.sort(scores[group.name])
        before, base, score = group.width, reference[group.name], 0.0
        for depth, after in enumerate(widths(group.width, base, round_to, max_ratio)):
            block = ascending[group.width - before : group.width - after]
            removed = 1 - after / base
            # Never below the cut before it: rounding must not reorder a group's own cuts.
            score = max(score, float(block.mean()))
            steps.append(Step(group.name, after, before - after, score, removed, depth))
            before = after
    return steps


def choose(steps: Sequence[Step], budget: Budget, limit: int, scope: Scope) -> dict[str, int]:
    """Widths that keep ``budget`` at or below ``limit``, with no step left that would fit.

    Cuts are taken in one fixed order (by importance for ``global``, by the fraction of the group
    that is gone for ``local``) until the limit is met; the order is the same for every limit, so
    a smaller one never gives a larger network. Then the overshoot is filled back, most important
    cut first.

    Args:
        steps: From :func:`ladder`.
        budget: At full widths; left at the chosen ones.
        limit: Largest total allowed.
        scope: Order of cutting.

    Returns:
        Group name to width, for groups that are cut. All steps are taken, and ``budget.total``
        is still above ``limit``, where the limit is out of reach.
    """
    rank = {name: i for i, name in enumerate(dict.fromkeys(s.group for s in steps))}

    def key(step: Step) -> tuple[float, float, int, int]:
        first = step.score if scope == "global" else step.removed
        return first, step.score, rank[step.group], step.depth

    taken: dict[str, list[Step]] = {}
    for step in sorted(steps, key=key):
        if budget.total <= limit:
            break
        budget.shrink(step.group, step.channels)
        taken.setdefault(step.group, []).append(step)
    if budget.total <= limit:
        _fill_back(taken, budget, limit, rank)
    return {name: cuts[-1].after for name, cuts in taken.items() if cuts}


def _fill_back(
    taken: dict[str, list[Step]], budget: Budget, limit: int, rank: Mapping[str, int]
) -> None:
    """Undo cuts while the total stays within the limit; only a group's last cut can be undone.

    One pass is enough: totals only grow, so what does not fit once never fits later.
    """
    heap = [(-cuts[-1].score, rank[name], name) for name, cuts in taken.items()]
    heapq.heapify(heap)
    while heap:
        _, order, name = heapq.heappop(heap)
        step = taken[name][-1]
        budget.shrink(name, -step.channels)
        if budget.total > limit:
            budget.shrink(name, step.channels)
            continue
        taken[name].pop()
        if taken[name]:
            heapq.heappush(heap, (-taken[name][-1].score, order, name))


def strongest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Indices of the ``count`` most important channels, sorted; ties keep the lower index."""
    order = np.lexsort((np.arange(len(scores)), -scores))
    return np.sort(order[:count]).astype(np.int64)
