"""Stage ``export``: a checkpoint becomes one ONNX file that provably computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from compressor.core.config import Config
from compressor.core.environment import version
from compressor.core.errors import ConfigError
from compressor.core.types import (
    CHECKPOINT,
    DATASET,
    ONNX,
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


class ExportConfig(Config):
    """How to export.

    Attributes:
        opset: ONNX operator set of the file.
        input: ``float``: images enter as float32 in 0..1; ``uint8``: as stored.
        scheme: ``fp16`` halves weights and arithmetic, for CUDA.
        parity_samples: Training samples on which the file is compared with PyTorch.
    """

    opset: int = Field(default=18, ge=18, le=23)
    input: Literal["float", "uint8"] = "float"
    scheme: Literal["fp32", "fp16"] = "fp32"
    parity_samples: int = Field(default=64, ge=64)


def run(config: ExportConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Export, compare with PyTorch, and for ``fp16`` convert and compare again."""
    from compressor.data import dataset
    from compressor.export.formats import to_fp16
    from compressor.export.lower import lower
    from compressor.export.parity import FP16, check
    from compressor.models import checkpoint
    from compressor.runtime import metadata

    source = one(inputs, "model")
    if source.spec is None:
        raise ConfigError(f"{source.name}: the network's factory is not known; "
                          "export takes the checkpoint of a stage of this pipeline")  # fmt: skip
    spec = source.spec
    model = checkpoint.load(source.path, spec)
    data = dataset.load(one(inputs, "data").path)
    samples = _samples(data, config.parity_samples, ctx.seed)
    facts = {
        metadata.VERSION: version("compressor"),
        metadata.SOURCE: source.digest,
        metadata.DATASET: data.fingerprint,
    }
    path = ctx.workdir / "model.onnx"
    report = lower(model, spec, path, opset=config.opset, input=config.input, metadata=facts)
    parity = check(model, path, spec, samples, threads=ctx.threads)
    if config.scheme == "fp16":
        to_fp16(path, path)
        parity = check(model, path, spec, samples, tolerance=FP16, threads=ctx.threads)
    if report.denormals_flushed:
        ctx.progress.say(f"{report.denormals_flushed} denormal weights set to 0: they slow CPUs")
    metrics = {
        "parity_max": Metric(parity.max_difference, "x", "lower"),
        "denormals": Metric(float(report.denormals_flushed), "count", "lower"),
    }
    if spec.task == "classification":
        metrics["parity_top1"] = Metric(parity.top1, "%", "higher")
    return StageResult({"model": path}, metrics)


def _samples(data: Dataset, count: int, seed: int) -> Mapping[str, Any]:
    """The first ``count`` calibration samples, or training samples where those are too few."""
    import numpy as np

    from compressor.data import splits

    if data.counts.get("calibration", 0) >= count:
        return {k: a[:count] for k, a in data.split("calibration").inputs.items()}
    split = data.split("train")
    if len(split) < count:
        raise ConfigError(f"parity_samples: {count}, but {data.name} has only {len(split)} "
                          "training samples; the comparison needs at least 64")  # fmt: skip
    strata = np.asarray(split.labels) if data.classes else np.zeros(len(split), dtype=np.int64)
    return split.take(splits.pick(strata, count, seed, splits.PARITY)).inputs


EXPORT = Stage(
    name="export",
    config=ExportConfig,
    run=run,
    needs={"model": Need(CHECKPOINT), "data": Need(DATASET)},
    makes={"model": ONNX},
    needs_extra=("torch", "onnxscript", "onnxruntime"),
)
