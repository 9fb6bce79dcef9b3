"""The search for a placement, inside a budget, by interleaved measurements of whole candidates.

Seconds are counted from the timings themselves (and from sizes, for what is not timed), never
read from a clock: given the same timings the search makes the same steps and the same choice, on
an idle machine, on a busy one, and after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from compressor.core.types import Timing, TimingProtocol, Timings
from compressor.quantization import placement, sensitivity
from compressor.quantization.candidates import Candidates
from compressor.quantization.goal import Goal, expected, seconds
from compressor.quantization.placement import Floats
from compressor.quantization.recovery import Ladder, Rung
from compressor.quantization.sensitivity import Row
from compressor.stats.bootstrap import Interval
from compressor.stats.ratios import ratio

FP32 = "fp32"
_RECOVERY = 1 / 3  # of the budget, if it is needed
_SENSITIVITY = 1 / 3  # of what recovery leaves
_FINAL = 1 / 4
_AT_ONCE = 4  # new candidates per measurement
_PATIENCE = 2  # measurements in a row that found nothing better
_KEPT = 3  # files per measurement; others are written again if they are needed
_CLOSE = 0.97
_HOPELESS = 1.02  # a move that the model expects to cost more than this is not measured
ROUNDS = (10, 30)  # of the last measurement

Told = Callable[[float, str], None]


@dataclass(slots=True)
class Found:
    """What the search knows.

    Attributes:
        recovery: What was tried for accuracy; empty if nothing had to be.
        recovered: Whether everything in int8 is accurate enough by then.
        table: One row per region.
        forced: Regions that are float for accuracy; None: int8 is nowhere accurate enough.
        last: The measurement that decides, of fp32 and the finalists; None if there are none.
        finalists: In the order of their promise.
        tried: Choice to its speed-up over fp32 when it was tried.
        spent: Seconds, as the budget counts them.
        unstable: Why the timings cannot be trusted, or empty.
    """

    recovery: tuple[Rung, ...] = ()
    recovered: bool = True
    table: tuple[Row, ...] = ()
    forced: Floats | None = None
    last: Timing | None = None
    finalists: tuple[Floats, ...] = ()
    tried: dict[Floats, Interval] = field(default_factory=dict)
    spent: float = 0.0
    unstable: str = ""


class Search:
    """One search; :meth:`run` is all there is to call.

    Attributes:
        candidates: What the choices are written from; recovered ones once a ladder has helped.
    """

    def __init__(
        self, model: Path, candidates: Candidates, goal: Goal, timings: Timings,
        protocol: TimingProtocol, feed: Mapping[str, Any], samples: int,
        told: Told = lambda spent, note: None,
        better: Callable[[Floats, Interval], None] = lambda choice, speed: None,
        ladder: Ladder | None = None,
    ) -> None:  # fmt: skip
        """Prepare.

        Args:
            model: The float file that candidates are compared with.
            candidates: Writes and judges.
            goal: What is wanted.
            timings: Measures.
            protocol: Batch, threads, inputs and seed of all measurements.
            feed: Samples to time with.
            samples: How many samples judge.
            told: Told of progress.
            better: Told of every choice that is proven faster than all before it.
            ladder: Recovers accuracy, if there is any to recover; None: it is not to.
        """
        self.candidates = candidates
        self._model, self._goal, self._ladder = model, goal, ladder
        self._timings, self._feed, self._samples = timings, feed, samples
        self._quick = replace(protocol, rounds=10, min_cell_ms=20.0, warmup_ms=100.0)
        self._told, self._better = told, better
        self._found = Found()
        self._judged: dict[Floats, bool] = {}
        self._proven = 1.0
        self._climbed = 0.0

    def run(self) -> Found:
        """Recover, profile, look at every region, hold the accuracy, search, measure the last."""
        found, goal = self._found, self._goal
        if not self._steady():
            return found
        self._recover()
        self._say("profiling")
        self._costs = sensitivity.costs(self.candidates, self._timings, self._quick, self._feed)
        found.spent += 3 * self._quick.rounds * self._call_ms / 1e3
        self._say("looking at every region")
        found.table, looked = sensitivity.rows(
            self.candidates, self._costs, self._sample_us, self._samples,
            (goal.budget - self._climbed) * _SENSITIVITY,
        )  # fmt: skip
        found.spent += looked
        self._say("holding the accuracy")
        found.forced = self._force()
        if found.forced is not None:
            self._explore(found.forced)
            self._decide()
        return found

    def _say(self, note: str) -> None:
        self._told(self._found.spent, note)

    def _steady(self) -> bool:
        """Time fp32 against itself, before much is done on a machine too busy to measure on."""
        self._say("measuring fp32 against itself")
        timing = self._timings.measure({FP32: self._model}, self._quick, self._feed)
        self._found.spent += seconds(timing)
        self._call_ms = median(timing.calls[FP32])
        self._sample_us = 1e3 * self._call_ms / self._quick.batch
        self._found.unstable = (timing.note or "unstable timings") if timing.unstable else ""
        return not timing.unstable

    # accuracy

    def _recover(self) -> None:
        """Try to make everything in int8 accurate enough, before anything is left float for it."""
        if self._ladder is None or self._met(frozenset()):
            return
        result = self._ladder.climb(
            self.candidates, self._sample_us, self._samples, self._goal.budget * _RECOVERY,
            lambda name: self._say(f"recovering accuracy: {name}"),
        )  # fmt: skip
        self.candidates = result.candidates
        self._found.recovery, self._found.recovered = result.rungs, result.met
        self._climbed = result.spent
        self._found.spent += result.spent
        self._judged = {frozenset(): result.met}

    def _met(self, choice: Floats) -> bool:
        if choice not in self._judged:
            self._judged[choice] = False
            if self.candidates.weighted(choice):
                self._found.spent += sensitivity.look_seconds(
                    self.candidates, self._sample_us, self._samples
                )
                self._judged[choice] = self._goal.met(self.candidates.quality(choice))
            if not self._judged[choice]:
                self.candidates.drop(choice)
        return self._judged[choice]

    def _force(self) -> Floats | None:
        """The fewest of the most sensitive regions that must be float; None if all must."""
        if self._met(frozenset()):
            return frozenset()
        order = sensitivity.by_noise(self._found.table)
        most = len(order) - 1  # one region at least is int8
        low, high = 0, min(self._first_step(order), most)
        while not self._met(frozenset(order[:high])):
            if high >= most:
                return None
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            if self._met(frozenset(order[:middle])):
                high = middle
            else:
                low = middle
        return frozenset(order[:high])

    def _first_step(self, order: Sequence[int]) -> int:
        """How many are needed if the regions' noises add up."""
        if self._goal.max_drop is not None:
            return 1
        noises = [max(self._found.table[i].noise, 0.0) for i in order]
        allowed = 10 ** (-self._goal.min_sqnr / 10)
        left = sum(noises)
        for count, noise in enumerate(noises):
            if left <= allowed:
                return max(1, count)
            left -= noise
        return max(1, len(order) - 1)

    # latency

    def _explore(self, forced: Floats) -> None:
        """Measure the first proposals, then moves around the best, while it helps and fits.

        What leaves more in float than ``forced`` is expected to be accurate enough, and is looked
        at only when it would be taken.
        """
        proposals = self._open(placement.first(self._costs, forced))[: _AT_ONCE + 1]
        self._found.finalists = tuple(filter(self._met, proposals[:3]))
        if not self._fits(len(proposals)):
            return
        best = self._fastest(self._measure(proposals)) or forced
        idle = 0
        while idle < _PATIENCE and not self._found.unstable:
            limit = _HOPELESS * self._costs.total(best)
            near = placement.moves(self._costs, best, forced, self._found.tried)
            fresh = [c for c in self._open(near) if self._costs.total(c) <= limit][:_AT_ONCE]
            if not fresh or not self._fits(1 + len(fresh)):
                break
            speeds = self._measure([best, *fresh])
            proven = {c: speeds[c] for c in fresh if self._gain(best, c).low > 1.0}
            winner = self._fastest(proven)
            idle = 0 if winner is not None else idle + 1
            best = best if winner is None else winner
        self._found.finalists = self._rank(best, forced)

    def _open(self, choices: Sequence[Floats]) -> list[Floats]:
        """Those that are not known to be too inaccurate."""
        return [c for c in choices if self._judged.get(c, True)]

    def _fastest(self, speeds: Mapping[Floats, Interval]) -> Floats | None:
        """The fastest that is accurate enough."""
        order = sorted(speeds, key=lambda c: (-speeds[c].value, sorted(c)))
        return next(filter(self._met, order), None)

    def _rank(self, best: Floats, forced: Floats) -> tuple[Floats, ...]:
        """The best, the next, and the one with the least float if it is close."""
        tried = dict(self._found.tried)
        close = forced in tried and tried[forced].value > _CLOSE * tried[best].value
        found = [best, *([forced] if close and forced != best else [])]
        for choice in found:
            tried.pop(choice, None)
        second = self._fastest(tried)
        return tuple(found if second is None else [*found, second])

    def _fits(self, models: int) -> bool:
        """Whether one more measurement, and the last one, are within the budget."""
        wanted = expected(self._quick, self._call_ms, 1 + models)
        return self._found.spent + wanted <= self._goal.budget * (1 - _FINAL)

    def _measure(self, choices: Sequence[Floats]) -> dict[Floats, Interval]:
        """Speed-ups over fp32 of one interleaved measurement."""
        self._say(f"measuring {len(choices)} placements")
        timing = self._timings.measure(self._files(choices), self._quick, self._feed)
        self._found.spent += seconds(timing)
        if timing.unstable:
            self._found.unstable = timing.note or "unstable timings"
        self._rounds = {c: timing.rounds[str(i)] for i, c in enumerate(choices)}
        speeds = {c: ratio(timing.rounds[FP32], rounds) for c, rounds in self._rounds.items()}
        for choice, speed in speeds.items():
            self._note(choice, speed, timing.unstable)
        for choice in sorted(choices, key=lambda c: -speeds[c].value)[_KEPT:]:
            self.candidates.drop(choice)
        self._costs = replace(
            self._costs,
            scale=placement.fit(self._costs, [(c, s.value) for c, s in self._found.tried.items()]),
        )
        return speeds

    def _note(self, choice: Floats, speed: Interval, unstable: bool) -> None:
        self._found.tried.setdefault(choice, speed)
        if not unstable and speed.low > 1.0 and speed.value > self._proven and self._met(choice):
            self._proven = speed.value
            self._better(choice, speed)

    def _gain(self, before: Floats, after: Floats) -> Interval:
        return ratio(self._rounds[before], self._rounds[after])

    def _files(self, choices: Sequence[Floats]) -> dict[str, Path]:
        named = {str(i): self.candidates.file(c) for i, c in enumerate(choices)}
        return {FP32: self._model, **named}

    def _decide(self) -> None:
        """Measure the finalists afresh, so that the claim is not the luckiest of many."""
        found = self._found
        if not found.finalists or found.unstable:
            return
        self._say("measuring the finalists")
        least = replace(self._quick, min_cell_ms=50.0, warmup_ms=300.0, rounds=ROUNDS[0])
        each = expected(least, self._call_ms, 1 + len(found.finalists)) / ROUNDS[0]
        left = max(0.0, self._goal.budget - found.spent)
        rounds = min(max(int(left / each), ROUNDS[0]), ROUNDS[1])
        last = replace(least, rounds=rounds, seed=self._quick.seed + 1)
        found.last = self._timings.measure(self._files(found.finalists), last, self._feed)
        found.spent += seconds(found.last)
        if found.last.unstable:
            found.unstable = found.last.note or "unstable timings"
