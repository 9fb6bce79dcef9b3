"""The dataset folder: written, opened, refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compressor.core.errors import IntegrityError
from compressor.core.hashing import digest_path
from compressor.core.types import InputSpec
from compressor.data.dataset import Dataset, Split, as_float, load, normalise, save

SPECS = {
    "image": InputSpec((1, 3, 2), "uint8", (0.5,), (0.25,)),
    "extra": InputSpec((2,), "float32"),
}


def part(n: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    return Split(
        {
            "image": rng.integers(0, 256, (n, 1, 3, 2), dtype=np.uint8),
            "extra": rng.normal(size=(n, 2)).astype(np.float32),
        },
        rng.integers(0, 2, n),
        np.arange(n, dtype=np.uint64) + np.uint64(seed * 100),
    )


def write(folder: Path, seed: int = 0, classes: tuple[str, ...] = ("no", "yes")) -> Dataset:
    names = ("train", "val", "test", "calibration")
    return save(
        folder,
        name="toy",
        task="classification",
        classes=classes,
        inputs=SPECS,
        splits={name: part(4 + k, seed + k) for k, name in enumerate(names)},
        duplicates={"train_test": 0, "within_train": 0},
    )


def test_what_is_saved_is_what_is_opened(tmp_path: Path) -> None:
    made = write(tmp_path / "d")
    opened = load(tmp_path / "d")
    assert opened == made
    assert opened.counts == {"train": 4, "val": 5, "test": 6, "calibration": 7}
    assert list(opened.inputs) == ["image", "extra"]  # the order of forward's arguments
    assert opened.inputs == SPECS
    got, want = opened.split("test"), part(6, 2)
    assert len(got) == 6
    for name in SPECS:
        assert np.array_equal(got.inputs[name], want.inputs[name])
    assert np.array_equal(got.labels, want.labels)
    assert np.array_equal(got.ids, want.ids)


def test_equal_content_gives_equal_bytes_and_other_content_another_fingerprint(
    tmp_path: Path,
) -> None:
    first, again = write(tmp_path / "a"), write(tmp_path / "b")
    assert digest_path(first.path) == digest_path(again.path)
    prints = {
        first.fingerprint,
        write(tmp_path / "c", seed=1).fingerprint,
        write(tmp_path / "d", classes=("no", "perhaps")).fingerprint,
    }
    assert len(prints) == 3


def test_as_float_and_normalise_equal_a_hand_computation() -> None:
    spec = InputSpec((2, 1, 2), "uint8", (0.5, 0.0), (0.5, 2.0))
    x = np.array([[[[0, 255]], [[51, 102]]]], dtype=np.uint8)
    assert np.allclose(as_float(x, spec), [[[[0, 1]], [[0.2, 0.4]]]], atol=1e-7)
    assert as_float(x, spec).dtype == np.float32
    want = [[[[-1, 1]], [[0.1, 0.2]]]]
    assert np.allclose(normalise(as_float(x, spec), spec), want, atol=1e-7)


def test_other_types_pass_unchanged_and_per_feature_normalisation_works() -> None:
    whole = np.arange(4).reshape(2, 2)
    assert as_float(whole, InputSpec((2,), "int64")) is whole
    assert normalise(whole, InputSpec((2,), "int64")) is whole
    spec = InputSpec((2,), "float32", (1.0, 2.0), (2.0, 4.0))
    x = np.array([[3, 2], [1, -2]], dtype=np.float32)
    assert np.allclose(normalise(as_float(x, spec), spec), [[1, 0], [0, -1]])


def test_arguments_are_left_alone() -> None:
    spec = InputSpec((2,), "float32", (1.0, 2.0), (2.0, 4.0))
    x = np.ones((3, 2), dtype=np.float32)
    normalise(x, spec)
    assert np.all(x == 1)


def test_a_folder_without_a_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="not a dataset folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"classes": 3}, "classes"),
        ({"inputs": {}}, "inputs"),
        ({"extra": 1}, "extra"),
        ({"splits": {"dev": 3}}, "splits"),
        ({"order": ["image"]}, "not usable names"),
        ({"order": ["../x"], "inputs": {"../x": {"shape": [1]}}}, "not usable names"),
    ],
)
def test_a_malformed_record_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    file = write(tmp_path / "d").path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(IntegrityError, match=message):
        load(tmp_path / "d")


def test_arrays_that_differ_from_the_record_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "d")
    with pytest.raises(IntegrityError, match="no split 'dev'; it has"):
        data.split("dev")
    file = data.path / "train.image.npy"
    np.save(file, np.zeros((4, 1, 3, 3), np.uint8))
    with pytest.raises(IntegrityError, match=r"uint8 \[4, 1, 3, 3\], dataset.json says"):
        data.split("train")
    file.write_bytes(b"\x93NUMPY")
    with pytest.raises(IntegrityError, match=r"not a readable \.npy"):
        data.split("train")
    file.write_bytes(np.lib.format.magic(1, 0) + b"")
    with pytest.raises(IntegrityError, match=r"not a readable \.npy"):
        data.split("train")
    file.unlink()
    with pytest.raises(IntegrityError, match="missing from the dataset"):
        data.split("train")


def test_object_arrays_are_never_unpickled(tmp_path: Path) -> None:
    data = write(tmp_path / "d")
    np.save(data.path / "train.labels.npy", np.array([{}] * 4, dtype=object), allow_pickle=True)
    with pytest.raises(IntegrityError, match="labels"):
        data.split("train")
