"""Which file ships: a pure function of accuracies, sizes and stored latencies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.tasks import Task
from compressor.runtime.predict import Predictions, score
from compressor.stats.bootstrap import Interval
from compressor.stats.paired import compare

ORDER = ("fp32", "fp16", "int8", "int4")
FLOATS = frozenset({"fp32", "fp16"})
TIE = 0.97  # a smaller file may be this much slower, if it is not proven slower

SpeedUp = Callable[[str, str], Interval]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that could ship.

    Attributes:
        name: Of the stage that made it.
        precision: ``fp32``, ``fp16``, ``int8`` or ``int4``.
        drop: On val against the teacher, in percentage points (units of the task's metric for
            regression); above 0 it is worse.
        bytes: Of the file.
        bound: One-sided 95 % upper bound of ``drop``; printed, decides nothing; None for
            regression.
    """

    name: str
    precision: str
    drop: float
    bytes: int
    bound: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """What ships and why.

    Attributes:
        name: Of the chosen candidate.
        within: Some candidate was within ``max_drop``; if not, the best float model ships.
        reasons: One sentence per candidate, in the order in which they were looked at.
    """

    name: str
    within: bool
    reasons: tuple[str, ...]


def drop(teacher: Predictions, new: Predictions, task: Task) -> tuple[float, float | None]:
    """Observed drop and its 95 % upper bound, paired by sample, in points.

    Raises:
        IntegrityError: The two were not made on the same samples.
    """
    if not np.array_equal(teacher.ids, new.ids):
        raise IntegrityError(f"{teacher.name} and {new.name}: val predictions of other samples")
    if task.better == "lower":
        return score(new, task) - score(teacher, task), None
    labels = teacher.labels.astype(np.float64)
    right = [task.score(p.predicted, labels) > 0 for p in (teacher, new)]
    found = compare(*right)
    # One division of integers: a drop of exactly max_drop must compare equal to it.
    return 100 * (found.b - found.c) / found.n, 100 * found.upper()


def choose(
    candidates: Sequence[Candidate], speedup: SpeedUp, max_drop: float, unstable: bool = False
) -> Choice:
    """Walk fp32, fp16, int8, int4; a candidate must earn its place over the choice so far.

    It replaces the choice if the lower bound of its speed-up over it is above 1, or if the
    interval contains 1, the lower bound is at least 0.97 and the file is smaller.

    Args:
        candidates: At least one; within a precision they are looked at in the order given.
        speedup: (choice so far, candidate) -> interval of the speed-up, above 1 is faster.
        max_drop: Largest drop on val that may ship, in the unit of ``Candidate.drop``.
        unstable: The timings cannot be trusted: the first candidate within ``max_drop`` stays.

    Raises:
        ConfigError: No candidates, or a precision that is not known.
    """
    unknown = [c.precision for c in candidates if c.precision not in ORDER]
    if not candidates or unknown:
        raise ConfigError(f"candidates: {len(candidates)} of precision {unknown or 'any'}; "
                          f"give at least one of {', '.join(ORDER)}")  # fmt: skip
    walk = sorted(candidates, key=lambda c: ORDER.index(c.precision))  # stable
    fitting = [c for c in walk if c.drop <= max_drop]
    if not fitting:
        return _least_bad(walk, max_drop)
    best, reasons = fitting[0], []
    for candidate in walk:
        if candidate.drop > max_drop:
            reasons.append(_above(candidate, max_drop))
        elif candidate is fitting[0]:
            reasons.append(f"{candidate.name}: the first within max_drop ({_drop(candidate)})")
        elif unstable:
            reasons.append(f"{candidate.name}: the timings are unstable: shipping {best.name}")
        else:
            taken, reason = _judge(best, candidate, speedup(best.name, candidate.name))
            reasons.append(reason)
            best = candidate if taken else best
    return Choice(best.name, True, tuple(reasons))


def _least_bad(walk: Sequence[Candidate], max_drop: float) -> Choice:
    """Nothing is accurate enough: the float model with the smallest drop, else the smallest."""
    floats = [c for c in walk if c.precision in FLOATS] or list(walk)
    best = min(floats, key=lambda c: c.drop)
    reasons = [
        _above(c, max_drop)
        + ("; no candidate is within it: shipping the best float model" if c is best else "")
        for c in walk
    ]
    return Choice(best.name, False, tuple(reasons))


def _above(candidate: Candidate, max_drop: float) -> str:
    return f"{candidate.name}: drop {_drop(candidate)} on val is above {max_drop:g}"


def _drop(candidate: Candidate) -> str:
    bound = "" if candidate.bound is None else f", 95% bound {candidate.bound:.2f}"
    return f"{candidate.drop:.2f}{bound}"


def _judge(best: Candidate, new: Candidate, found: Interval) -> tuple[bool, str]:
    speed = f"{found.value:.2f}x [{found.low:.2f}, {found.high:.2f}] the speed of {best.name}"
    if found.low > 1.0:
        return True, f"{new.name}: {speed}: faster"
    if found.high < 1.0:
        return False, f"{new.name} is {found.value:.2f}x here ({speed}): shipping {best.name}"
    if found.low < TIE:
        return False, f"{new.name}: {speed}: not proven as fast: shipping {best.name}"
    if new.bytes < best.bytes:
        return True, f"{new.name}: {speed}: as fast, and {best.bytes - new.bytes:,} bytes smaller"
    return False, f"{new.name}: {speed}: as fast and not smaller: shipping {best.name}"
