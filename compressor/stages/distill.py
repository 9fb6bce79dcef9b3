"""Train a student on labels and on what its teacher says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.core.errors import ConfigError
from compressor.core.tasks import task as find_task
from compressor.core.types import (
    CHECKPOINT,
    DATASET,
    Context,
    Inputs,
    ModelSpec,
    Need,
    Stage,
    StageResult,
    one,
)
from compressor.models import ModelConfig, model_spec
from compressor.training.options import DistillOptions, TrainOptions


class DistillConfig(TrainOptions, DistillOptions):
    """Options of ``distill``: a training run, how to listen to the teacher, and the student.

    Attributes:
        model: The student, its own arguments, and weights to start from.
    """

    model: ModelConfig


def spec(cfg: DistillConfig, inputs: Inputs) -> ModelSpec:
    """The student for the classes and shapes of the dataset."""
    from compressor.data import dataset

    return model_spec(cfg.model, dataset.load(one(inputs, "data").path))


def externals(cfg: DistillConfig) -> Sequence[Path]:
    """The file of weights, if there is one."""
    return cfg.model.externals()


def code(cfg: DistillConfig) -> Sequence[str]:
    """The student's function."""
    return [cfg.model.factory()]


def distill(cfg: DistillConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Build the student, train it under the teacher, save it."""
    from compressor.data import dataset
    from compressor.models import build, checkpoint
    from compressor.training import distillation
    from compressor.training.loop import fit_

    data = dataset.load(one(inputs, "data").path)
    network = model_spec(cfg.model, data)
    distillation.check(cfg, cfg, data.task, len(data.classes))
    artifact = one(inputs, "teacher")
    taught = artifact.spec
    if taught is None or (taught.classes, taught.inputs) != (network.classes, network.inputs):
        raise ConfigError(
            f"distill: teacher {artifact.name} was not trained for the classes and inputs of "
            f"dataset {data.name}; train it on the same data stage"
        )
    teacher = checkpoint.load(artifact.path, taught)
    student = build(network, "distill.model", seed=ctx.seed, say=ctx.progress.say)
    loss = distillation.distillation(
        teacher, cfg, task=data.task, label_smoothing=cfg.label_smoothing
    )
    fit = fit_(student, data, network, cfg, ctx, loss=loss, label="distill")
    path = checkpoint.save(ctx.workdir / "model", student, network)
    return StageResult({"model": path}, fit.metrics(find_task(data.task)))


DISTILL = Stage(
    name="distill",
    config=DistillConfig,
    run=distill,
    needs={"data": Need(DATASET), "teacher": Need(CHECKPOINT)},
    makes={"model": CHECKPOINT},
    externals=externals,
    code=code,
    spec=spec,
    needs_extra=("torch",),
)
