"""What a training run comes to: its length before, its history after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.core.tasks import Task
from compressor.core.types import Metric
from compressor.data.batches import count
from compressor.data.dataset import Dataset
from compressor.training.options import TrainOptions


@dataclass(frozen=True, slots=True)
class Fit:
    """What came of a run.

    Attributes:
        history: Per epoch ``epoch`` (from 1), ``loss`` (mean over steps), ``score`` (the task's
            metric on val: accuracy in percent, mean absolute error) and ``lr`` (of its last step).
        best_epoch: The epoch with the best score; 0 if there was no epoch.
        steps: Optimizer steps taken.
        score: On val, of the weights that the model now has.
        stopped_early: ``patience`` ran out.
    """

    history: tuple[Mapping[str, float], ...]
    best_epoch: int
    steps: int
    score: float
    stopped_early: bool

    def metrics(self, task: Task) -> dict[str, Metric]:
        """How the run went, as a stage reports it; the engine measures the model on test."""
        found = {
            "epochs": Metric(float(len(self.history)), "count", "lower"),
            "best_epoch": Metric(float(self.best_epoch), "count", "lower"),
            "val_score": Metric(self.score, task.unit, task.better),
        }
        if self.history:
            found["loss"] = Metric(self.history[-1]["loss"], "loss", "lower")
        return found


def steps_per_epoch(data: Dataset, options: TrainOptions) -> int:
    """Optimizer steps of one epoch; incomplete batches count only where there is no other."""
    n = data.counts["train"]
    return count(n, options.batch_size, drop_last=n >= options.batch_size)


def total_steps(data: Dataset, options: TrainOptions) -> int:
    """Optimizer steps of a whole run without early stopping."""
    return options.epochs * steps_per_epoch(data, options)
