"""The stage `data`: its config, its key, its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compressor.core.errors import ConfigError
from compressor.core.types import InputSpec
from compressor.data.dataset import RawDataset, Split, load
from compressor.stages.data import DATA, DataConfig
from compressor.testing import check_stage, context

HERE = f"{__name__}:"


def plankton(size: int, noise: float = 0.5) -> RawDataset:
    """What a user writes."""
    x = np.random.default_rng(0).integers(0, 256, (40, 1, size, size), dtype=np.uint8)
    split = Split({"image": x}, np.arange(40) % 2)
    specs = {"image": InputSpec((1, size, size))}
    return RawDataset("plankton", "classification", ("alga", "krill"), specs, {"all": split})


def nothing() -> None:
    """Not a dataset."""


def npz(tmp_path: Path) -> Path:
    file = tmp_path / "toy.npz"
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[45:] = x[:5]
    np.savez(file, x=x[:40], y=np.arange(40) % 2, x_test=x[40:], y_test=np.arange(10) % 2)
    return file


def config(**values: Any) -> DataConfig:
    return DataConfig.model_validate(values)


def test_the_stage_keeps_its_contract(tmp_path: Path) -> None:
    settings = config(dataset="arrays", root=npz(tmp_path), calibration=8)
    metrics = ("train", "val", "test", "calibration", "classes", "duplicates_train_test")
    result = check_stage(DATA, settings, {}, tmp_path, metrics=metrics)
    got = {name: (metric.value, metric.unit) for name, metric in result.metrics.items()}
    assert got["train"] == (36, "count")
    assert got["duplicates_train_test"] == (5, "count")
    assert load(result.outputs["data"]).counts["calibration"] == 8


def test_leaks_between_train_and_test_are_said_aloud(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    DATA.run(config(dataset="arrays", root=npz(tmp_path), calibration=8), {}, ctx)
    assert any("5 of 10 test samples also occur in train" in s for s in ctx.progress.lines)


def test_digits_split_into_the_usual_1437_and_360(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    result = DATA.run(config(dataset="digits"), {}, context(tmp_path))
    data = load(result.outputs["data"])
    assert data.counts == {"train": 1293, "val": 144, "test": 360, "calibration": 512}
    assert data.inputs["image"].shape == (1, 32, 32)
    assert np.bincount(data.split("test").labels).min() >= 34


def test_a_users_function_gets_its_options(tmp_path: Path) -> None:
    settings = config(dataset=HERE + "plankton", options={"size": 6}, calibration=4)
    data = load(DATA.run(settings, {}, context(tmp_path)).outputs["data"])
    assert data.name == "plankton"
    assert data.inputs["image"].shape == (1, 6, 6)
    assert DATA.code(settings) == (HERE + "plankton",)
    assert DATA.externals(settings) == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": HERE + "plankton", "options": {"sise": 6}}, "takes no 'sise'; did you mean"),
        ({"dataset": HERE + "plankton"}, "size must be given"),
        ({"dataset": HERE + "plankton", "root": "tests"}, "takes no 'root'"),
        ({"dataset": HERE + "nothing"}, "returned NoneType; return compressor.data.RawDataset"),
        ({"dataset": HERE + "planktom"}, "has no 'planktom'; did you mean 'plankton'"),
        ({"dataset": "no_such_package.x:y"}, "no module 'no_such_package'"),
    ],
)
def test_a_users_mistakes_are_named(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DATA.run(config(**values), {}, context(tmp_path))


def test_every_default_becomes_concrete() -> None:
    settings = config(dataset="image_folder", root="somewhere")
    assert settings.options == {"channels": 3, "size": None}
    assert config(dataset="digits").options == {"size": 32}
    given = {"size": 16}
    assert config(dataset="digits", options=given).options == {"size": 16}
    assert config(dataset="digits").options == {"size": 32}  # the default was not written into
    again = DataConfig.model_validate_json(settings.model_dump_json(), strict=True)
    assert again == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "digts"}, "unknown name 'digts'; did you mean 'digits'"),
        ({"dataset": "my_pkg.data"}, "unknown name"),
        ({"dataset": "digits", "options": {"sise": 8}}, "options.sise: digits has none; did you"),
        ({"dataset": "digits", "options": {"size": "8"}}, 'size: got "8"; needs a whole'),
        ({"dataset": "digits", "options": {"size": 7}}, "got 7; needs at least 8"),
        ({"dataset": "digits", "root": "x"}, "root: dataset digits reads no folder"),
        ({"dataset": "digits", "download": True}, "download: dataset digits cannot"),
        ({"dataset": "cifar10"}, "root: dataset cifar10 needs to know where"),
        ({"dataset": "fashion_mnist", "download": True}, "root: dataset fashion_mnist needs"),
        ({"dataset": "cifar10", "options": {"root": "x"}}, "options.root: write it beside"),
        ({"dataset": "arrays", "root": "x", "options": {"inputs": []}}, "a list of at least 1"),
        ({"dataset": "image_folder", "root": "x", "options": {"channels": 2}}, "2; needs 1 or 3"),
        ({"dataset": "digits", "calibration": 0}, "greater than or equal to 1"),
        ({"dataset": "digits", "val": 0.0}, "greater than 0"),
        ({"dataset": "digits", "test": 1.0}, "less than 1"),
        ({"dataset": "digits", "limit": 0}, "greater than or equal to 1"),
        ({"dataset": "digits", "augment": True}, "Extra inputs"),
    ],
)
def test_a_wrong_config_is_refused_before_anything_runs(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**values)


def test_the_files_that_are_read_are_declared(tmp_path: Path) -> None:
    file = npz(tmp_path)
    assert list(DATA.externals(config(dataset="arrays", root=file))) == [file]
    user = config(dataset=HERE + "plankton", root=tmp_path)
    assert list(DATA.externals(user)) == [file]
    assert list(DATA.externals(config(dataset="digits"))) == []
    fetched = config(dataset="fashion_mnist", root=tmp_path, download=True)
    assert list(DATA.externals(fetched)) == []  # pinned by checksums
    for name in ("fashion_mnist", "cifar10", "image_folder", "arrays"):
        with pytest.raises(ConfigError, match="missing"):
            DATA.externals(config(dataset=name, root=tmp_path / "missing"))


def test_the_environment_decides_which_files_are_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte.gz").touch()
    monkeypatch.setenv("COMPRESSOR_FASHION_MNIST", str(tmp_path))
    found = DATA.externals(config(dataset="fashion_mnist"))
    assert {f.parent for f in found} == {tmp_path}
    assert len(found) == 4
