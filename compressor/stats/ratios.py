"""How much faster: the ratio of two latencies that were measured beside each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compressor.stats.bootstrap import Interval, median_interval


def ratio(
    base_rounds: Sequence[float],
    cand_rounds: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """``exp(median(log(base / candidate)))`` with a bootstrap interval over rounds.

    Args:
        base_rounds: Milliseconds of the base model, one per round, above 0.
        cand_rounds: The candidate's, of the same rounds in the same order.
        confidence: Two-sided, in (0, 1).
        resamples: Number of bootstrap resamples.
        seed: Of the resampling.

    Returns:
        The speed-up; above 1 the candidate is faster.

    Raises:
        ValueError: Different lengths, no rounds, or a time that is not above 0.
    """
    base, cand = np.asarray(base_rounds, np.float64), np.asarray(cand_rounds, np.float64)
    if base.shape != cand.shape:
        raise ValueError(f"{len(base)} and {len(cand)} rounds cannot be paired")
    if not ((base > 0).all() and (cand > 0).all()):
        raise ValueError("a time is not above 0")
    return ratio_interval(base / cand, confidence=confidence, resamples=resamples, seed=seed)


def ratio_interval(
    samples: Sequence[float] | np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """As :func:`ratio`, from one ratio per round.

    Logarithms are resampled, so that the interval of ``1 / samples`` is the inverse interval.

    Raises:
        ValueError: No samples, or one that is not above 0.
    """
    values = np.asarray(samples, np.float64)
    if not (values > 0).all():
        raise ValueError("a ratio is not above 0")
    found = median_interval(np.log(values), np.random.default_rng(seed), confidence, resamples)
    return Interval(*(float(np.exp(v)) for v in (found.value, found.low, found.high)))
