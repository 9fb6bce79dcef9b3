"""The ``timings`` artifact: everything that a bench measured, with the machine it ran on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from compressor.core import records
from compressor.core.errors import IntegrityError
from compressor.core.files import write_json
from compressor.core.types import AA, Metric, Timing, TimingProtocol
from compressor.runtime.timing import table
from compressor.stats.bootstrap import Interval
from compressor.stats.ratios import ratio

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Measured:
    """One model in one cell; milliseconds, samples per second, and the medians of each round."""

    digest: str
    p50: float
    p90: float | None
    p99: float | None
    n: int
    throughput: float
    rounds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SpeedUps:
    """Against the baseline, and against the reference if there is one."""

    baseline: Interval
    reference: Interval | None


@dataclass(frozen=True, slots=True)
class Cell:
    """All models under one protocol; ``aa`` holds the rounds of the baseline's second session."""

    provider: str
    threads: int
    batch: int
    protocol: TimingProtocol
    digest: str
    unstable: bool
    note: str
    models: Mapping[str, Measured]
    aa: tuple[float, ...]
    speedup: Mapping[str, SpeedUps]


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """Load and first-run time in ms, peak memory in MiB above the bare process."""

    load_ms: float
    peak_mb: float
    first_run_ms: float
    base_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class SizeRow:
    """As :class:`compressor.runtime.cost.Cost`."""

    bytes: int
    zstd_bytes: int
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class Record:
    """``timings.json``.

    Attributes:
        machine: ``core.environment.machine()``.
        baseline: Name of the model that speed-ups are against.
        reference: Name of the second one, or None.
        primary: Index of the cell whose numbers have the short metric names.
        cells: One per combination of threads and batch.
        memory: By model; empty if it was not asked for.
        memory_note: Who else used the machine while ``memory`` was measured, or empty.
        size: By model.
        schema: Version.
    """

    machine: Mapping[str, Any]
    baseline: str
    reference: str | None
    primary: int
    cells: tuple[Cell, ...]
    memory: Mapping[str, MemoryRow] = field(default_factory=dict)
    size: Mapping[str, SizeRow] = field(default_factory=dict)
    memory_note: str = ""
    schema: int = SCHEMA

    @property
    def main(self) -> Cell:
        """The primary cell."""
        return self.cells[self.primary]

    def speedup(self, base: str, new: str) -> Interval:
        """Of ``new`` over ``base`` in the primary cell, both measured in the same rounds."""
        models = self.main.models
        return ratio(models[base].rounds, models[new].rounds)


_ADAPTER = TypeAdapter(Record)


def cell(timing: Timing, baseline: str, reference: str | None, digests: Mapping[str, str]) -> Cell:
    """One measurement as a row of the record. ``digests``: of the model files, by name."""
    rows = table(timing, baseline, reference)
    protocol = timing.protocol
    return Cell(
        provider=protocol.provider,
        threads=protocol.threads,
        batch=protocol.batch,
        protocol=protocol,
        digest=timing.digest,
        unstable=timing.unstable,
        note=timing.note,
        models={
            n: Measured(digests[n], r.p50, r.p90, r.p99, r.n, r.throughput, r.rounds)
            for n, r in rows.items()
        },
        aa=timing.rounds[AA],
        speedup={n: SpeedUps(r.baseline, r.reference) for n, r in rows.items()},
    )


def save(path: Path, record: Record) -> None:
    """Write as JSON with sorted keys."""
    write_json(path, _ADAPTER.dump_python(record, mode="json"))


def load(path: Path) -> Record:
    """Read a timings artifact. Raises IntegrityError when it is missing or malformed."""
    record = records.read(_ADAPTER, path, "timings", SCHEMA)
    if not 0 <= record.primary < len(record.cells):
        raise IntegrityError(f"{path}: no cell {record.primary}")
    return record


def metrics(record: Record) -> dict[str, Metric]:
    """``NAME.p50`` ... of the primary cell, ``NAME.t4.b8.p50`` ... of the others."""
    found: dict[str, Metric] = {}
    for index, one in enumerate(record.cells):
        prefix = "" if index == record.primary else f".t{one.threads}.b{one.batch}"
        for name in one.models:
            rows = _model_metrics(one, name, record.baseline, record.reference)
            found |= {f"{name}{prefix}.{key}": metric for key, metric in rows}
    for name, row in record.memory.items():
        found[f"{name}.load"] = Metric(row.load_ms, "ms", "lower")
        found[f"{name}.peak_memory"] = Metric(row.peak_mb, "MiB", "lower")
    main = record.main
    unstable = any(c.unstable for c in record.cells)
    found["unstable"] = Metric(float(unstable), "flag", "lower")
    first = main.models[record.baseline].rounds
    found["aa"] = Metric(ratio(first, main.aa).value, "x", "higher", _ratios(first, main.aa))
    return found


def _model_metrics(
    one: Cell, name: str, baseline: str, reference: str | None
) -> Iterator[tuple[str, Metric]]:
    row, gains = one.models[name], one.speedup[name]
    yield "p50", Metric(row.p50, "ms", "lower")
    if row.p90 is not None:
        yield "p90", Metric(row.p90, "ms", "lower")
    if row.p99 is not None:
        yield "p99", Metric(row.p99, "ms", "lower")
    yield "throughput", Metric(row.throughput, "samples/s", "higher")
    samples = _ratios(one.models[baseline].rounds, row.rounds)
    yield "speedup", Metric(gains.baseline.value, "x", "higher", samples)
    if gains.reference is not None and reference is not None:
        samples = _ratios(one.models[reference].rounds, row.rounds)
        yield "speedup_reference", Metric(gains.reference.value, "x", "higher", samples)


def _ratios(base: Sequence[float], new: Sequence[float]) -> tuple[float, ...]:
    return tuple(b / n for b, n in zip(base, new, strict=True))
