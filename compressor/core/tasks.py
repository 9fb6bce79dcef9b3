"""What a prediction, its loss and its score are, so that accuracy is not wired into the frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from compressor.core.errors import ConfigError, suggestion


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of problem.

    Attributes:
        name: ``classification`` or ``regression``.
        metric: Name of the headline metric.
        unit: Its unit.
        better: Its direction.
        loss: Name of the training loss in ``training.losses``.
        predict: outputs [n, ...] float32 -> prediction per sample.
        score: (prediction [n], label [n]) -> one number per sample; the mean times ``scale`` is
            the metric.
        scale: 100 for percent.
    """

    name: str
    metric: str
    unit: str
    better: Literal["higher", "lower"]
    loss: str
    predict: Callable[[NDArray[np.float32]], NDArray[np.float64]]
    score: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]
    scale: float = 1.0


def _argmax(outputs: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(outputs.argmax(axis=1), dtype=np.float64)


def _right(predicted: NDArray[np.float64], label: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(predicted == label, dtype=np.float64)


def _value(outputs: NDArray[np.float32]) -> NDArray[np.float64]:
    return outputs.reshape(len(outputs), -1)[:, 0].astype(np.float64)


def _absolute(predicted: NDArray[np.float64], label: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.abs(predicted - label)


CLASSIFICATION = Task(
    "classification", "accuracy", "%", "higher", "cross_entropy", _argmax, _right, scale=100.0
)
REGRESSION = Task("regression", "mae", "units", "lower", "mse", _value, _absolute)

TASKS = {task.name: task for task in (CLASSIFICATION, REGRESSION)}


def task(name: str) -> Task:
    """Look a task up by name. Raises ConfigError naming the known ones."""
    if name not in TASKS:
        raise ConfigError(f"task: unknown {name!r}{suggestion(name, TASKS)}")
    return TASKS[name]
