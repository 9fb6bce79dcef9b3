"""Scale and zero point of an activation tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.quantization.observers import Range

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Parameters:
    """How one tensor is quantized: ``real = (integer - zero_point) * scale``."""

    scale: np.float32
    zero_point: int
    signed: bool = False

    @property
    def zero(self) -> Integers:
        """The zero point as a 0-d array of the integer type."""
        return np.array(self.zero_point, np.int8 if self.signed else np.uint8)

    @property
    def span(self) -> Range:
        """What the least and the greatest integer stand for."""
        lowest = (-128 if self.signed else 0) - self.zero_point
        return Range(lowest * float(self.scale), (lowest + 255) * float(self.scale))

    def quantize(self, values: NDArray[np.float32]) -> Integers:
        """As QuantizeLinear does: divide in float32, round half to even, add, saturate."""
        kind = np.int8 if self.signed else np.uint8
        steps = np.rint(values.astype(np.float32) / self.scale) + self.zero_point
        limits = np.iinfo(kind)
        result: Integers = np.clip(steps, limits.min, limits.max).astype(kind)
        return result


def parameters(span: Range, signed: bool = False) -> Parameters:
    """Asymmetric 8-bit scale and zero point that represent 0 exactly.

    A range that is 0 throughout, or too small for float32 scales, gets scale 1: all its values
    become the zero point.
    """
    low, high = min(span.low, 0.0), max(span.high, 0.0)
    step = (high - low) / 255.0
    if step < 1e-30:
        return Parameters(np.float32(1.0), -128 if signed else 0, signed)
    scale = np.float32(step)
    zero = int(np.clip(np.rint(-low / float(scale)), 0, 255))
    return Parameters(scale, zero - 128 if signed else zero, signed)
