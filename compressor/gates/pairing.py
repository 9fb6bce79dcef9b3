"""Stored predictions of two models, brought to the same samples in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.core.errors import IntegrityError
from compressor.core.tasks import Task
from compressor.runtime import predict

Scores = NDArray[np.float64]


class DifferentSamples(IntegrityError):
    """Two predictions files are not of the same test set."""


@dataclass(frozen=True, slots=True)
class Side:
    """One model's predictions on test and what made them.

    Attributes:
        name: For messages.
        file: The predictions.
        model: Digest of the model file.
        instruction_set: Of the CPU that made the predictions.
        cpu: Its name.
        features: What it has of the instructions that select kernels.
    """

    name: str
    file: Path
    model: str
    instruction_set: str
    cpu: str
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two models on the same samples, one entry per sample [n].

    Attributes:
        base: ``Task.score`` of the base model.
        new: Of the new model.
        labels: True class or value.
        flips: Samples whose prediction differs, right or wrong.
    """

    base: Scores
    new: Scores
    labels: Scores
    flips: int


def scores(side: Side, task: Task) -> Scores:
    """Score per sample. Raises IntegrityError if the file is missing or damaged."""
    stored = predict.load(side.file)
    return task.score(stored.predicted, np.asarray(stored.labels, dtype=np.float64))


def pair(base: Side, new: Side, task: Task) -> Pairing:
    """Pair by sample id.

    Raises:
        DifferentSamples: They are not of the same samples, or of other labels.
        IntegrityError: A file is missing or damaged.
    """
    one, two = predict.load(base.file), predict.load(new.file)
    first, second = np.argsort(one.ids), np.argsort(two.ids)
    if not np.array_equal(one.ids[first], two.ids[second]):
        shared = len(np.intersect1d(one.ids, two.ids))
        raise DifferentSamples(
            f"{base.name} has predictions for {len(one)} test samples, {new.name} for {len(two)}, "
            f"and {shared} of them are the same; only one test set can be compared"
        )
    labels = np.asarray(one.labels, dtype=np.float64)[first]
    if not np.array_equal(labels, np.asarray(two.labels, dtype=np.float64)[second]):
        raise DifferentSamples(f"{base.name} and {new.name}: the same test samples, other labels")
    before, after = one.predicted[first], two.predicted[second]
    return Pairing(
        task.score(before, labels),
        task.score(after, labels),
        labels,
        int((before != after).sum()),
    )
