"""From raw arrays to a dataset folder, and everything that is refused on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.core.errors import ConfigError
from compressor.core.hashing import digest_path
from compressor.core.types import InputSpec
from compressor.data.dataset import Dataset, RawDataset, Split, as_float, normalise
from compressor.data.prepare import prepare

CLASSES = ("cat", "dog", "eel")
OPTIONS: dict[str, Any] = {"seed": 0, "val": 0.1, "test": 0.2, "calibration": 12}


def images(n: int, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (n, 2, 4, 4), dtype=np.uint8)
    return Split({"image": x}, np.arange(n) % 3)


def raw(**changes: Any) -> RawDataset:
    whole = RawDataset("pets", "classification", CLASSES, {}, {"all": images(90)})
    return replace(whole, **changes)


def made(folder: Path, source: RawDataset | None = None, **changes: Any) -> Dataset:
    return prepare(source or raw(), folder / "data", **(OPTIONS | changes))


def key(split: Split) -> set[bytes]:
    return {row.tobytes() for row in split.inputs["image"]}


def test_train_val_and_test_are_a_partition_and_calibration_is_from_train(tmp_path: Path) -> None:
    data = made(tmp_path)
    assert data.counts == {"train": 64, "val": 8, "test": 18, "calibration": 12}
    parts = {name: key(data.split(name)) for name in data.counts}
    assert parts["calibration"] < parts["train"]
    assert parts["train"] | parts["val"] | parts["test"] == key(images(90))
    assert not parts["train"] & parts["test"]
    assert not parts["val"] & (parts["train"] | parts["test"])
    for name, n in data.counts.items():
        counts = np.bincount(data.split(name).labels)
        assert counts.max() - counts.min() <= 1 + (n % 3 > 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_tenth_of_calibration_holds_every_class_of_sorted_data(
    tmp_path: Path, seed: int
) -> None:
    whole = images(600)
    whole.labels.sort()
    data = made(tmp_path, raw(splits={"all": whole}), calibration=120, seed=seed)
    labels = data.split("calibration").labels
    assert np.bincount(labels[:12]).tolist() == [4, 4, 4]
    assert np.bincount(labels).tolist() == [40, 40, 40]
    assert labels[:9].tolist() != sorted(labels[:9])  # nor do the classes take turns


def test_labels_and_ids_stay_with_their_samples(tmp_path: Path) -> None:
    data = made(tmp_path)
    source = images(90)
    label = {x.tobytes(): y for x, y in zip(source.inputs["image"], source.labels, strict=True)}
    ids: dict[bytes, int] = {}
    for name in data.counts:
        part = data.split(name)
        for x, y, number in zip(part.inputs["image"], part.labels, part.ids, strict=True):
            assert label[x.tobytes()] == y
            assert ids.setdefault(x.tobytes(), int(number)) == number
    assert len(set(ids.values())) == 90


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_splits(tmp_path: Path) -> None:
    first, again, other = (made(tmp_path / f"{k}", seed=s) for k, s in enumerate((3, 3, 4)))
    assert digest_path(first.path) == digest_path(again.path)
    assert first.fingerprint != other.fingerprint
    assert key(first.split("test")) != key(other.split("test"))


def test_own_splits_are_used_and_only_what_is_missing_is_cut(tmp_path: Path) -> None:
    parts = {"train": images(60, 1), "test": images(12, 2)}
    data = made(tmp_path / "a", raw(splits=parts))
    assert data.counts == {"train": 54, "val": 6, "test": 12, "calibration": 12}
    assert key(data.split("test")) == key(parts["test"])
    assert key(data.split("train")) | key(data.split("val")) == key(parts["train"])
    parts["val"] = images(9, 3)
    data = made(tmp_path / "b", raw(splits=parts))
    assert data.counts == {"train": 60, "val": 9, "test": 12, "calibration": 12}
    assert key(data.split("val")) == key(parts["val"])


def test_limits_keep_proportions_and_train_limit_touches_train_alone(tmp_path: Path) -> None:
    data = made(tmp_path / "a", limit=15)
    assert data.counts == {"train": 15, "val": 8, "test": 15, "calibration": 12}
    assert np.bincount(data.split("train").labels).tolist() == [5, 5, 5]
    data = made(tmp_path / "b", train_limit=30)
    assert data.counts == {"train": 30, "val": 8, "test": 18, "calibration": 12}
    data = made(tmp_path / "c", limit=6, train_limit=30)
    assert data.counts == {"train": 30, "val": 6, "test": 6, "calibration": 12}


def test_normalisation_is_measured_on_train_alone(tmp_path: Path) -> None:
    data = made(tmp_path)
    spec = data.inputs["image"]
    x = data.split("train").inputs["image"].astype(np.float64) / 255
    assert np.allclose(spec.mean, x.mean(axis=(0, 2, 3)), rtol=1e-6)
    assert np.allclose(spec.std, x.std(axis=(0, 2, 3)), rtol=1e-6)
    ready = normalise(as_float(data.split("train").inputs["image"], spec), spec)
    assert np.allclose(ready.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    assert np.allclose(ready.std(axis=(0, 2, 3)), 1, atol=1e-5)


def test_more_samples_than_one_block_are_measured_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = made(tmp_path / "a").inputs
    monkeypatch.setattr("compressor.data.prepare._BLOCK", 7)
    assert made(tmp_path / "b").inputs == want


def test_features_of_any_scale_are_measured_and_integers_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(5, 3, 90), np.full(90, 7.0)], axis=1)
    inputs = {"x": x, "word": rng.integers(0, 50, (90, 4)).astype(np.int16)}
    data = made(tmp_path, raw(splits={"all": Split(inputs, np.arange(90) % 3)}))
    stored = data.split("train").inputs["x"]
    assert stored.dtype == np.float32
    spec = data.inputs["x"]
    assert spec.mean == pytest.approx((float(stored[:, 0].astype(np.float64).mean()), 7.0))
    assert spec.std[1] == 1.0  # never changes
    assert data.inputs["word"] == InputSpec((4,), "int64")
    assert data.split("val").inputs["word"].dtype == np.int64


def test_given_specs_keep_their_order_and_normalisation(tmp_path: Path) -> None:
    x = images(90).inputs["image"]
    specs = {
        "second": InputSpec((2, 4, 4), "uint8", (0.5, 0.5), (0.25, 0.25)),
        "first": InputSpec((2, 4, 4), "uint8"),
    }
    whole = Split({"first": x, "second": x[::-1]}, np.arange(90) % 3)
    data = made(tmp_path, raw(inputs=specs, splits={"all": whole}))
    assert list(data.inputs) == ["second", "first"]
    assert data.inputs["second"] == specs["second"]
    assert data.inputs["first"].mean


def test_duplicates_are_counted(tmp_path: Path) -> None:
    train, test = images(60, 1), images(12, 2)
    test.inputs["image"][:5] = train.inputs["image"][:5]  # wherever val takes its part
    train.inputs["image"][58] = train.inputs["image"][57] = train.inputs["image"][56]
    data = made(tmp_path, raw(splits={"train": train, "test": test, "val": images(9, 3)}))
    assert data.duplicates == {"train_test": 5, "within_train": 2}
    ids = data.split("train").ids
    assert len(np.unique(ids)) == 60
    assert made(tmp_path / "none").duplicates == {"train_test": 0, "within_train": 0}


def test_regression_needs_no_classes(tmp_path: Path) -> None:
    split = Split(images(40).inputs, np.linspace(0, 1, 40)[:, None])
    data = made(tmp_path, raw(task="regression", classes=(), splits={"all": split}))
    got = data.split("train").labels
    assert got.dtype == np.float32
    assert got.shape == (28,)


def test_more_calibration_samples_than_train_name_the_most_possible(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration: 65 samples; give 1 to 64"):
        made(tmp_path, calibration=65)
    with pytest.raises(ConfigError, match="calibration: 0 samples; give 1 to 64"):
        made(tmp_path, calibration=0)
    assert made(tmp_path, calibration=64).counts["calibration"] == 64


def test_a_class_that_splitting_takes_from_train_is_named(tmp_path: Path) -> None:
    few = Split(images(31).inputs, np.array([0, 1] * 15 + [2]))
    with pytest.raises(ConfigError, match=r"no samples are left in train \(2 in all\) for 'eel'"):
        made(tmp_path, raw(splits={"all": few}), train_limit=2, calibration=1)


def bad(**changes: Any) -> RawDataset:
    """A dataset whose arrays, labels or names are changed."""
    split = images(90)
    x = changes.pop("x", split.inputs["image"])
    y = changes.pop("y", split.labels)
    inputs = changes.pop("arrays", {"image": x})
    return raw(splits={"all": Split(inputs, y)}, **changes)


def floats(value: float) -> np.ndarray:
    x = np.zeros((90, 2, 3))
    x[7, 1, 2] = x[8] = value
    return x


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (bad(y=np.arange(90) % 4), r"22 labels are outside 0\.\.2 \(the 3 .*first 3 at sample 3"),
        (bad(y=np.arange(90) % 3 - 1), r"30 labels are outside 0\.\.2.*first -1 at sample 0"),
        (bad(y=np.arange(90) / 2), "labels are float64.*give class numbers as integers"),
        (bad(y=np.array(["a"] * 90)), "labels are <U1"),
        (bad(y=np.eye(3)[np.arange(90) % 3]), r"labels of shape \[90, 3\]"),
        (bad(y=np.arange(89) % 3), "input image: 90 samples and 89 labels"),
        (bad(y=np.arange(90) % 2), r"class 'eel' \(number 2\) has no samples in all"),
        (bad(x=floats(np.nan)), r"7 values are NaN.*the first in sample 7 at \[1, 2\]"),
        (bad(x=floats(np.inf)), "7 values are NaN, infinite"),
        (bad(x=floats(1e60)), "beyond float32"),
        (bad(x=np.zeros((90, 2), bool)), "dtype bool; give uint8 images, floats or integers"),
        (bad(x=np.zeros((90, 2), complex)), "dtype complex128"),
        (bad(x=np.full((90, 2), None)), "dtype object"),
        (bad(x=np.zeros((90, 0))), r"shape \[90, 0\] holds no numbers"),
        (bad(x=np.zeros((0, 2)), y=np.zeros(0, int)), "no samples"),
        (bad(arrays={}), "no inputs"),
        (bad(arrays={"../up": np.zeros((90, 2))}), "not a usable name"),
        (bad(arrays={"labels": np.zeros((90, 2))}), "not a usable name"),
        (bad(classes=("cat",)), r"1 class \(cat\); classification needs at least 2"),
        (bad(classes=("cat", "dog", "cat")), "class names occur twice: cat"),
        (bad(task="regression"), "3 classes in a regression task"),
        (bad(task="regression", classes=(), y=np.array(["a"] * 90)), "give numbers"),
        (bad(task="regression", classes=(), y=np.full(90, np.nan)), "90 values are NaN"),
        (bad(task="sorting"), "task: unknown 'sorting'"),
        (raw(splits={"test": images(9)}), "give 'all', or 'train'"),
        (raw(splits={"train": images(9), "dev": images(9)}), "give 'all', or 'train'"),
        (
            raw(
                splits={"train": images(60), "test": Split({"image": np.zeros((3, 5))}, [0, 1, 2])}
            ),
            r"train has image uint8 \[2, 4, 4\], test has image float32 \[5\]; make them alike",
        ),
        (raw(inputs={"x": InputSpec((1,))}), r"specs for \['x'\], arrays for \['image'\]"),
        (raw(inputs={"image": InputSpec((2, 4, 5))}), r"is said to be uint8 \[2, 4, 5\] and is"),
        (
            raw(inputs={"image": InputSpec((2, 4, 4), "uint8", (0.1,), (1.0,))}),
            "mean and std need 2 entries",
        ),
        (
            raw(inputs={"image": InputSpec((2, 4, 4), "uint8", (0.1, 0.1), (1.0, 0.0))}),
            "every std must be above 0",
        ),
    ],
)
def test_bad_data_are_refused_with_a_reason(
    tmp_path: Path, source: RawDataset, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, source)
    assert not (tmp_path / "data").exists()


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    source = bad(y=np.arange(90) % 4, x=floats(np.nan), classes=("cat", "dog", "dog"))
    with pytest.raises(ConfigError) as error:
        made(tmp_path, source)
    assert len(error.value.problems) == 3
    assert all(p.startswith("dataset pets") for p in error.value.problems)
