"""Decisions about scores: from predictions to PASS, FAIL or INCONCLUSIVE and one sentence.

PASS needs data that support it; whatever they support neither way is INCONCLUSIVE.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.core.tasks import Task
from compressor.stats import (
    Paired,
    mcnemar_exact,
    mean_interval,
    proportion_lower,
    samples_needed,
)

PASS = "PASS"
FAIL = "FAIL"
INCONCLUSIVE = "INCONCLUSIVE"
SKIPPED = "SKIPPED"

EPSILON = 1e-9  # percentages are quotients; 18 of 1800 is 1 point, not 1 point and a bit


@dataclass(frozen=True, slots=True)
class Verdict:
    """``state`` is one of the constants above; ``sentence`` is one line."""

    state: str
    sentence: str

    def adding(self, text: str) -> Verdict:
        """With ``; text`` at the end, unless it is empty."""
        return Verdict(self.state, f"{self.sentence}; {text}") if text else self


def paired_drop(right_base: NDArray[np.bool_], pair: Paired, limit: float) -> Verdict:
    """Drop in accuracy of one model against another on the same samples.

    Args:
        right_base: Whether the base model is right [n].
        pair: New and fixed errors of the new model.
        limit: Percentage points, at least 0.
    """
    n, b, c = pair.n, pair.b, pair.c
    base = 100 * float(right_base.mean())
    drop, low, high = 100 * pair.drop, 100 * pair.lower(), 100 * pair.upper()
    if drop > limit + EPSILON:
        p = mcnemar_exact(b, c)
        tag = ", significant" if p <= 0.05 else ", not significant"
        return Verdict(
            FAIL,
            f"drop {drop:.2f} pp exceeds limit {limit:.2f} pp ({b} new errors, {c} fixed, n={n}; "
            f"95% bounds {low:.2f}–{high:.2f} pp; exact McNemar p={_p(p)}{tag})",
        )
    if high <= limit + EPSILON:
        return Verdict(
            PASS,
            f"acc {base:.2f}% → {base - drop:.2f}% ({_signed(-drop)} pp; 95% upper bound of the "
            f"drop {high:.2f} pp ≤ limit {limit:.2f} pp; n={n}: {b} new errors, {c} fixed)",
        )
    return Verdict(
        INCONCLUSIVE,
        f"observed drop {drop:.2f} pp is inside {limit:.2f} pp, but {n} samples only rule out "
        f"drops above {high:.2f} pp; {_needed(pair, limit)} "
        f"({100 * pair.disagreement:.1f}%)",
    )


def _needed(pair: Paired, limit: float) -> str:
    """How many samples would decide: for a true drop of 0, else for the observed one."""
    margins = (limit / 100, limit / 100 - pair.drop)
    for margin in margins:
        needed = samples_needed(pair.disagreement, margin) if margin > 1e-6 else 0
        if needed > pair.n:
            return f"about {_two_digits(needed):,} samples needed at this disagreement"
    return "no number of samples would show this drop to be below the limit at this disagreement"


def identity(flips: int, n: int) -> Verdict:
    """The same model file on the same instruction set: any other prediction is a fault."""
    if flips:
        return Verdict(
            FAIL,
            f"identity gate: the same model on the same instruction set predicts {flips} of {n} "
            "samples differently",
        )
    return Verdict(PASS, f"identity gate: the same model, 0 of {n} predictions differ")


def worst_class(
    labels: NDArray[np.float64], right_base: NDArray[np.bool_], right_new: NDArray[np.bool_]
) -> str:
    """A warning about the class that lost most, or "" (Holm-corrected exact McNemar, 5 %)."""
    rows = []
    for label in np.unique(labels):
        mine = labels == label
        b = int((right_base & ~right_new & mine).sum())
        c = int((~right_base & right_new & mine).sum())
        rows.append((mcnemar_exact(b, c), c - b, float(label), b, c, int(mine.sum())))
    p, balance, label, b, c, n = min(rows)
    p = min(1.0, p * len(rows))  # Holm: the smallest p is multiplied by the number of classes
    if p > 0.05:
        return ""
    return (
        f"warning: class {label:g} drops {-100 * balance / n:.1f} pp ({b} new errors, {c} fixed, "
        f"n={n}, Holm-corrected p={_p(p)})"
    )


def score_drop(
    task: Task, base: NDArray[np.float64], new: NDArray[np.float64], limit: float
) -> Verdict:
    """As :func:`paired_drop` for a score that is not right or wrong: paired bootstrap of its mean.

    Args:
        task: Gives direction, unit and scale.
        base: Score per sample [n] of the base model.
        new: Of the new model, same samples.
        limit: Largest loss in the metric's unit, at least 0.
    """
    worse = task.scale * ((base - new) if task.better == "higher" else (new - base))
    found = mean_interval(worse, np.random.default_rng(0), confidence=0.90)
    numbers = (
        f"{task.metric} {task.scale * base.mean():.4g} → {task.scale * new.mean():.4g} "
        f"{task.unit} (worse by {found.value:.3g}, 95% bounds {found.low:.3g}–{found.high:.3g}; "
        f"limit {limit:g}; n={len(base)}, paired bootstrap)"
    )
    if found.value > limit + EPSILON:
        return Verdict(FAIL, numbers)
    return Verdict(PASS if found.high <= limit + EPSILON else INCONCLUSIVE, numbers)


def accuracy_floor(right: int, n: int, floor: float) -> Verdict:
    """An absolute accuracy, in percent, that the samples must prove (Clopper-Pearson bound)."""
    observed, low = 100 * right / n, 100 * proportion_lower(right, n)
    numbers = f"acc {observed:.2f}% ({right} of {n}), 95% lower bound {low:.2f}%"
    if observed < floor - EPSILON:
        return Verdict(FAIL, f"{numbers}: below the floor {floor:.2f}%")
    if low >= floor - EPSILON:
        return Verdict(PASS, f"{numbers} ≥ floor {floor:.2f}%")
    return Verdict(INCONCLUSIVE, f"{numbers}: {n} samples do not prove the floor {floor:.2f}%")


def mean_limit(task: Task, scores: NDArray[np.float64], limit: float) -> Verdict:
    """An absolute limit on another task's mean score, from the side that is worse."""
    sign = 1.0 if task.better == "lower" else -1.0
    found = mean_interval(task.scale * scores, np.random.default_rng(0), confidence=0.90)
    far = found.high if sign > 0 else found.low
    numbers = (
        f"{task.metric} {found.value:.4g} {task.unit}, 95% bound {far:.4g}, limit {limit:g}, "
        f"n={len(scores)}"
    )
    if sign * (found.value - limit) > EPSILON:
        return Verdict(FAIL, numbers)
    return Verdict(PASS if sign * (far - limit) <= EPSILON else INCONCLUSIVE, numbers)


def amount(value: float, unit: str) -> str:
    """A number with its unit, as people write it."""
    if unit in ("bytes", "count") or (not unit and value.is_integer()):
        return f"{value:,.0f} {unit}".strip()
    if unit in ("x", "%"):
        return f"{value:.2f}{unit}"
    if unit == "flag":
        return f"{value:g}"
    return f"{value:.4g} {unit}".strip()


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}".replace("e-0", "e-")


def _two_digits(count: int) -> int:
    digits = max(0, len(str(count)) - 2)
    return int(round(count, -digits))
