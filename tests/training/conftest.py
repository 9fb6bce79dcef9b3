"""A tiny dataset, a tiny network and a context that only takes notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.core.types import Context, InputSpec, ModelSpec
from compressor.data import dataset
from compressor.data.dataset import Dataset, Split

CLASSES = ("left", "right", "top")


@dataclass
class Notes:
    """A Progress that remembers."""

    updates: list[tuple[int, int, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def update(self, done: int, total: int, note: str = "") -> None:
        self.updates.append((done, total, note))

    def say(self, line: str) -> None:
        self.lines.append(line)


class NoTimings:
    """A Timings that training must not use."""

    def measure(self, models: Any, protocol: Any, feed: Any = None) -> Any:
        raise AssertionError("training measures nothing")


class TinyNet(nn.Module):
    """Conv, batch norm, dropout, linear: one of everything that a checkpoint must carry."""

    def __init__(self, channels: int = 2, classes: int = 3, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(width * 4, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.conv(image)))
        pooled = nn.functional.adaptive_avg_pool2d(hidden, 2).flatten(1)
        return self.head(self.drop(pooled))


def tiny_net(seed: int = 0, **arguments: Any) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TinyNet(**arguments)


def image_split(n: int, seed: int) -> Split:
    """Images [n, 2, 8, 8] with a bright patch whose place is the class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), n)
    images = rng.integers(0, 120, (n, 2, 8, 8)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        where = [(slice(2, 6), slice(0, 3)), (slice(2, 6), slice(5, 8)), (slice(0, 3), slice(2, 6))]
        image[:, *where[label]] += 90
    ids = np.arange(n, dtype=np.uint64) + np.uint64(1000 * seed)
    return Split({"image": images}, labels.astype(np.int64), ids)


def make_data(folder: Path, train: int = 90, val: int = 40, calibration: int = 10) -> Dataset:
    splits = {
        "train": image_split(train, 1),
        "val": image_split(val, 2),
        "test": image_split(20, 3),
        "calibration": image_split(calibration, 4),
    }
    return dataset.save(
        folder,
        name="patches",
        task="classification",
        classes=CLASSES,
        inputs={"image": InputSpec((2, 8, 8), "uint8", (0.3, 0.3), (0.25, 0.25))},
        splits=splits,
        duplicates={"train_test": 0, "within_train": 0},
    )


def spec_of(data: Dataset) -> ModelSpec:
    return ModelSpec("tests.training.conftest:TinyNet", {}, data.classes, data.inputs, data.task)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_data(tmp_path_factory.mktemp("data") / "dataset")


@pytest.fixture
def spec(data: Dataset) -> ModelSpec:
    return spec_of(data)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def context(tmp_path: Path, notes: Notes) -> Callable[..., Context]:
    """A context; ``resume`` names the folder that a second run goes on from."""

    def make(resume: str = "resume", seed: int = 0, device: str = "cpu") -> Context:
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        return Context(work, tmp_path / resume, seed, device, 1, notes, NoTimings())

    return make


def weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Every tensor of the state as an array, for exact comparison."""
    return {name: value.detach().cpu().numpy().copy() for name, value in model.state_dict().items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in a)
