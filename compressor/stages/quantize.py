"""Stage ``quantize``: fp32 ONNX -> int8 (or int4, fp16) ONNX, on the calibration split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from compressor.core.config import Config, seconds
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

if TYPE_CHECKING:
    from compressor.data import Dataset
    from compressor.quantization.plain import QuantizeReport
    from compressor.quantization.schemes import SchemeReport


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
        placement: ``measured``: int8 where it pays on this machine (1 thread, batch 1), float
            where it does not, the fp32 model if int8 pays nowhere; ``none``: everything that can
            be int8 is. A target other than this machine's is not measured.
        budget: ``90s`` or ``3m`` for all that is measured.
        min_sqnr: Least SQNR in dB of every output, held by recovery, then by leaving sensitive
            layers float.
        max_drop: Instead of it, the largest drop in points on the val split.
        recovery: ``auto``: where int8 throughout misses that, other calibrators, bias correction,
            equalization and AdaRound are tried, for a third of the budget; ``none``: they are not.
    """

    target: Literal["portable", "x86-vnni", "arm64", "host"] = "portable"
    scheme: Literal["int8", "int4", "dynamic", "fp16"] = "int8"
    calibrator: Literal["minmax", "moving", "percentile", "entropy", "mse"] = "minmax"
    percentile: Annotated[float, Field(gt=50.0, le=100.0)] = 99.99
    calibration: Annotated[int, Field(ge=1)] = 512
    batch: Annotated[int, Field(ge=1)] = 32
    weight_bits: Literal["auto", 7, 8] = "auto"
    exclude: tuple[str, ...] = ()
    placement: Literal["measured", "none"] = "measured"
    budget: Annotated[float, BeforeValidator(seconds), Field(gt=0)] = 180.0
    min_sqnr: float = 25.0
    max_drop: Annotated[float, Field(ge=0)] | None = None
    recovery: Literal["auto", "none"] = "auto"

    @model_validator(mode="after")
    def _measured(self) -> QuantizeConfig:
        if self.placement == "none" and self.max_drop is not None:
            raise ValueError("max_drop is held by placement: measured; placement is none")
        if self.scheme != "int8" and self.max_drop is not None:
            raise ValueError(f"max_drop is held by scheme: int8; scheme is {self.scheme}")
        return self


def _measures(config: QuantizeConfig) -> bool:
    """Only what depends on this machine's latency is bound to it."""
    return config.scheme == "int8" and config.placement == "measured"


def _run(config: QuantizeConfig, inputs: Inputs, ctx: Context) -> StageResult:
    from compressor.data import load

    dataset = load(one(inputs, "data").path)
    out, table = ctx.workdir / "model.onnx", ctx.workdir / "quantize.json"
    report = _quantize(config, dataset, inputs, ctx)
    write_json(table, report.table())
    for line in _lines(report):
        ctx.progress.say(line)
    metrics = {
        "float_convs": Metric(len(report.float_convs), "count", "lower"),
        "quantized": Metric(report.quantized, "count", "higher"),
    }
    if report.sqnr:  # a model may have no float output
        metrics["sqnr"] = Metric(min(report.sqnr.values()), "dB", "higher")
    if report.agreement is not None:
        metrics["agreement"] = Metric(report.agreement, "%", "higher")
    return StageResult({"model": out, "table": table}, metrics)


def _lines(report: QuantizeReport | SchemeReport) -> Iterator[str]:
    from compressor.quantization.outcome import TunedReport

    if isinstance(report, TunedReport):
        yield from (rung.line() for rung in report.recovery)
    yield from report.warnings
    if report.verdict:
        yield report.verdict


def _quantize(
    config: QuantizeConfig, dataset: Dataset, inputs: Inputs, ctx: Context
) -> QuantizeReport | SchemeReport:
    from compressor.core.tasks import task
    from compressor.quantization import schemes
    from compressor.quantization.goal import Goal
    from compressor.quantization.plain import Options
    from compressor.quantization.quality import Labelled
    from compressor.quantization.samples import stored
    from compressor.quantization.tune import place

    split = dataset.split("calibration")
    if len(split) < config.calibration:
        raise ConfigError(
            f"quantize.calibration: {config.calibration} samples asked for, the dataset's "
            f"calibration split has {len(split)}; lower it, or give the data stage more"
        )
    model, out = one(inputs, "model").path, ctx.workdir / "model.onnx"
    arrays = {name: array[: config.calibration] for name, array in split.inputs.items()}
    samples = stored(arrays, dataset.inputs, model)
    options = Options(config.target, config.calibrator, config.percentile, config.weight_bits,
                      config.exclude, config.batch, ctx.threads)  # fmt: skip

    def calibrating(done: int) -> None:
        ctx.progress.update(done, config.calibration, "calibrating")

    def told(spent: float, note: str) -> None:
        ctx.progress.update(min(int(spent), int(config.budget)), int(config.budget), note)

    if config.scheme != "int8":
        return schemes.quantize(
            config.scheme, model, out, samples, options, calibrating, device=ctx.device
        )
    labelled = None
    if config.max_drop is not None:
        val = dataset.split("val")
        labelled = Labelled(
            stored(val.inputs, dataset.inputs, model), val.labels, task(dataset.task)
        )
    return place(
        model, out, samples, options,
        Goal(config.budget, config.min_sqnr, config.max_drop, seed=ctx.seed,
             recovery=config.recovery == "auto"),
        ctx.timings, ctx.resume, placement=config.placement, labelled=labelled,
        progress=calibrating, told=told,
    )  # fmt: skip


QUANTIZE = Stage(
    name="quantize",
    config=QuantizeConfig,
    run=_run,
    needs={"model": Need(ONNX), "data": Need(DATASET)},
    makes={"model": ONNX, "table": TABLE},
    measures=_measures,
    needs_extra=("onnxruntime",),
)
