"""Train a student on labels and on what its teacher says."""

from __future__ import annotations

from compressor.core.errors import ConfigError
from compressor.core.tasks import task as find_task
from compressor.core.types import (
    CHECKPOINT,
    DATASET,
    Context,
    Inputs,
    Need,
    Stage,
    StageResult,
    one,
)
from compressor.training.introduced import NetworkOptions, code, externals, spec
from compressor.training.options import DistillOptions


class DistillConfig(NetworkOptions, DistillOptions):
    """Options of ``distill``: those of ``train``, and how to listen to the teacher."""


def distill(cfg: DistillConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Build the student, train it under the teacher, save it."""
    from compressor.data import dataset
    from compressor.models import build, checkpoint, model_spec
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
