"""Weights and biases as integers, with the proofs that no accumulator overflows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# 255 * 128 = 32,640 <= 32,767 and 255 * 129 = 32,895 > 32,767: the sum of two weights of one sign.
PAIR_LIMIT = 128
_ACTIVATION_MAX = 255
_SMALLEST = 1e-30  # below, a scale times an activation scale could be denormal in float32
_ACCUMULATOR = 2**30  # half of int32 for the bias, half for the products
MAX_REDUCTION = _ACCUMULATOR // (127 * _ACTIVATION_MAX)  # 33,155 products always fit their half


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """One layer's integers.

    Attributes:
        values: int8, [channels, reduction].
        scale: float32 [channels], above 0.
        bias: int32 [channels] on the scale ``input scale * scale``, or None.
        grid: int [channels], the largest magnitude that the channel's grid has (64 to 127).
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32] | None
    grid: NDArray[np.int64]

    @property
    def bits(self) -> int:
        """8 where every channel has the whole 8-bit grid, else 7."""
        return 8 if bool((self.grid == 127).all()) else 7


def fits_16_bits(values: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Whether no two products of a channel with u8 activations can leave int16, per channel.

    Args:
        values: [channels, reduction]. Any two weights of a channel may be neighbours, as the
            packing of the kernels is theirs to choose; activations are anything from 0 to 255.
    """
    wide = np.sort(values.astype(np.int64), axis=1)
    high = np.clip(wide[:, -2:], 0, None).sum(axis=1)
    low = np.clip(wide[:, :2], None, 0).sum(axis=1)
    fits: NDArray[np.bool_] = (high * _ACTIVATION_MAX <= 32767) & (low * _ACTIVATION_MAX >= -32768)
    return fits


def quantize_weight(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None,
    input_scale: np.float32,
    bits: Literal["proven", "7", "8"],
    rounding: NDArray[np.int8] | None = None,
) -> QuantizedWeight:
    """Quantize symmetrically per channel, rounding to nearest even or as told.

    Args:
        weight: [channels, reduction], finite.
        bias: [channels] or None.
        input_scale: Of the layer's input activation.
        bits: See :class:`compressor.quantization.target.Target`.
        rounding: [channels, reduction], integers to use instead of the nearest (see
            :mod:`.adaround`). A channel for which they do not round its weights up or down on
            its grid, or would break the proof of ``proven``, keeps the nearest.
    """
    wide = weight.astype(np.float64)
    peak = np.abs(wide).max(axis=1, initial=0.0)
    floor = _scale_floor(peak, bias, float(input_scale))
    grid = np.full(len(wide), {"7": 64, "8": 127, "proven": 127}[bits], np.int64)
    if bits == "proven":
        grid = _first_grid(wide, peak)
    scale, values = _round(wide, peak, grid, floor)
    if bits == "proven":
        while not (fits := fits_16_bits(values)).all():
            grid = np.where(fits, grid, np.maximum(grid - 1, 64))
            scale, values = _round(wide, peak, grid, floor)
    if rounding is not None:
        usable = _rounds(rounding, wide, scale, grid)
        if bits == "proven":
            usable = usable & fits_16_bits(rounding)
        values = np.where(usable[:, None], rounding, values)
    return QuantizedWeight(values, scale, _bias(bias, input_scale, scale), grid)


def _scale_floor(
    peak: NDArray[np.float64], bias: NDArray[np.float32] | None, input_scale: float
) -> NDArray[np.float64]:
    """Least scale per channel: the int32 bias must fit beside the products."""
    floor = np.full(len(peak), _SMALLEST)
    if bias is not None:
        size = np.abs(bias.astype(np.float64)) / input_scale
        floor = np.maximum(floor, size / _ACCUMULATOR)
        # A channel of zeros is its bias alone; 20 bits of it are kept.
        floor = np.where(peak < _SMALLEST, np.maximum(size / 2**20, _SMALLEST), floor)
    empty = (peak < _SMALLEST) & (floor <= _SMALLEST)
    return np.where(empty, 1.0, floor)


def _first_grid(wide: NDArray[np.float64], peak: NDArray[np.float64]) -> NDArray[np.int64]:
    """Largest grid on which the two largest weights of one sign add up to at most 128."""
    ordered = np.sort(wide, axis=1)
    high = np.clip(ordered[:, -2:], 0, None).sum(axis=1)
    low = -np.clip(ordered[:, :2], None, 0).sum(axis=1)
    pair = np.maximum(np.maximum(high, low), np.finfo(np.float64).tiny)
    grid: NDArray[np.int64] = np.clip(np.floor(PAIR_LIMIT * peak / pair), 64, 127).astype(np.int64)
    return grid


def _round(
    wide: NDArray[np.float64],
    peak: NDArray[np.float64],
    grid: NDArray[np.int64],
    floor: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    scale = np.maximum(peak / grid, floor).astype(np.float32)
    steps = np.rint(wide / scale.astype(np.float64)[:, None])
    limit = grid[:, None]
    return scale, np.clip(steps, -limit, limit).astype(np.int8)


def _rounds(
    values: NDArray[np.int8],
    wide: NDArray[np.float64],
    scale: NDArray[np.float32],
    grid: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether ``values`` are weights rounded up or down, none off the grid, per channel."""
    steps = np.clip(wide / scale.astype(np.float64)[:, None], -grid[:, None], grid[:, None])
    near = np.abs(values - steps) < 1.0 + 1e-6
    inside = np.abs(values.astype(np.int64)) <= grid[:, None]
    return np.asarray((near & inside).all(axis=1))


def _bias(
    bias: NDArray[np.float32] | None, input_scale: np.float32, scale: NDArray[np.float32]
) -> NDArray[np.int32] | None:
    if bias is None:
        return None
    steps = np.rint(bias.astype(np.float64) / bias_scale(input_scale, scale).astype(np.float64))
    limit = 2**31 - 1
    result: NDArray[np.int32] = np.clip(steps, -limit, limit).astype(np.int32)
    return result


def bias_scale(input_scale: np.float32, scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scale of the int32 bias [channels], multiplied in float32 as the runtime does."""
    product: NDArray[np.float32] = np.float32(input_scale) * scale.astype(np.float32)
    return product
