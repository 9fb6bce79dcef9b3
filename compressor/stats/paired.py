"""Two classifiers on the same samples: how large can the drop in accuracy really be?

Notation: of ``n`` samples, ``b`` are right in the base and wrong in the new model (new errors),
``c`` the other way round (fixed errors). The drop is ``(b - c) / n``, the disagreement is
``(b + c) / n``. The bound is Tango's score bound (Statistics in Medicine 17, 1998): a wrong PASS
at the limit stays near its nominal 5 % where Wald and bootstrap bounds reach 8 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_POWER = 0.8


@dataclass(frozen=True, slots=True)
class Paired:
    """Counts of one paired comparison.

    Attributes:
        b: New errors, 0..n.
        c: Fixed errors, 0..n - b.
        n: Samples, at least 1.
    """

    b: int
    c: int
    n: int

    def __post_init__(self) -> None:
        _check(self.b, self.c, self.n)

    @property
    def drop(self) -> float:
        """Observed drop as a fraction, -1..1; above 0 the new model is worse."""
        return (self.b - self.c) / self.n

    @property
    def disagreement(self) -> float:
        """Share of samples that exactly one of the two gets right, 0..1."""
        return (self.b + self.c) / self.n

    def upper(self, confidence: float = 0.95) -> float:
        """One-sided upper bound of the drop, a fraction."""
        return tango_upper(self.b, self.c, self.n, confidence)

    def lower(self, confidence: float = 0.95) -> float:
        """One-sided lower bound of the drop, a fraction."""
        return tango_lower(self.b, self.c, self.n, confidence)


def _check(b: int, c: int, n: int) -> None:
    if not (n >= 1 and b >= 0 and c >= 0 and b + c <= n):
        raise ValueError(f"b={b}, c={c}, n={n}: need b, c >= 0, b + c <= n and n >= 1")


def _score(b: int, c: int, n: int, d: float) -> float:
    """Tango's score statistic of the hypothesis that the true drop is ``d``."""
    slope = -b - c + (2 * n - b + c) * d
    q = (math.sqrt(slope * slope + 8 * n * c * d * (1 - d)) - slope) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    distance = b - c - n * d
    if variance <= 0.0:  # the hypothesis allows no other outcome than d itself
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def tango_upper(b: int, c: int, n: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of the true drop.

    Args:
        b: New errors.
        c: Fixed errors.
        n: Samples.
        confidence: In (0.5, 1); one-sided.

    Returns:
        A fraction in [(b - c) / n, 1].

    Raises:
        ValueError: Impossible counts.
    """
    _check(b, c, n)
    z = NormalDist().inv_cdf(confidence)
    low, high = (b - c) / n, 1.0
    for _ in range(60):  # halves an interval of at most 2 to below 1e-17
        middle = (low + high) / 2
        if _score(b, c, n, middle) > -z:
            low = middle
        else:
            high = middle
    return high


def tango_lower(b: int, c: int, n: int, confidence: float = 0.95) -> float:
    """One-sided lower bound of the true drop: the upper bound with the models exchanged."""
    return -tango_upper(c, b, n, confidence)


def mcnemar_exact(b: int, c: int) -> float:
    """One-sided exact McNemar test.

    Args:
        b: New errors, at least 0.
        c: Fixed errors, at least 0.

    Returns:
        The probability of ``b`` or more new errors among ``b + c`` disagreements if both
        directions were equally likely, to double precision for any size.

    Raises:
        ValueError: A negative count.
    """
    if b < 0 or c < 0:
        raise ValueError(f"b={b}, c={c}: counts are not negative")
    if b <= c:  # the complement is the short tail; its own p is P(X >= c + 1)
        return 1.0 - _tail(b + c, c + 1) if b else 1.0
    return _tail(b + c, b)


def _tail(n: int, k: int) -> float:
    """P(X >= k) for X ~ Binomial(n, 1/2) and k > n / 2."""
    if k > n:
        return 0.0
    # Every further term is the last one times (n - j) / (j + 1) < 1: a sum of positive floats
    # that loses nothing, scaled by one exact quotient of integers that cannot overflow.
    total, term = 1.0, 1.0
    for j in range(k, n):
        term *= (n - j) / (j + 1)
        total += term
        if term < 1e-18 * total:
            break
    return math.comb(n, k) / (1 << n) * total


def compare(right_base: NDArray[np.bool_], right_new: NDArray[np.bool_]) -> Paired:
    """Count new and fixed errors.

    Args:
        right_base: Per sample [n], whether the base model is right.
        right_new: The same samples in the same order [n], for the new model.

    Raises:
        ValueError: Different lengths, or no samples.
    """
    if right_base.shape != right_new.shape or right_base.ndim != 1:
        raise ValueError(f"shapes {right_base.shape} and {right_new.shape} cannot be paired")
    base, new = right_base.astype(bool), right_new.astype(bool)
    return Paired(int((base & ~new).sum()), int((~base & new).sum()), len(base))


def samples_needed(
    disagreement: float, margin: float, confidence: float = 0.95, power: float = _POWER
) -> int:
    """Samples with which a true drop of 0 is shown to be below ``margin``.

    Args:
        disagreement: Share of samples on which exactly one model is right, 0..1.
        margin: Largest drop to accept, a fraction above 0.
        confidence: Of the one-sided bound.
        power: Probability of showing it.

    Returns:
        ``(z_confidence + z_power)^2 * disagreement / margin^2``, and at least what Tango's bound
        needs when not a single sample differs.

    Raises:
        ValueError: ``margin`` is not in (0, 1].
    """
    if not 0 < margin <= 1:
        raise ValueError(f"margin={margin}: a fraction above 0")
    z, z_power = NormalDist().inv_cdf(confidence), NormalDist().inv_cdf(power)
    without_flips = z * z * (1 - margin) / margin
    return math.ceil(max((z + z_power) ** 2 * disagreement / margin**2, without_flips))
