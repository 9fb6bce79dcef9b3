"""Which sample goes where: stratified, exact in size, a pure function of labels and seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compressor.data.batches import scramble
from compressor.data.dataset import Array

Index = NDArray[np.int64]

# Independent random streams of one seed; far from the epochs that `batches.order` uses as keys.
TEST, VAL, CALIBRATION, LIMIT_TRAIN, LIMIT_VAL, LIMIT_TEST, CALIBRATION_ORDER, PARITY = (
    2**63 + k for k in range(8)
)


def part(n: int, fraction: float) -> int:
    """Number of samples that ``fraction`` (0..1) of ``n`` is: rounded up, as scikit-learn does."""
    return min(n, math.ceil(n * fraction - 1e-9))  # 0.07 * 100 is 7.000000000000001


def pick(strata: Index, k: int, seed: int, stream: int) -> Index:
    """Choose ``k`` positions so that every stratum gets its share, within one sample.

    Args:
        strata: ``[n]``, the stratum (class) of each sample, from 0 on.
        k: ``0 <= k <= n``.
        seed: Root of randomness.
        stream: Which of the independent choices of this seed.

    Returns:
        ``[k]`` positions, ascending.
    """
    n = len(strata)
    if k == 0:
        return np.empty(0, dtype=np.int64)
    sizes = np.bincount(strata)
    shares, remainders = np.divmod(k * sizes, n)
    largest = np.argsort(-remainders, kind="stable")[: k - int(shares.sum())]
    shares[largest] += 1
    grouped, rank = _grouped(strata, _shuffled(n, seed, stream))
    return np.sort(grouped[rank < np.repeat(shares, sizes)])


def blend(strata: Index, seed: int, stream: int) -> Index:
    """A random order of which every beginning holds the strata in about their shares.

    Args:
        strata: ``[n]``, the stratum (class) of each sample, from 0 on.
        seed: Root of randomness.
        stream: Which of the independent choices of this seed.

    Returns:
        ``[n]``, a permutation: the sample of rank r in a stratum of s comes at (r + 1/2) / s of
        the way, samples at the same place in random order.
    """
    shuffled = _shuffled(len(strata), seed, stream)
    grouped, rank = _grouped(strata, shuffled)
    place = np.empty(len(strata))
    place[grouped] = (rank + 0.5) / np.bincount(strata)[strata[grouped]]
    return shuffled[np.argsort(place[shuffled], kind="stable")]


def _shuffled(n: int, seed: int, stream: int) -> Index:
    key = np.array([seed & (2**64 - 1), stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(n)


def _grouped(strata: Index, shuffled: Index) -> tuple[Index, Index]:
    """The shuffled positions stratum by stratum, and the rank of each within its stratum."""
    grouped = shuffled[np.argsort(strata[shuffled], kind="stable")]
    sizes = np.bincount(strata)
    first = np.cumsum(sizes) - sizes  # where each stratum begins in `grouped`
    return grouped, np.arange(len(strata)) - np.repeat(first, sizes)


def rest(n: int, picked: Index) -> Index:
    """Positions of ``range(n)`` that are not in ``picked``, ascending."""
    keep = np.ones(n, dtype=bool)
    keep[picked] = False
    return np.flatnonzero(keep)


def content_hashes(inputs: Mapping[str, Array], n: int) -> NDArray[np.uint64]:
    """First 8 bytes of sha256 over each sample's bytes, inputs in the order of their names."""
    arrays = [np.ascontiguousarray(a).reshape(n, -1) for _, a in sorted(inputs.items())]
    hashes = np.empty(n, dtype=np.uint64)
    for i in range(n):
        hasher = hashlib.sha256()
        for array in arrays:
            hasher.update(array[i].data)
        hashes[i] = int.from_bytes(hasher.digest()[:8], "little")
    return hashes


def repeats(hashes: NDArray[np.uint64]) -> Index:
    """How many equal samples come before each one: 0 for the first of its kind. ``[n]``."""
    n = len(hashes)
    by_value = np.argsort(hashes, kind="stable")
    ordered = hashes[by_value]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if n else np.empty(0, int)
    lengths = np.diff(np.r_[starts, n])
    counts = np.empty(n, dtype=np.int64)
    counts[by_value] = np.arange(n) - np.repeat(starts, lengths)
    return counts


def unique_ids(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Content ids that differ also for exact duplicates: the first keeps its hash."""
    again = repeats(hashes)
    return np.where(again == 0, hashes, scramble(hashes + again.astype(np.uint64)))
