"""A teacher as a loss function: for students and for fine-tuning pruned or quantized networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.core.errors import ConfigError
from compressor.training.losses import LossFunction, dist_loss, dkd_loss, kd_loss, task_loss
from compressor.training.options import DistillOptions, TrainOptions
from compressor.training.tensors import TensorBatch


def check(options: DistillOptions, train: TrainOptions, task: str, classes: int) -> None:
    """Refuse combinations that have no meaning.

    Raises:
        ConfigError: All problems at once.
    """
    problems = []
    if task == "regression" and options.loss != "kd":
        problems.append(f"loss: {options.loss} compares classes; use kd for regression")
    if options.loss == "dkd" and classes == 2:
        problems.append("loss: dkd has no wrong classes to compare with 2 classes; use kd")
    if options.loss == "dkd" and train.augment.mixup:
        problems.append("loss: dkd needs one label per sample; use augment.mixup: 0, or kd or dist")
    if problems:
        raise ConfigError(*problems)


def distillation(
    teacher: nn.Module,
    options: DistillOptions,
    *,
    task: str = "classification",
    label_smoothing: float = 0.0,
) -> LossFunction:
    """``ce_weight * labels + kd_weight * distance to the teacher`` as a loss for ``fit_``.

    The teacher sees the very tensor that the student saw, crops, flips and mixup included, so
    nothing can be paired wrongly. It is frozen and put in eval mode here, and moved to the
    batch's device at the first call: its parameters and norm statistics never change.

    With ``kd_weight: 0`` the teacher is never run, and with ``ce_weight: 1`` on top the result is
    bit for bit what training on labels gives.

    Args:
        teacher: Gives outputs of the student's shape.
        options: Weights, temperature and kind of distance.
        task: ``classification`` or ``regression`` (distance = mean squared error of outputs).
        label_smoothing: For the label term only.

    Raises:
        ConfigError: At the first batch, if the outputs of the two differ in shape.
    """
    labels = task_loss(task, label_smoothing)
    if options.kd_weight == 0:
        return lambda outputs, batch: _weighted(labels(outputs, batch), options.ce_weight)
    teacher.requires_grad_(False).eval()
    moved = False

    def loss(outputs: Tensor, batch: TensorBatch) -> Tensor:
        nonlocal moved
        if not moved:
            teacher.to(outputs.device)
            moved = True
        with torch.no_grad():
            target = teacher(*batch.inputs).to(outputs.dtype)
        if target.shape != outputs.shape:
            raise ConfigError(
                f"distill: the teacher gives {list(target.shape)}, the student "
                f"{list(outputs.shape)}; both must be trained for the same classes"
            )
        soft = _weighted(_distance(outputs, target, batch, options, task), options.kd_weight)
        if options.ce_weight == 0:
            return soft
        return soft + _weighted(labels(outputs, batch), options.ce_weight)

    return loss


def _weighted(loss: Tensor, weight: float) -> Tensor:
    return loss if weight == 1 else weight * loss


def _distance(
    student: Tensor, teacher: Tensor, batch: TensorBatch, options: DistillOptions, task: str
) -> Tensor:
    if task == "regression":
        return nn.functional.mse_loss(student, teacher)
    if options.loss == "dkd":
        return dkd_loss(student, teacher, batch.labels, options.temperature, options.nckd_weight)
    if options.loss == "dist":
        return dist_loss(student, teacher, options.temperature)
    return kd_loss(student, teacher, options.temperature)
