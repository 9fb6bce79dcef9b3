"""Train a network on labels."""

from __future__ import annotations

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


class TrainConfig(NetworkOptions):
    """Options of ``train``: those of a training run, and the network."""


def train(cfg: TrainConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Build, train, save."""
    from compressor.data import dataset
    from compressor.models import build, checkpoint, model_spec
    from compressor.training.loop import fit_

    data = dataset.load(one(inputs, "data").path)
    network = model_spec(cfg.model, data)
    model = build(network, "train.model", seed=ctx.seed, say=ctx.progress.say)
    fit = fit_(model, data, network, cfg, ctx)
    path = checkpoint.save(ctx.workdir / "model", model, network)
    return StageResult({"model": path}, fit.metrics(find_task(data.task)))


TRAIN = Stage(
    name="train",
    config=TrainConfig,
    run=train,
    needs={"data": Need(DATASET)},
    makes={"model": CHECKPOINT},
    externals=externals,
    code=code,
    spec=spec,
    needs_extra=("torch",),
)
