"""Fine-tune a network on the integers that ``quantize`` will give it."""

from __future__ import annotations

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
from compressor.training.options import QatOptions


class QatConfig(QatOptions):
    """Options of ``qat``: those of a training run, of a teacher, and of quantize's grid."""


def qat(cfg: QatConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Load, fold, fine-tune under fake quantization (with a teacher where there is one), save."""
    from compressor.core.locks import MACHINE
    from compressor.models import checkpoint
    from compressor.quantization.grids import Grids
    from compressor.training.qat import qat_
    from compressor.training.taught import heard, lesson, network
    from compressor.training.tensors import threads

    heard("qat", cfg, maybe(inputs, "teacher"))
    model, spec, data = network("qat", inputs)
    loss = lesson("qat", inputs, data, cfg, cfg)
    grids = Grids(cfg.calibrator, cfg.percentile, cfg.weight_bits)
    with MACHINE.share(), threads(ctx.threads):
        metrics = qat_(model, data, spec, cfg, ctx, grids, loss)
    return StageResult({"model": checkpoint.save(ctx.workdir / "model", model, spec)}, metrics)


QAT = Stage(
    name="qat",
    config=QatConfig,
    run=qat,
    needs={
        "model": Need(CHECKPOINT),
        "data": Need(DATASET),
        "teacher": Need(CHECKPOINT, optional=True),
    },
    makes={"model": CHECKPOINT},
    needs_extra=("torch",),
)
