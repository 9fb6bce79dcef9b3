"""Prune a trained network and fine-tune what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.types import (
    CHECKPOINT,
    DATASET,
    Artifact,
    Context,
    Inputs,
    ModelSpec,
    Need,
    Stage,
    StageResult,
    maybe,
    one,
)
from compressor.pruning.options import PruneOptions

if TYPE_CHECKING:
    from compressor.data.dataset import Dataset


class PruneConfig(PruneOptions):
    """Options of ``prune``."""


def prune(cfg: PruneConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Load, prune, recalibrate, fine-tune (with the teacher's help where there is one), save."""
    from compressor.core.locks import MACHINE
    from compressor.data import dataset
    from compressor.models import checkpoint
    from compressor.pruning.apply import prune_
    from compressor.training.distillation import check, distillation
    from compressor.training.tensors import threads

    artifact, taught = one(inputs, "model"), maybe(inputs, "teacher")
    _heard(cfg, taught)
    data = dataset.load(one(inputs, "data").path)
    spec = _spec(artifact.spec, artifact.name)
    _same_data(spec, artifact.name, data)
    model = checkpoint.load(artifact.path, spec)
    loss = None
    if taught is not None and cfg.finetune is not None:
        teaching = _spec(taught.spec, taught.name)
        _same_data(teaching, taught.name, data)
        check(cfg, cfg.finetune, data.task, len(data.classes))
        loss = distillation(
            checkpoint.load(taught.path, teaching),
            cfg,
            task=data.task,
            label_smoothing=cfg.finetune.label_smoothing,
        )
    with MACHINE.share(), threads(ctx.threads):
        metrics = prune_(model, data, spec, cfg, ctx, loss)
    return StageResult({"model": checkpoint.save(ctx.workdir / "model", model, spec)}, metrics)


def _spec(spec: ModelSpec | None, name: str) -> ModelSpec:
    if spec is None:
        raise IntegrityError(f"prune: {name} has no record of its network; run its stage again")
    return spec


def _heard(cfg: PruneConfig, teacher: Artifact | None) -> None:
    """Raise ConfigError for a teacher without say, and for words to a teacher that is not there."""
    if teacher is not None and cfg.finetune is None:
        raise ConfigError(
            f"prune: finetune: null does not train, so teacher {teacher.name} would not be used; "
            "give finetune, or leave the input teacher out"
        )
    ignored = cfg.ignored()
    if teacher is None and ignored:
        raise ConfigError(
            f"prune: {', '.join(ignored)}: nothing to do without a teacher; add it to the stage, "
            f"in: {{teacher: ...}}, or leave {'them' if len(ignored) > 1 else 'it'} out"
        )


def _same_data(spec: ModelSpec, name: str, data: Dataset) -> None:
    if (spec.classes, spec.inputs) != (data.classes, data.inputs):
        raise ConfigError(
            f"prune: {name} was not trained for the classes and inputs of dataset {data.name}; "
            "use the same data stage"
        )


PRUNE = Stage(
    name="prune",
    config=PruneConfig,
    run=prune,
    needs={
        "model": Need(CHECKPOINT),
        "data": Need(DATASET),
        "teacher": Need(CHECKPOINT, optional=True),
    },
    makes={"model": CHECKPOINT},
    needs_extra=("torch", "torch_pruning"),
)
