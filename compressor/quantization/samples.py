"""Calibration samples: lazily read, checked against the model, a fifth of them held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from compressor.core.errors import ConfigError
from compressor.core.types import InputSpec
from compressor.data import as_float
from compressor.quantization.calibrate import Feeds
from compressor.quantization.graph import Array, Graph
from compressor.quantization.watch import Feed

_HOLD_OUT = 5  # every fifth sample measures, the others calibrate


def _as_is(name: str, array: Array) -> Array:
    return array


@dataclass(frozen=True, slots=True)
class Samples:
    """Arrays that are read one batch at a time, so that memory-mapped ones stay on disk.

    Attributes:
        arrays: Input name to samples ``[n, ...]``, as stored.
        rows: Which of them, in order; None for all.
        convert: (input name, stored batch) -> the batch as the model takes it.
    """

    arrays: Mapping[str, Array]
    rows: NDArray[np.int64] | None = None
    convert: Callable[[str, Array], Array] = _as_is

    def __len__(self) -> int:
        if self.rows is not None:
            return len(self.rows)
        return min((len(a) for a in self.arrays.values()), default=0)

    def take(self, rows: NDArray[np.int64]) -> Samples:
        """The samples at these positions."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def feeds(self, batch: int) -> Feeds:
        """Batches of at most ``batch`` samples, the same at every call."""

        def read() -> Iterator[Feed]:
            for start in range(0, len(self), batch):
                stop = min(start + batch, len(self))
                at = slice(start, stop) if self.rows is None else self.rows[start:stop]
                yield {
                    name: np.ascontiguousarray(self.convert(name, array[at]))
                    for name, array in self.arrays.items()
                }

        return read


def stored(arrays: Mapping[str, Array], specs: Mapping[str, InputSpec], model: Path) -> Samples:
    """Samples of a dataset: uint8 becomes 0..1 float32 unless the model itself takes uint8."""
    proto = onnx.load(model, load_external_data=False).graph
    raw = {i.name for i in proto.input if i.type.tensor_type.elem_type == onnx.TensorProto.UINT8}

    def convert(name: str, array: Array) -> Array:
        return np.asarray(array) if name in raw else as_float(array, specs[name])

    return Samples(arrays, convert=convert)


def check(samples: Samples, graph: Graph) -> int | None:
    """Compare samples with the model's inputs; returns its fixed batch, or None if it is free.

    Raises:
        ConfigError: Naming what was expected and what was given.
    """
    if not samples.arrays or any(a.ndim == 0 or len(a) == 0 for a in samples.arrays.values()):
        raise ConfigError("calibration: 0 samples; give at least 1 (16 or more are sensible)")
    if set(samples.arrays) != set(graph.inputs):
        raise ConfigError(
            f"calibration: the model's inputs are {', '.join(sorted(graph.inputs))}; "
            f"got {', '.join(sorted(samples.arrays))}"
        )
    lengths = {name: len(a) for name, a in samples.arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ConfigError(f"calibration: inputs of different lengths {lengths}")
    first = next(iter(samples.take(np.arange(1)).feeds(1)()))
    problems = [p for name in graph.inputs for p in _problems(name, first[name], graph)]
    if problems:
        raise ConfigError(*problems)
    fixed = {s[0] for s in map(graph.shape, graph.inputs) if s and s[0]}
    if len(fixed) > 1:
        raise ConfigError(f"the model's inputs have different fixed batch sizes {sorted(fixed)}")
    return fixed.pop() if fixed else None


def _problems(name: str, array: Array, graph: Graph) -> Iterator[str]:
    expected = onnx.helper.tensor_dtype_to_np_dtype(graph.element(name))
    if array.dtype != expected:
        yield f"calibration.{name}: expected {expected}, got {array.dtype}"
    shape = graph.shape(name)
    if shape is None:
        return
    same = len(shape) == array.ndim
    if not same or any(
        w not in {None, g} for w, g in zip(shape[1:], array.shape[1:], strict=False)
    ):
        wanted = ", ".join(["n", *("?" if d is None else str(d) for d in shape[1:])])
        got = ", ".join(["n", *map(str, array.shape[1:])])
        yield f"calibration.{name}: expected shape [{wanted}], got [{got}]"


def split(samples: Samples, fixed: int | None = None) -> tuple[Samples, Samples]:
    """Calibration samples and the held-out fifth (every fifth one).

    With fewer than 5 (or than 2 of the model's fixed batches) all samples do both. For a fixed
    batch both parts are cut down to whole batches.

    Raises:
        ConfigError: Fewer samples than the fixed batch.
    """
    count, step = len(samples), fixed or 1
    if count < step:
        raise ConfigError(f"calibration: {count} samples; the model's fixed batch is {step}")
    rows = np.arange(count)
    held = rows[rows % _HOLD_OUT == _HOLD_OUT - 1]
    kept = rows[rows % _HOLD_OUT != _HOLD_OUT - 1]
    if len(held) < step or len(kept) < step:
        held = kept = rows
    return (
        samples.take(kept[: len(kept) // step * step]),
        samples.take(held[: len(held) // step * step]),
    )
