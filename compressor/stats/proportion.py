"""One proportion: how low can the true accuracy be?"""

from __future__ import annotations

import math

import numpy as np


def proportion_lower(right: int, n: int, confidence: float = 0.95) -> float:
    """Exact (Clopper-Pearson) one-sided lower bound of a proportion.

    Wilson's bound is shorter and covers less than nominal near 1, which is where accuracies are.

    Args:
        right: Successes, 0..n.
        n: Samples, at least 1.
        confidence: In (0, 1); one-sided.

    Returns:
        A fraction in [0, right / n].

    Raises:
        ValueError: Impossible counts.
    """
    if not (n >= 1 and 0 <= right <= n):
        raise ValueError(f"right={right}, n={n}: need 0 <= right <= n and n >= 1")
    if right == 0:
        return 0.0
    wrong = np.arange(n - right + 1, dtype=np.float64)
    steps = np.log(n - wrong[1:] + 1) - np.log(wrong[1:])
    log_ways = np.concatenate([[0.0], np.cumsum(steps)])  # log C(n, wrong)
    low, high = 0.0, right / n
    for _ in range(60):
        middle = (low + high) / 2
        if _log_tail(log_ways, wrong, n, middle) > math.log1p(-confidence):
            high = middle
        else:
            low = middle
    return low


def _log_tail(log_ways: np.ndarray, wrong: np.ndarray, n: int, p: float) -> float:
    """Log P(at most wrong[-1] failures of n) at success probability ``p``."""
    if p <= 0.0:
        return -math.inf
    terms = log_ways + (n - wrong) * math.log(p) + wrong * math.log1p(-p)
    top = float(terms.max())
    return top + math.log(float(np.exp(terms - top).sum()))
