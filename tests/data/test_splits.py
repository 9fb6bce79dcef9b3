"""Splitting, ids and duplicates."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.data import splits as cut


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=120),
    share=st.floats(0, 1),
    seed=st.integers(-5, 2**64),
)
def test_a_pick_is_exact_in_size_and_stratified_within_one(
    labels: list[int], share: float, seed: int
) -> None:
    strata = np.array(labels)
    k = cut.part(len(strata), share)
    got = cut.pick(strata, k, seed, cut.TEST)
    assert len(got) == k
    assert np.array_equal(got, np.unique(got))
    for stratum in set(labels):
        fair = k * labels.count(stratum) / len(labels)
        assert abs((strata[got] == stratum).sum() - fair) < 1
    assert np.array_equal(got, cut.pick(strata, k, seed, cut.TEST))
    other = cut.rest(len(strata), got)
    assert sorted([*got, *other]) == list(range(len(strata)))


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=120), seed=st.integers(0, 2**64))
def test_every_beginning_of_a_blend_holds_the_strata_in_their_shares(
    labels: list[int], seed: int
) -> None:
    strata = np.array(labels)
    got = cut.blend(strata, seed, cut.CALIBRATION_ORDER)
    assert sorted(got) == list(range(len(labels)))
    assert np.array_equal(got, cut.blend(strata, seed, cut.CALIBRATION_ORDER))
    kinds = len(set(labels))
    for k in range(len(labels) + 1):
        for stratum in set(labels):
            fair = k * labels.count(stratum) / len(labels)
            assert abs((strata[got[:k]] == stratum).sum() - fair) <= kinds


def test_blends_of_two_seeds_differ() -> None:
    strata = np.arange(60) % 3
    assert len({cut.blend(strata, seed, cut.CALIBRATION_ORDER).tobytes() for seed in range(9)}) == 9


def test_seeds_and_streams_pick_differently() -> None:
    strata = np.arange(200) % 4
    seen = {
        cut.pick(strata, 40, seed, stream).tobytes()
        for seed in range(4)
        for stream in (cut.TEST, cut.VAL, cut.CALIBRATION, cut.LIMIT_TRAIN)
    }
    assert len(seen) == 16


def test_every_sample_can_be_picked() -> None:
    strata = np.arange(30) % 3
    seen = {int(i) for seed in range(60) for i in cut.pick(strata, 6, seed, cut.VAL)}
    assert seen == set(range(30))


@pytest.mark.parametrize(
    ("n", "fraction", "size"), [(1797, 0.2, 360), (100, 0.07, 7), (10, 0.01, 1), (7, 1.0, 7)]
)
def test_a_fraction_is_rounded_up_but_not_by_float_noise(
    n: int, fraction: float, size: int
) -> None:
    assert cut.part(n, fraction) == size


def test_hashes_are_the_first_bytes_of_sha256_of_all_inputs() -> None:
    a = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    b = np.arange(3, dtype=np.float32).reshape(3, 1)
    got = cut.content_hashes({"b": b, "a": a}, 3)
    want = hashlib.sha256(a[1].tobytes() + b[1].tobytes()).digest()[:8]
    assert int(got[1]) == int.from_bytes(want, "little")
    assert got.dtype == np.uint64


def test_ids_of_duplicates_differ_and_the_first_keeps_its_hash() -> None:
    hashes = np.array([7, 5, 7, 7, 9], dtype=np.uint64)
    assert cut.repeats(hashes).tolist() == [0, 0, 1, 2, 0]
    ids = cut.unique_ids(hashes)
    assert len(np.unique(ids)) == 5
    assert ids[[0, 1, 4]].tolist() == [7, 5, 9]
    assert cut.repeats(hashes[:0]).tolist() == []
