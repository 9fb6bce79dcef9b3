"""What ``prune`` and ``qat`` begin with: a trained network, its data, perhaps a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.types import Artifact, Inputs, ModelSpec, maybe, one
from compressor.training.options import DistillOptions, TrainOptions

if TYPE_CHECKING:
    from torch import nn

    from compressor.data.dataset import Dataset
    from compressor.training.losses import LossFunction


def network(stage: str, inputs: Inputs) -> tuple[nn.Module, ModelSpec, Dataset]:
    """The inputs ``model`` and ``data`` of a stage, loaded.

    Raises:
        ConfigError: The network was trained on other data.
        IntegrityError: It cannot be rebuilt.
    """
    from compressor.data import dataset
    from compressor.models import checkpoint

    artifact = one(inputs, "model")
    data = dataset.load(one(inputs, "data").path)
    spec = _spec(stage, artifact, data)
    return checkpoint.load(artifact.path, spec), spec, data


def lesson(
    stage: str, inputs: Inputs, data: Dataset, options: DistillOptions, train: TrainOptions | None
) -> LossFunction | None:
    """The loss with the input ``teacher``; None without one, or where nothing is trained.

    Raises:
        ConfigError: The teacher was trained on other data, or the options mean nothing.
        IntegrityError: It cannot be rebuilt.
    """
    from compressor.models import checkpoint
    from compressor.training.distillation import check, distillation

    artifact = maybe(inputs, "teacher")
    if artifact is None or train is None:
        return None
    spec = _spec(stage, artifact, data)
    check(options, train, data.task, len(data.classes))
    return distillation(
        checkpoint.load(artifact.path, spec),
        options,
        task=data.task,
        label_smoothing=train.label_smoothing,
    )


def heard(stage: str, options: DistillOptions, teacher: Artifact | None) -> None:
    """Raise ConfigError for words to a teacher that is not there."""
    ignored = options.ignored()
    if teacher is None and ignored:
        raise ConfigError(
            f"{stage}: {', '.join(ignored)}: nothing to do without a teacher; add it to the "
            f"stage, in: {{teacher: ...}}, or leave {'them' if len(ignored) > 1 else 'it'} out"
        )


def _spec(stage: str, artifact: Artifact, data: Dataset) -> ModelSpec:
    spec = artifact.spec
    if spec is None:
        raise IntegrityError(
            f"{stage}: {artifact.name} has no record of its network; run its stage again"
        )
    if (spec.classes, spec.inputs) != (data.classes, data.inputs):
        raise ConfigError(
            f"{stage}: {artifact.name} was not trained for the classes and inputs of dataset "
            f"{data.name}; use the same data stage"
        )
    return spec
