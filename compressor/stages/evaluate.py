"""Stage ``evaluate``: what a model says about every sample of a split, and how good that is.

The engine runs it on every model that a pipeline makes, on val and on test.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compressor.core.config import Config
from compressor.core.environment import require
from compressor.core.errors import ConfigError
from compressor.core.tasks import task
from compressor.core.types import (
    CHECKPOINT,
    DATASET,
    ONNX,
    PREDICTIONS,
    Artifact,
    Context,
    Inputs,
    Metric,
    Need,
    Stage,
    StageResult,
    one,
)

if TYPE_CHECKING:
    from compressor.data.dataset import Dataset


class EvaluateConfig(Config):
    """Which split, and how many samples per call (a matter of memory, not of results)."""

    split: Literal["val", "test"] = "val"
    batch: int = Field(default=256, ge=1)


def run(config: EvaluateConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Predict every sample of the split; count parameters, MACs and bytes."""
    from compressor.data import dataset
    from compressor.runtime import predict

    model = one(inputs, "model")
    data = dataset.load(one(inputs, "data").path)
    judged = task(data.task)
    split = data.split(config.split)
    outputs, sizes = (_torch if model.kind == CHECKPOINT else _onnx)(model, data, config, ctx)
    rows = predict.make(model.name, split.ids, split.labels, outputs, judged)
    path = ctx.workdir / "predictions.npz"
    predict.save(path, rows)
    score = Metric(predict.score(rows, judged), judged.unit, judged.better)
    counts = {n: Metric(float(v), _UNITS.get(n, "count"), "lower") for n, v in sizes.items()}
    return StageResult({"predictions": path}, {judged.metric: score, **counts})


_UNITS = {"bytes": "bytes", "zstd_bytes": "bytes"}


def _torch(model: Artifact, data: Dataset, config: EvaluateConfig, ctx: Context) -> Any:
    require(("torch",), "train", "evaluating a checkpoint")
    from compressor.models import card, checkpoint
    from compressor.runtime.cost import sizes
    from compressor.training.evaluate import evaluate

    if model.spec is None:
        raise ConfigError(f"{model.name}: a checkpoint without its network's factory")
    network = checkpoint.load(model.path, model.spec)
    outputs = evaluate(network, data, config.split, device=ctx.device, batch_size=config.batch)
    counted, (plain, packed) = card.summary(model.path), sizes(model.path)
    counts = {key: counted[key] for key in ("parameters", "macs")}
    return outputs, {**counts, "bytes": plain, "zstd_bytes": packed}


def _onnx(model: Artifact, data: Dataset, config: EvaluateConfig, ctx: Context) -> Any:
    from compressor.runtime.cost import graph_cost
    from compressor.runtime.predict import run as predict_all
    from compressor.runtime.session import open_session

    session = open_session(model.path, threads=ctx.threads)
    outputs = predict_all(session, data.split(config.split).inputs, config.batch)
    return outputs, asdict(graph_cost(model.path))


EVALUATE = Stage(
    name="evaluate",
    config=EvaluateConfig,
    run=run,
    needs={"model": Need(ONNX), "data": Need(DATASET)},  # the engine also gives checkpoints
    makes={"predictions": PREDICTIONS},
)
