"""Stage ``quantize``: fp32 ONNX -> int8 (or int4, fp16) ONNX, on the calibration split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compressor.core.config import Config
from compressor.core.errors import ConfigError
from compressor.core.files import write_json
from compressor.core.types import (
    DATASET,
    ONNX,
    TABLE,
    Context,
    Inputs,
    Metric,
    Need,
    Stage,
    StageResult,
    one,
)


class QuantizeConfig(Config):
    """How a model becomes int8.

    Attributes:
        target: The CPUs on which it must be exact.
        scheme: ``int8``: weights and activations; ``int4``: matrices in 4 bits; ``dynamic``: int8
            matrices, activations at run time; ``fp16``: for CUDA. Only int8 is calibrated.
        calibrator: How activation ranges are chosen.
        percentile: Percent of the values that ``calibrator: percentile`` keeps.
        calibration: Samples of the calibration split; a fifth of them measures the result.
        batch: Samples per call while calibrating.
        weight_bits: ``auto`` follows the target.
        exclude: Node names, output tensors or operator types that stay float.
        placement: ``none``: everything that can be int8 is.
    """

    target: Literal["portable", "x86-vnni", "arm64", "host"] = "portable"
    scheme: Literal["int8", "int4", "dynamic", "fp16"] = "int8"
    calibrator: Literal["minmax", "moving", "percentile", "entropy", "mse"] = "minmax"
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    calibration: Annotated[int, Field(ge=1)] = 512
    batch: Annotated[int, Field(ge=1)] = 32
    weight_bits: Literal["auto", 7, 8] = "auto"
    exclude: tuple[str, ...] = ()
    placement: Literal["none"] = "none"


def _run(config: QuantizeConfig, inputs: Inputs, ctx: Context) -> StageResult:
    from compressor.data import load
    from compressor.quantization.plain import Options
    from compressor.quantization.samples import stored
    from compressor.quantization.schemes import quantize

    dataset = load(one(inputs, "data").path)
    split = dataset.split("calibration")
    if len(split) < config.calibration:
        raise ConfigError(
            f"quantize.calibration: {config.calibration} samples asked for, the dataset's "
            f"calibration split has {len(split)}; lower it, or give the data stage more"
        )
    model = one(inputs, "model").path
    arrays = {name: array[: config.calibration] for name, array in split.inputs.items()}
    samples = stored(arrays, dataset.inputs, model)
    options = Options(config.target, config.calibrator, config.percentile, config.weight_bits,
                      config.exclude, config.batch, ctx.threads)  # fmt: skip
    out, table = ctx.workdir / "model.onnx", ctx.workdir / "quantize.json"
    report = quantize(
        config.scheme, model, out, samples, options,
        lambda done: ctx.progress.update(done, config.calibration, "calibrating"),
        device=ctx.device,
    )  # fmt: skip
    write_json(table, report.table())
    for line in report.warnings:
        ctx.progress.say(line)
    metrics = {
        "sqnr": Metric(min(report.sqnr.values()), "dB", "higher"),
        "float_convs": Metric(len(report.float_convs), "count", "lower"),
        "quantized": Metric(report.quantized, "count", "higher"),
    }
    if report.agreement is not None:
        metrics["agreement"] = Metric(report.agreement, "%", "higher")
    return StageResult({"model": out, "table": table}, metrics)


QUANTIZE = Stage(
    name="quantize",
    config=QuantizeConfig,
    run=_run,
    needs={"model": Need(ONNX), "data": Need(DATASET)},
    makes={"model": ONNX, "table": TABLE},
    needs_extra=("onnxruntime",),
)
