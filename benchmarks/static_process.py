"""One run of ``quantize_static``, in a process that loads nothing of ours.

python benchmarks/static_process.py FP32.onnx IMAGES.npz OUT.onnx BATCH
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static


class Batches(CalibrationDataReader):
    """The arrays of an ``.npz``, some samples at a time."""

    def __init__(self, path: str, batch: int) -> None:
        """Read ``path``."""
        with np.load(path, allow_pickle=False) as arrays:
            ((self._name, self._samples),) = arrays.items()
        self._starts: Iterator[int] = iter(range(0, len(self._samples), batch))
        self._batch = batch

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, or None at the end."""
        start = next(self._starts, None)
        if start is None:
            return None
        return {self._name: self._samples[start : start + self._batch]}


if __name__ == "__main__":
    model, feed, out, batch = sys.argv[1:]
    quantize_static(
        model, out, Batches(feed, int(batch)), per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
