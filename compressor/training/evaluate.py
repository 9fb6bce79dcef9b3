"""What a torch model says about a split, and how good that is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.core.tasks import Task
from compressor.data.batches import batches
from compressor.data.dataset import Dataset
from compressor.training.tensors import to_tensors


class Interrupted(Exception):
    """The caller of :func:`evaluate` asked to stop between two batches."""


def evaluate(
    model: nn.Module,
    data: Dataset,
    split: str,
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 512,
    stop: Callable[[], bool] | None = None,
) -> NDArray[np.float32]:
    """Outputs of a model over a whole split, in the split's order.

    The model is moved to ``device`` and runs in eval mode without gradients in fp32; its mode is
    put back afterwards. The batch size changes the result by rounding only.

    Args:
        model: Takes the dataset's inputs in their order, normalised.
        data: The dataset.
        split: ``train``, ``val``, ``test`` or ``calibration``; without augmentation.
        device: Where to run.
        batch_size: Samples per call.
        stop: Asked before each batch whether to stop.

    Returns:
        float32 [n, ...].

    Raises:
        Interrupted: ``stop`` said so.
    """
    device = torch.device(device)
    was_training = model.training
    model.to(device).eval()
    rows: list[NDArray[np.float32]] = []
    try:
        with torch.no_grad():
            for batch in batches(data.split(split), data.inputs, batch_size):
                if stop is not None and stop():
                    raise Interrupted
                outputs = model(*to_tensors(batch, data.inputs, device).inputs)
                rows.append(outputs.float().cpu().numpy())
    finally:
        model.train(was_training)
    return np.concatenate(rows)


def score(outputs: NDArray[np.float32], labels: NDArray[np.generic], task: Task) -> float:
    """The task's metric (accuracy in percent, mean absolute error) of outputs [n, ...]."""
    each = task.score(task.predict(outputs), np.asarray(labels, dtype=np.float64).reshape(-1))
    return float(each.mean()) * task.scale
