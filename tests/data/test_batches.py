"""Order, sharding, resume and augmentation of batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core.config import Invalid, validate
from compressor.core.errors import ConfigError
from compressor.core.types import InputSpec
from compressor.data.batches import (
    Augment,
    Batch,
    batches,
    below,
    count,
    draws,
    flip,
    mixup_weight,
    order,
    pad_crop,
)
from compressor.data.dataset import Split, as_float, normalise

SPEC = InputSpec((2, 5, 4), "uint8", (0.3, 0.6), (0.2, 0.1))
SPECS = {"x": SPEC}
ALL = Augment(pad_crop=2, flip=True, mixup=0.4)


def split(n: int = 37) -> Split:
    rng = np.random.default_rng(3)
    x = rng.integers(1, 256, (n, *SPEC.shape), dtype=np.uint8)
    return Split({"x": x}, rng.integers(0, 10, n), np.arange(n, dtype=np.uint64))


def rows(got: list[Batch]) -> dict[int, tuple[bytes, ...]]:
    """Everything a batch says about each sample, by index."""
    table = {}
    for batch in got:
        for k, index in enumerate(batch.indices):
            parts = [batch.inputs["x"][k].tobytes(), batch.labels[k].tobytes()]
            if batch.mixed is not None:
                parts += [batch.mixed[0][k].tobytes(), batch.mixed[1][k].tobytes()]
            table[int(index)] = tuple(parts)
    return table


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(-(2**63), 2**64), st.integers(0, 10**6))
def test_order_is_a_permutation_and_a_pure_function(n: int, seed: int, epoch: int) -> None:
    got = order(n, seed, epoch)
    assert sorted(got) == list(range(n))
    assert np.array_equal(got, order(n, seed, epoch))


def test_order_differs_by_epoch_and_by_seed() -> None:
    seen = {order(50, seed, epoch).tobytes() for seed in range(5) for epoch in range(5)}
    assert len(seen) == 25


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 9),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
)
def test_ranks_partition_the_split(n: int, size: int, world: int, shuffle: bool) -> None:
    seen: list[int] = []
    for rank in range(world):
        got = list(batches(split(n), SPECS, size, seed=1, shuffle=shuffle, rank=rank, world=world))
        assert len(got) == count(n, size, rank=rank, world=world)
        seen += [int(i) for batch in got for i in batch.indices]
    assert sorted(seen) == list(range(n))


def test_drop_last_gives_every_rank_the_same_number_of_full_batches() -> None:
    for n in range(1, 30):
        sizes = [
            [len(b.labels) for b in batches(split(n), SPECS, 4, drop_last=True, rank=rank, world=3)]
            for rank in range(3)
        ]
        assert sizes[0] == sizes[1] == sizes[2] == [4] * count(n, 4, drop_last=True, world=3)


@pytest.mark.parametrize("start", [0, 1, 3, 5, 9])
def test_starting_later_is_skipping_batches(start: int) -> None:
    options = {"seed": 4, "epoch": 2, "shuffle": True, "augment": ALL}
    whole = list(batches(split(), SPECS, 8, **options))
    later = list(batches(split(), SPECS, 8, start=start, **options))
    assert len(later) == max(0, len(whole) - start)
    assert rows(later) == rows(whole[start:])


def test_a_sample_is_augmented_alike_in_any_batch_rank_and_order() -> None:
    options = {"seed": 4, "epoch": 2, "augment": ALL}
    whole = rows(list(batches(split(), SPECS, 37, **options)))
    assert rows(list(batches(split(), SPECS, 5, shuffle=True, **options))) == whole
    parts: dict[int, tuple[bytes, ...]] = {}
    for rank in range(3):
        parts |= rows(list(batches(split(), SPECS, 4, rank=rank, world=3, **options)))
    assert parts == whole


def test_epochs_and_seeds_augment_differently() -> None:
    looks = {
        rows(list(batches(split(), SPECS, 37, seed=seed, epoch=epoch, augment=ALL)))[0]
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(looks) == 9


def test_batches_are_the_normalised_floats_of_the_stored_samples() -> None:
    data = split()
    wide = InputSpec((11, 2, 2), "uint8", (0.5,) * 11, (0.25,) * 11)  # too many for a table
    flat = InputSpec((6,), "float32", (1.0,) * 6, (2.0,) * 6)
    whole = InputSpec((3,), "int64")
    rng = np.random.default_rng(0)
    inputs = {
        "x": data.inputs["x"],
        "wide": rng.integers(0, 256, (37, 11, 2, 2), dtype=np.uint8),
        "flat": rng.normal(size=(37, 6)).astype(np.float32),
        "whole": rng.integers(0, 9, (37, 3)),
    }
    specs = {"x": SPEC, "wide": wide, "flat": flat, "whole": whole}
    for batch in batches(Split(inputs, data.labels), specs, 10, shuffle=True):
        for name, spec in specs.items():
            want = normalise(as_float(inputs[name][batch.indices], spec), spec)
            assert np.array_equal(batch.inputs[name], want)
            assert batch.inputs[name].dtype == (np.int64 if name == "whole" else np.float32)
        assert np.array_equal(batch.labels, data.labels[batch.indices])


def test_every_crop_is_a_window_of_the_padded_image_and_every_offset_occurs() -> None:
    n, pad = 400, 1
    x = np.random.default_rng(0).integers(1, 256, (n, 1, 4, 3), dtype=np.uint8)
    spec = {"x": InputSpec((1, 4, 3), "uint8")}
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    (batch,) = batches(Split({"x": x}, np.zeros(n, int)), spec, n, augment=Augment(pad_crop=pad))
    got = np.rint(batch.inputs["x"] * 255).astype(np.uint8)
    offsets = set()
    for image, source in zip(got, padded, strict=True):
        found = [
            (top, left)
            for top in range(3)
            for left in range(3)
            if np.array_equal(image, source[:, top : top + 4, left : left + 3])
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert len(offsets) == 9


def test_the_middle_crop_and_two_flips_change_nothing() -> None:
    x = split().inputs["x"]
    n = len(x)
    assert np.array_equal(pad_crop(x, 2, np.full(n, 2), np.full(n, 2)), x)
    some = np.arange(n) % 3 == 0
    once = flip(x, some)
    assert np.array_equal(once[some], x[some][..., ::-1])
    assert np.array_equal(once[~some], x[~some])
    assert np.array_equal(flip(once, some), x)


def test_half_of_the_samples_are_mirrored() -> None:
    data = split(2000)
    (batch,) = batches(data, SPECS, 2000, augment=Augment(flip=True))
    plain = normalise(as_float(data.inputs["x"], SPEC), SPEC)
    mirrored = [not np.array_equal(a, b) for a, b in zip(batch.inputs["x"], plain, strict=True)]
    assert 900 < sum(mirrored) < 1100


def test_mixup_is_the_weighted_sum_of_two_samples_and_their_labels() -> None:
    data = split(20)
    (batch,) = batches(data, SPECS, 20, seed=2, augment=Augment(mixup=0.5))
    assert batch.mixed is not None
    second, weight = batch.mixed
    partner = below(draws(2, 0, np.arange(20), 3), 20)
    assert np.array_equal(second, data.labels[partner])
    plain = normalise(as_float(data.inputs["x"], SPEC), SPEC)
    w = weight[:, None, None, None]
    assert np.allclose(batch.inputs["x"], w * plain + (1 - w) * plain[partner], atol=1e-6)
    assert len(set(partner)) > 5


@pytest.mark.parametrize("a", [0.2, 1.0, 4.0])
def test_mixup_weights_have_the_moments_of_the_beta_distribution(a: float) -> None:
    w = mixup_weight(draws(0, 0, np.arange(40_000), 4), a).astype(np.float64)
    assert w.min() >= 0
    assert w.max() <= 1
    assert w.mean() == pytest.approx(0.5, abs=0.01)
    assert w.var() == pytest.approx(1 / (4 * (2 * a + 1)), rel=0.03)


@pytest.mark.parametrize(
    ("given", "words"), [(4.1, "mixup: got 4.1; needs at most 4"), (-0.1, "needs at least 0")]
)
def test_mixup_outside_of_its_range_is_refused_with_the_bound(given: float, words: str) -> None:
    assert validate(Augment, {"mixup": 4.0}).mixup == 4
    with pytest.raises(Invalid, match=words):
        validate(Augment, {"mixup": given})


def test_draws_of_different_coordinates_do_not_coincide() -> None:
    index = np.arange(200)
    every = [draws(s, e, index, k) for s in range(3) for e in range(3) for k in range(5)]
    assert len(np.unique(np.concatenate(every))) == 200 * 45
    counts = np.bincount(below(draws(0, 0, np.arange(30_000), 0), 3), minlength=3)
    assert np.all(np.abs(counts - 10_000) < 400)


def test_what_cannot_be_batched_is_refused_at_once() -> None:
    flat = {"x": InputSpec((6,), "float32")}
    whole = {"x": InputSpec((6,), "int64")}
    with pytest.raises(ConfigError, match=r"pad_crop and flip need images.*x float32 \[6\]"):
        batches(split(), flat, 4, augment=Augment(flip=True))
    with pytest.raises(ConfigError, match="integers cannot be mixed"):
        batches(split(), whole, 4, augment=Augment(mixup=0.1))
    with pytest.raises(ConfigError, match="batch_size: 0; give at least 1"):
        batches(split(), SPECS, 0)
    with pytest.raises(ConfigError, match="rank: 2 of 2"):
        batches(split(), SPECS, 4, rank=2, world=2)
