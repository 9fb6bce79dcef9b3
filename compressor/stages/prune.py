"""Prune a trained network and fine-tune what is left."""

from __future__ import annotations

from compressor.core.errors import ConfigError
from compressor.core.types import (
    CHECKPOINT,
    DATASET,
    Context,
    Inputs,
    Need,
    Stage,
    StageResult,
    maybe,
)
from compressor.pruning.options import PruneOptions


class PruneConfig(PruneOptions):
    """Options of ``prune``."""


def prune(cfg: PruneConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Load, prune, recalibrate, fine-tune (with the teacher's help where there is one), save."""
    from compressor.core.locks import MACHINE
    from compressor.models import checkpoint
    from compressor.pruning.apply import prune_
    from compressor.training.taught import heard, lesson, network
    from compressor.training.tensors import threads

    teacher = maybe(inputs, "teacher")
    if teacher is not None and cfg.finetune is None:
        raise ConfigError(
            f"prune: finetune: null does not train, so teacher {teacher.name} would not be used; "
            "give finetune, or leave the input teacher out"
        )
    heard("prune", cfg, teacher)
    model, spec, data = network("prune", inputs)
    loss = lesson("prune", inputs, data, cfg, cfg.finetune)
    with MACHINE.share(), threads(ctx.threads):
        metrics = prune_(model, data, spec, cfg, ctx, loss)
    return StageResult({"model": checkpoint.save(ctx.workdir / "model", model, spec)}, metrics)


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
