"""The ladder: what makes everything in int8 accurate enough, the cheapest first.

Other ranges, corrected biases, equalized channels, learned rounding. A rung is kept only if the
samples that judge say that it helps; the next one stands on those that were kept; the first that
meets the goal is the last. Biases are right only for the ranges and integers that they were
measured with: once corrected, they are measured again with every later rung.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from compressor.quantization.candidates import Candidates, Journal
from compressor.quantization.goal import Goal
from compressor.quantization.placement import Floats
from compressor.quantization.plain import Options
from compressor.quantization.quality import Quality
from compressor.quantization.recipe import Recipe
from compressor.quantization.remedies import (
    SIDES,
    Biases,
    Equalization,
    Means,
    Remedy,
    Rounding,
    calibrators,
)
from compressor.quantization.samples import Samples
from compressor.quantization.sensitivity import look_seconds

KEPT = "kept"
_INT8: Floats = frozenset()  # no region is float


@dataclass(frozen=True, slots=True)
class Rung:
    """What one rung gave.

    Attributes:
        name: Of the remedy.
        before: Everything in int8, without it.
        after: With it; None if it was skipped.
        seconds: What it is expected to have taken, looking included.
        outcome: ``kept``, ``not kept``, ``skipped: budget`` or ``skipped: nothing to do``.
    """

    name: str
    before: Quality
    after: Quality | None
    seconds: float
    outcome: str

    def plain(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def line(self) -> str:
        """For people."""
        if self.after is None:
            return f"recovery, {self.name}: {self.outcome}"
        one, two = self.before, self.after
        drop = "" if two.drop is None else f", drop {one.drop:.2f} -> {two.drop:.2f}"
        numbers = f"{one.worst:.1f} -> {two.worst:.1f} dB{drop}"
        return f"recovery, {self.name}: {numbers}, {self.outcome}"


@dataclass(frozen=True, slots=True)
class Climbed:
    """Where a climb ended.

    Attributes:
        candidates: By the best recipe that was found.
        rungs: In the order in which they were tried.
        spent: Seconds, as the budget counts them.
        met: Whether everything in int8 meets the goal now.
    """

    candidates: Candidates
    rungs: tuple[Rung, ...]
    spent: float
    met: bool


@dataclass(frozen=True, slots=True)
class Ladder:
    """Everything that a climb needs and that is known before anything is measured.

    Attributes:
        samples: For calibration.
        fixed: The model's own batch, or None.
        options: The caller's.
        goal: When to stop.
        journal: Keeps what takes long.
    """

    samples: Samples
    fixed: int | None
    options: Options
    goal: Goal
    journal: Journal

    def climb(
        self, start: Candidates, sample_us: float, judged: int, budget: float,
        told: Callable[[str], None] = lambda name: None,
    ) -> Climbed:  # fmt: skip
        """Try one rung after the other.

        Args:
            start: By the plain recipe; everything in int8 misses the goal.
            sample_us: One sample through the float network, in microseconds.
            judged: How many samples judge.
            budget: Seconds.
            told: Told the name of each rung that is tried.
        """
        means = Means(start, self.samples, self.fixed, self.options, self.journal, self.goal.seed,
                      sample_us)  # fmt: skip
        look = look_seconds(start, sample_us, judged)
        return _Climb(means, self.goal, look, budget, told).run()


class _Climb:
    def __init__(
        self, means: Means, goal: Goal, look: float, budget: float, told: Callable[[str], None]
    ) -> None:
        self._means, self._goal, self._look = means, goal, look
        self._budget, self._told = budget, told
        self._best = means.candidates
        self._quality = self._best.quality(_INT8, keep=False)
        self._biases = Biases(means)
        self._size = self._biases.sizes[-1]  # samples that biases were corrected with
        self._rungs: list[Rung] = []
        self._spent = 0.0

    def run(self) -> Climbed:
        for remedy in self._remedies():
            if self._met:
                break
            self._try(remedy)
        if not self._met and self._stale:
            self._try(self._biases)
        return Climbed(self._best, tuple(self._rungs), self._spent, self._met)

    def _remedies(self) -> Iterator[Remedy]:
        """The rungs; equal channels may want the caller's ranges again, or those that were kept."""
        means = self._means
        yield from calibrators(means)
        yield self._biases
        for by in SIDES:
            for method in dict.fromkeys([means.options.method, self._best.recipe.method]):
                yield Equalization(means, by, method)
        yield Rounding(means)

    @property
    def _met(self) -> bool:
        return self._goal.met(self._quality)

    @property
    def _stale(self) -> bool:
        """Whether biases were in vain before other rungs were kept."""
        names = [rung.name for rung in self._rungs if rung.after is not None]
        later = names[names.index(self._biases.name) + 1 :] if self._biases.name in names else []
        kept = {rung.name for rung in self._rungs if rung.outcome == KEPT}
        return not self._best.recipe.deltas and bool(kept.intersection(later))

    def _try(self, remedy: Remedy) -> None:
        recipe = self._best.recipe
        again = bool(recipe.deltas) and remedy is not self._biases
        more = self._look + (self._biases.cost(recipe, self._size) if again else 0.0)
        size = _affordable(remedy, recipe, self._budget - self._spent - more)
        if size is None:
            self._note(remedy, None, 0.0, "skipped: budget")
            return
        self._told(remedy.name)
        cost = remedy.cost(recipe, size) + more
        made = remedy.make(recipe.without_bias(), size)
        if made is None:
            self._note(remedy, None, 0.0, "skipped: nothing to do")
            return
        if again:
            made = self._biases.make(made, self._size) or made
        if remedy is self._biases:
            self._size = size
        self._judge(remedy, made, cost)

    def _judge(self, remedy: Remedy, recipe: Recipe, cost: float) -> None:
        self._spent += cost
        trial = self._best.of(recipe)
        quality = trial.quality(_INT8, keep=False)
        helps = self._goal.met(quality) or self._goal.better(quality, self._quality)
        self._note(remedy, quality, cost, KEPT if helps else "not kept")
        if helps:
            self._best, self._quality = trial, quality

    def _note(self, remedy: Remedy, after: Quality | None, cost: float, outcome: str) -> None:
        self._rungs.append(Rung(remedy.name, self._quality, after, round(cost, 3), outcome))


def _affordable(remedy: Remedy, recipe: Recipe, left: float) -> int | None:
    """The most that half of what is left pays for, so that others have a chance; else the least."""
    costs = [(size, remedy.cost(recipe, size)) for size in remedy.sizes]
    some = (size for size, cost in costs if cost <= left / 2)
    least, cost = costs[-1]
    return next(some, least if cost <= left else None)
