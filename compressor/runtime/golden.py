"""Golden samples: inputs whose prediction is so clear that another CPU must agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.core.errors import StageError
from compressor.runtime import predict

LEAST = 16
_POOL = 1024  # samples looked at
_FLOOR = 1e-3  # of the logits' standard deviation: what another CPU's fp32 may differ by
_FLOOR_INT8 = 0.05  # the same for a quantized file whose float original is not known
_CLEAR = 4.0  # two logits that move by 2 x noise towards each other stay in order


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs, outputs, and how closely they must be met.

    Attributes:
        inputs: Input name to samples [n, ...] as the dataset stores them.
        outputs: float32 [n, ...] of the shipped file.
        noise: Largest difference to the fp32 file over the pool (at least a thousandth of the
            logits' standard deviation): what quantization does to an output.
        margin: Smallest distance between the best two logits of a golden sample.
        clear: All margins are above 4 x ``noise``.
    """

    inputs: Mapping[str, NDArray[Any]]
    outputs: NDArray[np.float32]
    noise: float
    margin: float
    clear: bool

    def npz(self) -> bytes:
        """``input.NAME`` and ``output.logits``, deterministic bytes."""
        arrays = {f"input.{name}": array for name, array in self.inputs.items()}
        return predict.npz_bytes({**arrays, "output.logits": self.outputs})


def pick(
    model: Path,
    fp32: Path | None,
    stored: Mapping[str, NDArray[Any]],
    *,
    precision: str = "fp32",
    classification: bool = True,
    count: int = LEAST,
) -> Golden:
    """Choose golden samples from the calibration split.

    Per predicted class in turn, the sample with the widest margin; for regression evenly spaced
    samples.

    Args:
        model: The file that ships.
        fp32: The float file that it came from; None if ``model`` is it or nobody knows.
        stored: Input name to samples [n, ...], n >= ``count``.
        precision: Of ``model``.
        classification: Outputs are logits [n, classes].
        count: Number of golden samples.

    Raises:
        StageError: Fewer samples than ``count``, or outputs that are not finite.
    """
    pool = {name: np.asarray(array[:_POOL]) for name, array in stored.items()}
    total = min(len(array) for array in pool.values())
    if total < count:
        raise StageError(f"golden: {total} calibration samples; {count} are needed")
    outputs = predict.run(model, pool)
    if not np.isfinite(outputs).all():
        raise StageError(f"golden: {model.name} gives outputs that are not finite")
    known = precision == "fp32" or fp32 is not None
    noise = (_FLOOR if known else _FLOOR_INT8) * float(outputs.std())
    if fp32 is not None:
        noise = max(noise, float(np.abs(outputs - predict.run(fp32, pool)).max()))
    if classification and outputs.ndim == 2 and outputs.shape[1] > 1:
        margins = _margins(outputs)
        rows = _spread(outputs.argmax(axis=1), margins, _CLEAR * noise, count)
        margin = float(margins[rows].min())
    else:
        rows = np.linspace(0, total - 1, count).astype(np.int64)
        margin = float("inf")
    inputs = {name: array[rows] for name, array in pool.items()}
    return Golden(inputs, outputs[rows], noise, margin, margin > _CLEAR * noise)


def _margins(outputs: NDArray[np.float32]) -> NDArray[np.float32]:
    top = np.sort(outputs, axis=1)
    return np.asarray(top[:, -1] - top[:, -2])


def _spread(
    predicted: NDArray[Any], margins: NDArray[np.float32], clear: float, count: int
) -> NDArray[np.int64]:
    """Rows, sorted: round the classes, widest margin first, clear ones before the others."""
    order = np.argsort(-margins, kind="stable")
    turn = np.zeros(len(order), dtype=np.int64)  # how many of its class come before it
    seen: dict[int, int] = {}
    for row in order:
        label = int(predicted[row])
        turn[row] = seen[label] = seen.get(label, -1) + 1
    ranked = sorted(order, key=lambda row: (margins[row] <= clear, turn[row]))
    return np.sort(np.asarray(ranked[:count], dtype=np.int64))
