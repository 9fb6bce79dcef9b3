"""Train a network on labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from compressor.training.options import TrainOptions


class TrainConfig(TrainOptions):
    """Options of ``train``: those of a training run, and the network.

    Attributes:
        model: Which network, its own arguments, and weights to start from. With ``epochs: 0``
            such weights are taken as they are: a network that was trained elsewhere.
    """

    model: ModelConfig


def spec(cfg: TrainConfig, inputs: Inputs) -> ModelSpec:
    """The network for the classes and shapes of the dataset."""
    from compressor.data import dataset

    return model_spec(cfg.model, dataset.load(one(inputs, "data").path))


def externals(cfg: TrainConfig) -> Sequence[Path]:
    """The file of weights, if there is one."""
    return cfg.model.externals()


def code(cfg: TrainConfig) -> Sequence[str]:
    """The network's function."""
    return [cfg.model.factory()]


def train(cfg: TrainConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Build, train, save."""
    from compressor.data import dataset
    from compressor.models import build, checkpoint
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
