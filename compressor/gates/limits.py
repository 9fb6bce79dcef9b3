"""Decisions about sizes, ratios and latencies: by interval where there are samples, else exact."""

from __future__ import annotations

import numpy as np

from compressor.core.types import AA, Metric, Timing
from compressor.gates.verdicts import EPSILON, FAIL, INCONCLUSIVE, PASS, Verdict, amount
from compressor.runtime.timing import AA_HIGH, AA_LOW, aa_ratio
from compressor.stats import Interval, median_interval, ratio, ratio_interval

# Below 6 rounds not even all of them together are a 95 % interval of the median: 2 / 2^5 > .05.
MIN_ROUNDS = 6


def _measured(metric: Metric) -> bool:
    """Whether a clock is behind it, so that the next measurement gives another number."""
    return bool(metric.samples) or metric.unit in ("ms", "samples/s")


def metric_limit(metric: Metric, kind: str, limit: float, *, unstable: bool) -> Verdict:
    """``min`` or ``max`` on a metric: by its interval if it has samples, else exactly."""
    sign = "≥" if kind == "min" else "≤"
    if not metric.samples:
        if _measured(metric):
            numbers = f"{amount(metric.value, metric.unit)} (limit {sign} {limit:g})"
            return Verdict(INCONCLUSIVE, f"{numbers}: recorded without its rounds, no interval")
        good = metric.value >= limit if kind == "min" else metric.value <= limit
        return _exact(metric, good, f"limit {sign} {amount(limit, metric.unit)}")
    found = _interval(metric)
    numbers = (
        f"{amount(metric.value, metric.unit)} [{found.low:.3g}, {found.high:.3g}] "
        f"(limit {sign} {limit:g}; {len(metric.samples)} interleaved rounds)"
    )
    return _three(numbers, found, kind, limit, len(metric.samples), unstable)


def metric_ratio(
    metric: Metric, other: Metric, limit: float, *, together: bool, unstable: bool
) -> Verdict:
    """``max_ratio``: a metric relative to another.

    Args:
        metric: To judge.
        other: What it is divided by.
        limit: Largest quotient.
        together: Both come from one measurement, so that their rounds may be divided.
        unstable: That measurement is marked so.
    """
    if not (_measured(metric) or _measured(other)):
        good = metric.value <= limit * other.value * (1 + EPSILON)
        times = f"{metric.value / other.value:.4g}x of " if other.value else "against "
        reference = f"{times}{amount(other.value, other.unit)}, limit {limit:g}x"
        return _exact(metric, good, reference)
    rounds = len(metric.samples)
    if not together or rounds != len(other.samples) or rounds == 0:
        both = f"{amount(metric.value, metric.unit)} and {amount(other.value, other.unit)}"
        if together:
            return Verdict(
                INCONCLUSIVE,
                f"no interval: {both} were measured beside each other and are recorded without "
                "their rounds; gate on a speedup, which keeps them",
            )
        return Verdict(
            INCONCLUSIVE,
            f"not comparable: {both} were not measured beside each other; "
            "gate on STAGE.latency versus baseline, or on a speedup",
        )
    found = ratio(metric.samples, other.samples)
    numbers = (
        f"ratio {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] "
        f"(limit {limit:.2f}; {rounds} interleaved rounds)"
    )
    return _three(numbers, found, "max", limit, rounds, unstable)


def noisy(timing: Timing, base: str) -> bool:
    """Whether nothing may be decided by these timings; ``base`` is the model of the control."""
    control = aa_ratio(*([[ms] for ms in timing.rounds[name]] for name in (base, AA)))
    return timing.unstable or not AA_LOW <= control <= AA_HIGH


def latency(timing: Timing, base: str, cand: str, limit: float) -> Verdict:
    """Latency of ``cand`` relative to ``base``, measured interleaved; above 1 is slower.

    Args:
        timing: With the A/A control of ``base``.
        base: Name of the baseline's model.
        cand: Name of the model to judge.
        limit: Largest ratio, e.g. 1.10.
    """
    found = ratio(timing.rounds[cand], timing.rounds[base])
    control = ratio(timing.rounds[AA], timing.rounds[base])
    rounds = len(timing.rounds[base])
    numbers = (
        f"p50 latency ratio {found.value:.2f} [{found.low:.2f}, {found.high:.2f}] vs baseline "
        f"(limit {limit:.2f}; {rounds} interleaved rounds; A/A control {control.value:.2f} "
        f"[{control.low:.2f}, {control.high:.2f}])"
    )
    if noisy(timing, base):
        why = timing.note or "the A/A control is outside 0.95–1.05"
        return Verdict(INCONCLUSIVE, f"machine too noisy ({why}): {numbers}")
    return _three(numbers, found, "max", limit, rounds, unstable=False)


def _three(
    numbers: str, found: Interval, kind: str, limit: float, rounds: int, unstable: bool
) -> Verdict:
    """The three-state rule for an interval."""
    if rounds < MIN_ROUNDS:
        return Verdict(INCONCLUSIVE, f"{numbers}; {MIN_ROUNDS} rounds are the least")
    if unstable:
        return Verdict(INCONCLUSIVE, f"{numbers}; the timings are marked unstable")
    good = found.low >= limit if kind == "min" else found.high <= limit
    bad = found.high < limit if kind == "min" else found.low > limit
    if good or bad:
        return Verdict(PASS if good else FAIL, numbers)
    return Verdict(INCONCLUSIVE, f"{numbers}; the interval contains the limit")


def _exact(metric: Metric, good: bool, against: str) -> Verdict:
    """Decided by the number alone; the sentence says whether it is one that cannot vary."""
    # Memory is a median over fresh processes that agree within pages, but it is measured.
    how = "one number, no interval" if metric.unit == "MiB" else "exact"
    return Verdict(
        PASS if good else FAIL, f"{amount(metric.value, metric.unit)}, {against} ({how})"
    )


def _interval(metric: Metric) -> Interval:
    if metric.unit == "x" and min(metric.samples) > 0:
        return ratio_interval(np.asarray(metric.samples))
    return median_interval(metric.samples, np.random.default_rng(0))
