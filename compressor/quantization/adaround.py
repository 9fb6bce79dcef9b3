"""AdaRound: learn whether each weight is rounded up or down, layer by layer.

The nearest integer is the best one for a weight alone, not for a sum of products. Every weight
gets a soft choice h(V) in [0, 1], a stretched sigmoid, added to its floor; Adam minimises the
squared error of the layer's sums on real inputs plus a regulariser ``1 - |2h - 1|^beta`` whose
beta falls from 20 to 2, so that all h end at 0 or 1 (Nagel et al. 2020, "Up or Down? Adaptive
Rounding for Post-Training Quantization", equations 21 to 25). The inputs are those that the
layers in front, quantized and rounded, make; the target is the float layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.quantization import parts, qdq
from compressor.quantization.calibrate import Feeds
from compressor.quantization.graph import Array, Graph, constant_of
from compressor.quantization.observers import Range
from compressor.quantization.select import Selection, reduction_first
from compressor.quantization.target import Target
from compressor.quantization.unfold import cache
from compressor.quantization.weights import QuantizedWeight, fits_16_bits

Floats = NDArray[np.float32]
Int8 = NDArray[np.int8]
_LOW, _HIGH = -0.1, 1.1  # the stretch: h reaches 0 and 1 exactly
_WARM = 0.2  # share of the iterations without the regulariser
_GRAM = 512  # up to this reduction the exact gradient costs less than a batch of rows
_ROWS = 128  # positions per step beyond it


@dataclass(frozen=True, slots=True)
class Learning:
    """How long and how fast.

    Attributes:
        iterations: Adam steps per layer.
        rate: Adam's step for V.
        weight: Of the regulariser, per weight, against the layer's error in units of the
            nearest rounding's.
        positions: Output positions that a layer is fitted on, over all samples.
    """

    iterations: int = 500
    rate: float = 0.05
    weight: float = 10.0
    positions: int = 2048


@dataclass(frozen=True, slots=True)
class Gain:
    """One layer: mean squared error per output value of its sums, on the cached inputs.

    Attributes:
        name: Of the node.
        nearest: Error with nearest rounding.
        learned: Error with what was learned and kept; never above ``nearest``.
        flipped: How many weights are not rounded to nearest.
        total: How many weights there are.
    """

    name: str
    nearest: float
    learned: float
    flipped: int
    total: int


@dataclass(frozen=True, slots=True)
class Rounding:
    """What was learned.

    Attributes:
        values: Weighted node name to int8 [channels, reduction], for :func:`.qdq.write`.
        gains: One per layer, in the order of the graph's levels.
    """

    values: Mapping[str, Int8]
    gains: tuple[Gain, ...]


def learn(
    graph: Graph,
    selection: Selection,
    ranges: Mapping[str, Range],
    target: Target,
    feeds: Feeds,
    *,
    rng: np.random.Generator,
    learning: Learning = Learning(),
    threads: int = 1,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[str], None] = lambda name: None,
) -> Rounding:
    """Learn the rounding of every int8 weighted layer, front to back.

    Memory: one batch of one level's tensors, and at most 128 MiB of unfolded inputs per layer of
    a level, and once more of the layer being learned. The same arguments and generator state
    give the same integers.

    Args:
        graph: Prepared float model.
        selection: What becomes int8.
        ranges: As for :func:`.qdq.write`.
        target: As for :func:`.qdq.write`; its proof holds for the result too.
        feeds: Calibration batches, the same at every call.
        rng: Chooses positions and batches.
        learning: See :class:`Learning`.
        threads: Of the runtime.
        stop: Asked before each layer; the layers not yet learned keep nearest.
        progress: Told the name of each layer when it is done.
    """
    values: dict[str, Int8] = {}
    gains: list[Gain] = []
    total = sum(len(next(iter(feed.values()))) for feed in feeds())
    for group in parts.levels(graph, selection):
        if stop():
            break
        written = qdq.write(graph, selection, ranges, target, values)
        cached = cache(graph, written, group, feeds, total, learning.positions, rng, threads)
        for node in group:
            if stop():
                break
            weight = constant_of(node, graph, 1)
            assert weight is not None  # ``select.why_float`` saw it
            rows = np.ascontiguousarray(reduction_first(node, weight))
            inputs, targets = cached.pop(node.name)
            proven = target.bits == "proven"
            values[node.name], gain = reconstruct(
                rows, written.weights[node.name], inputs, targets, rng=rng, learning=learning,
                proven=proven, name=node.name,
            )  # fmt: skip
            gains.append(gain)
            progress(node.name)
    return Rounding(values, tuple(gains))


def reconstruct(
    weight: Floats,
    nearest: QuantizedWeight,
    inputs: Floats,
    targets: Floats,
    *,
    rng: np.random.Generator,
    learning: Learning = Learning(),
    proven: bool = True,
    name: str = "",
) -> tuple[Int8, Gain]:
    """Round one layer's weights so that ``inputs @ integers * scale`` comes near ``targets``.

    Args:
        weight: [channels, reduction].
        nearest: The same, rounded to nearest; gives grid and scale.
        inputs: [positions, groups, reduction], dequantized.
        targets: [positions, channels], without bias.
        rng: Draws the batches of a layer too wide for its Gram matrix.
        learning: See :class:`Learning`.
        proven: Keep :func:`.weights.fits_16_bits`.
        name: For the report.

    Returns:
        int8 [channels, reduction], each weight rounded up or down on its grid; a channel on
        which that is not better than nearest keeps nearest.
    """
    split = (inputs.shape[1], weight.shape[0] // inputs.shape[1], weight.shape[1])
    unfolded = np.ascontiguousarray(inputs.transpose(1, 0, 2))  # [groups, positions, reduction]
    wanted = (targets / nearest.scale).reshape(len(inputs), *split[:2]).transpose(1, 0, 2)
    before = _errors(unfolded, nearest.values, wanted)
    floor, rest = _floor(weight, nearest)
    up = _choose(
        floor.reshape(split), rest.reshape(split), unfolded, wanted.astype(np.float32),
        before.reshape(split[:2]), rng, learning,
    )  # fmt: skip
    chosen = (floor + up.reshape(weight.shape)).astype(np.int8)
    if proven:
        chosen = _repair(chosen, nearest.values)
    return _better(chosen, nearest, before, _errors(unfolded, chosen, wanted), name)


def _floor(weight: Floats, nearest: QuantizedWeight) -> tuple[Floats, Floats]:
    """Weights in steps of their grid: the integer below, and what is left, 0 to 1."""
    steps = weight.astype(np.float64) / nearest.scale.astype(np.float64)[:, None]
    grid = nearest.grid[:, None]
    floor = np.clip(np.floor(steps), -grid, grid - 1)
    return floor.astype(np.float32), np.clip(steps - floor, 0.0, 1.0).astype(np.float32)


def _better(
    chosen: Int8, nearest: QuantizedWeight, before: Array, after: Array, name: str
) -> tuple[Int8, Gain]:
    """The rounding of less error per channel; errors are in squared steps, [channels]."""
    better = after < before
    result: Int8 = np.where(better[:, None], chosen, nearest.values)
    unit = nearest.scale.astype(np.float64) ** 2
    gain = Gain(
        name,
        float((before * unit).mean()),
        float((np.where(better, after, before) * unit).mean()),
        int((result != nearest.values).sum()),
        result.size,
    )
    return result, gain


def _errors(unfolded: Floats, values: Int8, wanted: Array) -> NDArray[np.float64]:
    """Mean squared error of the sums, in steps of the weight grid, per channel [channels]."""
    groups, _, reduction = unfolded.shape
    rows = values.reshape(groups, -1, reduction).astype(np.float32)
    error = (unfolded @ rows.transpose(0, 2, 1)).astype(np.float64) - wanted
    mean: NDArray[np.float64] = (error**2).mean(axis=1).reshape(-1)
    return mean


def _choose(
    floor: Floats,
    rest: Floats,
    unfolded: Floats,
    wanted: Floats,
    before: NDArray[np.float64],
    rng: np.random.Generator,
    learning: Learning,
) -> NDArray[np.bool_]:
    """Adam on V; returns which weights [groups, channels per group, reduction] go up."""
    positions, reduction = unfolded.shape[1:]
    norm = (1.0 / np.where(before > 0, before, np.inf)).astype(np.float32)[:, :, None]
    gram = unfolded.transpose(0, 2, 1) @ unfolded / positions if reduction <= _GRAM else None
    cross = wanted.transpose(0, 2, 1) @ unfolded / positions if gram is not None else None
    v = -np.log((_HIGH - _LOW) / (rest - _LOW) - 1.0)
    mean, square = np.zeros_like(v), np.zeros_like(v)
    pull = np.float32(learning.weight / reduction)
    for step in range(1, learning.iterations + 1):
        sigmoid = 1.0 / (1.0 + np.exp(-v))
        h = np.clip(sigmoid * (_HIGH - _LOW) + _LOW, 0.0, 1.0)
        rows = floor + h
        if gram is not None:
            slope = 2.0 * (rows @ gram - cross)
        else:
            at = rng.integers(positions, size=_ROWS)
            batch = unfolded[:, at]
            error = batch @ rows.transpose(0, 2, 1) - wanted[:, at]
            slope = 2.0 / _ROWS * (error.transpose(0, 2, 1) @ batch)
        slope = slope * norm
        past = (step / learning.iterations - _WARM) / (1.0 - _WARM)
        if past > 0:
            # cosine from 20 to 2, as in the authors' code
            beta = 2.0 + 9.0 * (1.0 + np.cos(np.pi * past))
            side = 2.0 * h - 1.0
            slope -= pull * 2.0 * beta * np.sign(side) * np.abs(side) ** np.float32(beta - 1.0)
        slope *= (_HIGH - _LOW) * sigmoid * (1.0 - sigmoid) * ((h > 0) & (h < 1))
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope**2
        size = learning.rate * np.sqrt(1.0 - 0.999**step) / (1.0 - 0.9**step)
        v = v - np.float32(size) * mean / (np.sqrt(square) + 1e-12)
    up: NDArray[np.bool_] = v >= 0.0  # h >= 1/2
    return up


def _repair(values: Int8, nearest: Int8) -> Int8:
    """Take back flips, largest magnitudes first, until every channel fits 16 bits again.

    Without any flip away from 0 no magnitude is above nearest's, which fits.
    """
    fixed = values.copy()
    for row in np.flatnonzero(~fits_16_bits(fixed)):
        size = np.abs(fixed[row].astype(np.int64))
        away = np.flatnonzero(size > np.abs(nearest[row].astype(np.int64)))
        for at in away[np.argsort(-size[away], kind="stable")]:
            fixed[row, at] = nearest[row, at]
            if fits_16_bits(fixed[row : row + 1])[0]:
                break
    return fixed
