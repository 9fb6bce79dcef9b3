"""The grids that ``quantize`` would choose, for a network in training. No torch, no ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from compressor.quantization.observers import (
    HISTOGRAM_METHODS,
    Extremes,
    Histogram,
    Method,
    has_bins,
)
from compressor.quantization.samples import Samples, split
from compressor.quantization.scales import parameters
from compressor.quantization.target import WeightBits, resolve
from compressor.quantization.weights import quantize_weight

See = Callable[[str, NDArray[np.float32]], None]
Replay = Callable[[See], None]


class Grids:
    """Calibration as :mod:`.calibrate` does it, of tensors that somebody else computes."""

    def __init__(self, method: Method, percentile: float, weight_bits: WeightBits) -> None:
        """Choose as ``quantize`` with the same options, for its target ``portable``."""
        self._method, self._percentile = method, percentile
        self._bits = resolve("portable", weight_bits).bits

    def rows(self, count: int) -> NDArray[np.int64]:
        """Which of ``count`` calibration samples calibrate; ``quantize`` holds the others out."""
        kept, _ = split(Samples({"row": np.arange(count)}))
        rows: NDArray[np.int64] = np.arange(count) if kept.rows is None else kept.rows
        return rows

    def activations(self, replay: Replay) -> Mapping[str, tuple[float, int]]:
        """Scale and zero point of each tensor's u8 integers; none for one with NaN or Inf.

        Args:
            replay: Shows its argument every tensor of every batch, by name, as [samples, values];
                called twice by methods with histograms.
        """
        seen: dict[str, Extremes] = {}

        def first(name: str, rows: NDArray[np.float32]) -> None:
            if rows.size:
                extremes = seen.setdefault(name, Extremes())
                extremes.update(rows.min(axis=1), rows.max(axis=1), rows.sum(axis=1))

        replay(first)
        good = {name: extremes for name, extremes in seen.items() if extremes.finite}
        averaged = self._method == "moving"
        ranges = {n: e.average() if averaged else e.range() for n, e in good.items()}
        if self._method in HISTOGRAM_METHODS:
            counts = {n: Histogram(r) for n, r in ranges.items() if has_bins(r)}

            def second(name: str, rows: NDArray[np.float32]) -> None:
                if name in counts:
                    counts[name].update(rows)

            replay(second)
            ranges |= {n: h.range(self._method, self._percentile) for n, h in counts.items()}
        found = {name: parameters(span) for name, span in ranges.items()}
        return {name: (float(by.scale), by.zero_point) for name, by in found.items()}

    def weights(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """Largest magnitude [channels] of the integers of weights [channels, reduction]."""
        return quantize_weight(rows, None, np.float32(1.0), self._bits).grid
