"""From streamed activations to one range per tensor.

Every observer is a mergeable summary of fixed size, so memory does not grow with the number of
samples and the batch size cannot change a result: counts and extremes are exact whatever the
order, and the moving average is over samples, not over batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["minmax", "moving", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "moving", "percentile", "entropy", "mse")
HISTOGRAM_METHODS = frozenset({"percentile", "entropy", "mse"})
BINS = 2048
_LEVELS = 256
# Ends of the window that entropy and mse try, as fractions of the observed extreme.
_FRACTIONS = np.linspace(1.0, 0.1, 61)


@dataclass(frozen=True, slots=True)
class Range:
    """What one tensor's quantized form must cover; 0 is added when it is quantized."""

    low: float
    high: float


class Extremes:
    """Minimum and maximum over all samples, and their means over samples."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.low, self.high = np.inf, -np.inf
        self.finite = True
        self._lows, self._highs, self._rows = 0.0, 0.0, 0

    def update(self, lows: NDArray[Any], highs: NDArray[Any], sums: NDArray[Any]) -> None:
        """Take the minimum, maximum and sum of each row (sample) of a batch, all [rows]."""
        if lows.size == 0:
            return
        self.finite &= bool(np.isfinite(sums).all() and np.isfinite(lows).all())
        self.finite &= bool(np.isfinite(highs).all())
        if not self.finite:
            return
        self.low = min(self.low, float(lows.min()))
        self.high = max(self.high, float(highs.max()))
        self._rows += lows.size
        self._lows += float(lows.sum(dtype=np.float64))
        self._highs += float(highs.sum(dtype=np.float64))

    def range(self) -> Range:
        """The whole range that was seen."""
        return Range(self.low, self.high)

    def average(self) -> Range:
        """Mean of the samples' own minima and maxima."""
        return Range(self._lows / self._rows, self._highs / self._rows)


def has_bins(extremes: Range) -> bool:
    """Whether float32 can tell 2,048 bins of the range apart; else its extremes are its range."""
    edges = np.linspace(extremes.low, extremes.high, BINS + 1, dtype=np.float32)
    return bool((np.diff(edges) > 0).all())


class Histogram:
    """2,048 equal bins over a range that a first pass has found."""

    def __init__(self, extremes: Range) -> None:
        """Fix the bins; see :func:`has_bins`."""
        self.low, self.high = np.float32(extremes.low), np.float32(extremes.high)
        self.counts = np.zeros(BINS, np.int64)

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, [BINS + 1]."""
        return np.linspace(self.low, self.high, BINS + 1, dtype=np.float64)

    def update(self, values: NDArray[np.float32]) -> None:
        """Count ``values`` of any shape; equals one ``np.histogram`` over all the data."""
        # The two passes may run differently fused kernels, so an extreme can move by an ulp.
        flat = np.clip(values.reshape(-1), self.low, self.high)
        self.counts += np.histogram(flat, BINS, (float(self.low), float(self.high)))[0]

    def range(self, method: Method, percentile: float) -> Range:
        """The range that ``method`` chooses from the counts."""
        if not self.counts.any():
            return Range(float(self.low), float(self.high))
        if method == "percentile":
            return self._percentile(percentile)
        return self._search(self._divergence if method == "entropy" else self._squared_error)

    def _percentile(self, percentile: float) -> Range:
        """Leave out (100 - percentile) % of the values, half at each end."""
        share = np.concatenate([[0.0], np.cumsum(self.counts) / self.counts.sum()])
        cut = (1.0 - percentile / 100.0) / 2
        # Quantiles inside a bin by interpolation; empty bins have no width on the share axis.
        first, last = int(np.argmax(self.counts > 0)), BINS - int(np.argmax(self.counts[::-1] > 0))
        edges, part = self.edges[first : last + 1], share[first : last + 1]
        low = float(np.interp(cut, part, edges)) if first else self._low_quantile(cut, part, edges)
        return Range(low, float(np.interp(1.0 - cut, part, edges)))

    def _low_quantile(
        self, cut: float, part: NDArray[np.float64], edges: NDArray[np.float64]
    ) -> float:
        # Behind a Relu the first bin is a spike at the minimum itself, not spread over the bin.
        return float(edges[0]) if part[1] >= cut else float(np.interp(cut, part, edges))

    def _search(self, cost: Callable[[float, float], float]) -> Range:
        """Move the upper end, then the lower one, to the fraction of least cost."""
        low, high = float(self.low), float(self.high)
        if high > 0:
            high = min((cost(low, high * f), -f, high * f) for f in _FRACTIONS)[2]
        if low < 0:
            low = min((cost(low * f, high), -f, low * f) for f in _FRACTIONS)[2]
        return Range(float(low), float(high))

    def _squared_error(self, low: float, high: float) -> float:
        """Sum of squared differences to the nearest of 256 levels, values at bin centres."""
        low, high = min(low, 0.0), max(high, 0.0)
        edges = self.edges
        centres = (edges[1:] + edges[:-1]) / 2
        scale = (high - low) / (_LEVELS - 1)
        zero = np.rint(-low / scale)
        steps = np.clip(np.rint(centres / scale) + zero, 0, _LEVELS - 1) - zero
        return float((self.counts * (steps * scale - centres) ** 2).sum())

    def _without_spikes(self) -> NDArray[np.int64]:
        """Counts with the bins of 0 and of both extremes cut down to their neighbours' size.

        Relu and Clip pile values up on exactly these numbers, which the integers hold exactly;
        seen as spread over a level of 8 bins they would drive the search to tiny windows.
        """
        counts = self.counts.copy()
        zero = int(np.clip(np.searchsorted(self.edges, 0.0, "right") - 1, 0, BINS - 1))
        for i in (zero, 0, BINS - 1):
            beside = np.delete(self.counts[max(0, i - 1) : i + 2], min(i, 1))
            counts[i] = min(counts[i], int(beside.max()))
        return counts

    def _divergence(self, low: float, high: float) -> float:
        """KL(P || Q): P the counts with the outliers put on the ends, Q after 256 levels."""
        edges, counts = self.edges, self._without_spikes()
        first = int(np.clip(np.searchsorted(edges, low, "right") - 1, 0, BINS - _LEVELS))
        last = int(np.clip(np.searchsorted(edges, high, "left"), first + _LEVELS, BINS))
        inside = counts[first:last].astype(np.float64)
        reference = inside.copy()
        reference[0] += counts[:first].sum()
        reference[-1] += counts[last:].sum()
        starts = np.linspace(0, last - first, _LEVELS + 1).astype(np.int64)[:-1]
        used = inside > 0
        total = np.add.reduceat(inside, starts)
        members = np.add.reduceat(used.astype(np.float64), starts)
        level = np.repeat(
            np.divide(total, members, out=np.zeros_like(total), where=members > 0),
            np.diff(np.append(starts, last - first)),
        )
        candidate = np.where(used, level, 0.0)
        # An end bin that holds outliers only has no count of its own: a small one keeps KL finite.
        candidate = np.maximum(candidate, 1e-4 * (reference > 0))
        seen = reference > 0
        p, q = reference[seen] / reference.sum(), candidate[seen] / candidate.sum()
        return float((p * np.log(p / q)).sum())
