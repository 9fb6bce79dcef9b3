"""Batches without state: everything random is a pure function of its coordinates.

The order belongs to (seed, epoch), the augmentation of a sample to (seed, epoch, its index). So a
run that was killed goes on in the middle of an epoch without any saved generator, and a sample
is augmented alike whatever batch, rank or world it meets. Random numbers come from splitmix64
in counter mode (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): one
hash per sample and draw, vectorised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from compressor.core.config import Config
from compressor.core.errors import ConfigError
from compressor.core.types import InputSpec
from compressor.data.dataset import Array, Split, as_float, normalise

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_TABLE_CHANNELS = 8  # up to here, 256 table entries per channel beat float arithmetic
# The variance of `_beta_table`'s weights is right within 0.3 % up to here, 3 % off at 8 and 12 % at
# 10; usual values are 0.1 to 1 (Zhang 2018, arXiv 1710.09412).
_MIXUP_MOST = 4.0
_TOP, _LEFT, _FLIP, _PARTNER, _WEIGHT = range(5)  # which draw of a sample is used for what


class Augment(Config):
    """What is done to training samples; everything off by default."""

    pad_crop: int = Field(0, ge=0, description="zero pixels around an image, then a random window")
    flip: bool = Field(False, description="mirror left-right with probability one half")
    mixup: float = Field(
        0.0,
        ge=0,
        le=_MIXUP_MOST,
        description="Beta(a, a) mixing of two samples, a 0 to 4; 0 is off",
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples, ready for a model.

    Attributes:
        inputs: Input name to ``[b, *shape]``, float32 and normalised (int64 inputs as stored).
        labels: ``[b]``.
        indices: ``[b]`` positions in the split.
        mixed: With mixup (inputs are mixed already): the second labels ``[b]`` and the weight of
            the first label ``[b]``, float32 in 0..1.
    """

    inputs: Mapping[str, Array]
    labels: Array
    indices: NDArray[np.int64]
    mixed: tuple[Array, NDArray[np.float32]] | None = None


def order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of ``range(n)`` that belongs to (seed, epoch)."""
    key = np.array([seed & _MASK, epoch & _MASK], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


def count(
    n: int, batch_size: int, *, drop_last: bool = False, rank: int = 0, world: int = 1
) -> int:
    """How many batches :func:`batches` gives from the start; with ``drop_last`` equal on all ranks.

    Args:
        n: Samples of the split.
        batch_size: Samples per batch and rank.
        drop_last: Leave an incomplete last batch out.
        rank: This process, ``0 <= rank < world``.
        world: Number of processes.
    """
    if drop_last:
        return n // world // batch_size
    return -(-len(range(rank, n, world)) // batch_size)


def batches(
    split: Split,
    specs: Mapping[str, InputSpec],
    batch_size: int,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = False,
    augment: Augment | None = None,
    drop_last: bool = False,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """One epoch of batches.

    Args:
        split: Samples as stored.
        specs: The dataset's inputs.
        batch_size: Samples per batch and rank, at least 1.
        seed: Root of order and augmentation.
        epoch: Which epoch.
        shuffle: In the order of (seed, epoch) instead of the stored one.
        augment: What to do to the samples; None for evaluation.
        drop_last: Leave an incomplete last batch out; all ranks then give equally many.
        start: Batches to skip, for going on in the middle of an epoch.
        rank: This process gets every ``world``-th sample of the order from ``rank`` on.
        world: Number of processes.

    Raises:
        ConfigError: A batch size below 1, or an augmentation that no input can take.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: {batch_size}; give at least 1")
    if not 0 <= rank < world:
        raise ConfigError(f"rank: {rank} of {world}; give 0 to {world - 1}")
    check_augment(augment, specs)
    return _epoch(
        split, specs, batch_size, seed, epoch, shuffle, augment, drop_last, start, rank, world
    )


def check_augment(augment: Augment | None, specs: Mapping[str, InputSpec]) -> None:
    """Raise ConfigError if the inputs cannot be augmented so."""
    if augment is None:
        return
    shapes = ", ".join(f"{k} {s.dtype} {list(s.shape)}" for k, s in specs.items())
    if (augment.pad_crop or augment.flip) and not any(map(_is_image, specs.values())):
        raise ConfigError(
            f"augment: pad_crop and flip need images [channels, height, width], the inputs are "
            f"{shapes}; leave both out"
        )
    if augment.mixup and any(s.dtype == "int64" for s in specs.values()):
        raise ConfigError(f"augment.mixup: integers cannot be mixed ({shapes}); use 0")


def _epoch(
    split: Split,
    specs: Mapping[str, InputSpec],
    size: int,
    seed: int,
    epoch: int,
    shuffle: bool,
    augment: Augment | None,
    drop_last: bool,
    start: int,
    rank: int,
    world: int,
) -> Iterator[Batch]:
    n = len(split)
    mine = (order(n, seed, epoch) if shuffle else np.arange(n))[rank::world]
    tables = {name: _table(spec) for name, spec in specs.items()}
    for step in range(start, count(n, size, drop_last=drop_last, rank=rank, world=world)):
        index = mine[step * size : (step + 1) * size]
        inputs = _samples(split, specs, tables, index, seed, epoch, augment)
        labels = np.asarray(split.labels[index])
        mixed = None
        if augment is not None and augment.mixup:
            partner = below(draws(seed, epoch, index, _PARTNER), n)
            weight = mixup_weight(draws(seed, epoch, index, _WEIGHT), augment.mixup)
            other = _samples(split, specs, tables, partner, seed, epoch, augment)
            inputs = {name: _mix(x, other[name], weight) for name, x in inputs.items()}
            mixed = (np.asarray(split.labels[partner]), weight)
        yield Batch(inputs, labels, index, mixed)


def _samples(
    split: Split,
    specs: Mapping[str, InputSpec],
    tables: Mapping[str, NDArray[np.float32] | None],
    index: NDArray[np.int64],
    seed: int,
    epoch: int,
    augment: Augment | None,
) -> dict[str, Array]:
    """Gather, augment in pixel space, normalise."""
    inputs = {}
    for name, spec in specs.items():
        x = split.inputs[name][index]
        if augment is not None and _is_image(spec):
            x = _augmented(x, seed, epoch, index, augment)
        inputs[name] = _ready(x, spec, tables[name])
    return inputs


def _is_image(spec: InputSpec) -> bool:
    return len(spec.shape) == 3 and spec.dtype != "int64"


def _augmented(
    x: Array, seed: int, epoch: int, index: NDArray[np.int64], augment: Augment
) -> Array:
    """Crop and mirror images ``[b, c, h, w]``, each by its own draws."""
    if augment.pad_crop:
        steps = 2 * augment.pad_crop + 1
        top = below(draws(seed, epoch, index, _TOP), steps)
        left = below(draws(seed, epoch, index, _LEFT), steps)
        x = pad_crop(x, augment.pad_crop, top, left)
    if augment.flip:
        x = flip(x, draws(seed, epoch, index, _FLIP) >> np.uint64(63) == 1)
    return x


def pad_crop(x: Array, pad: int, top: NDArray[np.int64], left: NDArray[np.int64]) -> Array:
    """Windows of the padded images.

    Args:
        x: ``[b, c, h, w]``.
        pad: Pixels of value 0 (before normalisation) on each side.
        top: ``[b]``, first row of each window in the padded image, 0..2*pad.
        left: ``[b]``, first column, 0..2*pad.

    Returns:
        ``[b, c, h, w]``.
    """
    b, c, h, w = x.shape
    padded = np.zeros((b, c, h + 2 * pad, w + 2 * pad), dtype=x.dtype)
    padded[:, :, pad : pad + h, pad : pad + w] = x
    windows = np.lib.stride_tricks.sliding_window_view(padded, (h, w), axis=(2, 3))
    # windows: [b, c, 2*pad+1, 2*pad+1, h, w]; the gather copies whole windows, not single pixels.
    picked: Array = windows[np.arange(b), :, top, left]
    return picked


def flip(x: Array, where: NDArray[np.bool_]) -> Array:
    """A copy of ``x`` ``[b, c, h, w]`` in which the samples of ``where`` ``[b]`` are mirrored."""
    out = x.copy()
    out[where] = x[where][..., ::-1]
    return out


def _table(spec: InputSpec) -> NDArray[np.float32] | None:
    """``[channels, 256]``: what each pixel value becomes; None where arithmetic is better."""
    if spec.dtype != "uint8" or len(spec.shape) != 3 or spec.shape[0] > _TABLE_CHANNELS:
        return None
    values = np.arange(256, dtype=np.uint8).reshape(256, 1, 1, 1)
    pixels = as_float(np.repeat(values, spec.shape[0], axis=1), spec)
    return np.ascontiguousarray(normalise(pixels, spec).reshape(256, -1).T)


def _ready(x: Array, spec: InputSpec, table: NDArray[np.float32] | None) -> Array:
    """The bits of ``normalise(as_float(x))``."""
    if table is None:
        return normalise(as_float(x, spec), spec)
    out = np.empty(x.shape, dtype=np.float32)
    for channel, row in enumerate(table):
        out[:, channel] = row[x[:, channel]]
    return out


def _mix(first: Array, second: Array, weight: NDArray[np.float32]) -> Array:
    w = weight.reshape(-1, *(1,) * (first.ndim - 1))
    mixed: Array = first * w + second * (np.float32(1) - w)
    return mixed


def draws(seed: int, epoch: int, index: NDArray[np.int64], stream: int) -> NDArray[np.uint64]:
    """One 64-bit random number per sample, a pure function of (seed, epoch, index, stream)."""
    key = _scramble_int(_scramble_int(_scramble_int(seed) + epoch) + stream)
    return scramble(index.astype(np.uint64) * np.uint64(_GOLDEN) + np.uint64(key))


def below(random: NDArray[np.uint64], limit: int) -> NDArray[np.int64]:
    """Map 64 random bits to ``0..limit-1`` (``limit < 2**32``; bias below ``limit / 2**32``)."""
    return (((random >> np.uint64(32)) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64, a bijection of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _scramble_int(value: int) -> int:
    """As :func:`scramble` after one golden step; in Python's integers, which do not overflow."""
    x = (value + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def mixup_weight(random: NDArray[np.uint64], concentration: float) -> NDArray[np.float32]:
    """Weights of the first sample, distributed as Beta(concentration, concentration).

    ``concentration`` is above 0 and at most 4, as :class:`Augment` allows.
    """
    uniform = (random >> np.uint64(11)).astype(np.float64) * 2.0**-53
    cdf, root = _beta_table(concentration)
    lower = np.minimum(uniform, 1 - uniform)  # the density is symmetric about one half
    half = np.interp(lower, cdf, root) ** (1 / concentration)
    return np.where(uniform < 0.5, half, 1 - half).astype(np.float32)


@lru_cache(maxsize=8)
def _beta_table(a: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower half of the distribution of Beta(a, a) over ``v = x**a``.

    With ``x = v**(1/a)`` the density ``x**(a-1) (1-x)**(a-1) dx`` becomes ``(1-x)**(a-1) dv / a``,
    which has no pole, so a trapezoid sum is good to about 1e-6.
    """
    v = np.linspace(0.0, 0.5**a, 4097)
    density = (1 - v ** (1 / a)) ** (a - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return 0.5 * area / area[-1], v
