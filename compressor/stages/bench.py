"""Stage ``bench``: latency, memory and size of several ONNX files, measured side by side."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from compressor.core.config import Config, seconds
from compressor.core.environment import machine
from compressor.core.types import (
    DATASET,
    ONNX,
    TIMINGS,
    Context,
    Inputs,
    Need,
    Stage,
    StageResult,
    TimingProtocol,
    maybe,
    one,
    several,
)

Count = Annotated[int, Field(ge=1)]


class BenchConfig(Config):
    """How to measure. Of lists, the first entries make the primary cell.

    Attributes:
        provider: Where the models run; there is no fallback.
        threads: Intra-op threads, one or several.
        batch: Samples per call, one or several.
        rounds: Interleaved rounds per cell.
        min_cell_ms: Least time per model and round.
        warmup_ms: Least warm-up per model.
        budget: ``90s`` or ``3m`` per cell: fewer rounds, at least 10, so that they fit.
        memory: Fresh processes per model for load time and peak memory; 0 for none.
    """

    provider: Literal["cpu", "cuda"] = "cpu"
    threads: Count | Annotated[list[Count], Field(min_length=1)] = 1
    batch: Count | Annotated[list[Count], Field(min_length=1)] = 1
    rounds: int = Field(default=30, ge=10)
    min_cell_ms: float = Field(default=50.0, ge=0)
    warmup_ms: float = Field(default=500.0, ge=0)
    budget: Annotated[float, BeforeValidator(seconds)] | None = None
    memory: int = Field(default=3, ge=0)


def run(config: BenchConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Measure every cell through ``ctx.timings``, then memory and sizes."""
    from compressor.data import dataset
    from compressor.runtime import bench, record
    from compressor.runtime.on_cuda import check_int8
    from compressor.runtime.timing import feed_digest

    first, second = one(inputs, "baseline"), maybe(inputs, "reference")
    models = [first, *([second] if second else []), *several(inputs, "candidates")]
    files = {m.name: m.path for m in models}
    for line in check_int8(files, config.provider):
        ctx.progress.say(line)
    stored = dataset.load(one(inputs, "data").path).split("calibration").inputs
    rounds = bench.rounds_within(config.rounds, config.budget, len(files), config.min_cell_ms)
    base = TimingProtocol(config.provider, 1, 1, rounds, config.min_cell_ms, config.warmup_ms,
                          seed=ctx.seed)  # fmt: skip
    plan = bench.protocols(base, _list(config.threads), _list(config.batch))
    digests = {m.name: m.digest for m in models}
    reference = second.name if second else None
    cells = []
    for done, protocol in enumerate(plan):
        ctx.progress.update(done, len(plan), f"threads {protocol.threads}, batch {protocol.batch}")
        fed = bench.feed(stored, protocol.batch)
        timing = ctx.timings.measure(files, replace(protocol, inputs=feed_digest(fed)), fed)
        cells.append(record.cell(timing, first.name, reference, digests))
    memory, note = bench.memories(files, plan[0], config.memory)
    found = record.Record(machine(), first.name, reference, 0, tuple(cells), memory,
                          bench.sizes(files), note)  # fmt: skip
    path = ctx.workdir / "timings.json"
    record.save(path, found)
    for line in bench.lines(found):
        ctx.progress.say(line)
    return StageResult({"timings": path}, record.metrics(found))


def _check(config: BenchConfig, device: str) -> None:
    """The provider is known long before the bench is reached. Raises MissingError."""
    if config.provider != "cpu":
        from compressor.runtime.session import check_provider

        check_provider(config.provider)


def _list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


BENCH = Stage(
    name="bench",
    config=BenchConfig,
    run=run,
    needs={
        "baseline": Need(ONNX),
        "reference": Need(ONNX, optional=True),
        "candidates": Need(ONNX, many=True),
        "data": Need(DATASET),
    },
    makes={"timings": TIMINGS},
    deterministic=False,
    measures=True,
    needs_extra=("onnxruntime",),
    check=_check,
)
