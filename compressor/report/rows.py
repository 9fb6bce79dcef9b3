"""The numbers that every form of the report shows, picked from the record once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.core.results import RunResults, StageRecord
from compressor.core.tasks import TASKS
from compressor.core.types import MODEL_KINDS, Metric
from compressor.stats.bootstrap import Interval
from compressor.stats.ratios import ratio_interval

_QUALITY = tuple(task.metric for task in TASKS.values())


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model of the run; None where it was not measured.

    Attributes:
        stage: Name of the stage that made it.
        uses: The stage's implementation.
        quality: Headline metric on test.
        change: Difference to the first model of the run, in the metric's unit.
        bytes: Of the file.
        zstd_bytes: After zstandard.
        parameters: Count.
        macs: Per sample.
        p50: Milliseconds in the primary cell.
        speedup: Against the baseline, with its interval over rounds.
        speedup_reference: Against the reference.
        seconds: What the stage took.
    """

    stage: str
    uses: str
    quality: Metric | None
    change: float | None
    bytes: int | None
    zstd_bytes: int | None
    parameters: int | None
    macs: int | None
    p50: float | None
    speedup: Interval | None
    speedup_reference: Interval | None
    seconds: float


def is_model(stage: StageRecord) -> bool:
    """Whether a stage made a network."""
    return any(o.kind in MODEL_KINDS for o in stage.outputs.values())


def quality(stage: StageRecord) -> Metric | None:
    """The headline metric on test."""
    return next((stage.metrics[n] for n in _QUALITY if n in stage.metrics), None)


def models(results: RunResults) -> list[ModelRow]:
    """Every model of the run in order; the bundle's is the one it chose."""
    made = [s for s in results.stages if is_model(s)]
    first = quality(made[0]) if made else None
    return [_row(stage, first, results) for stage in made]


def _row(stage: StageRecord, first: Metric | None, results: RunResults) -> ModelRow:
    metric = quality(stage)
    change = metric.value - first.value if metric is not None and first is not None else None
    return ModelRow(
        stage.name,
        stage.uses,
        metric,
        change,
        _count(stage, "bytes"),
        _count(stage, "zstd_bytes"),
        _count(stage, "parameters"),
        _count(stage, "macs"),
        _value(_timed(results, stage, "p50")),
        interval(_timed(results, stage, "speedup")),
        interval(_timed(results, stage, "speedup_reference")),
        stage.seconds,
    )


def _timed(results: RunResults, stage: StageRecord, metric: str) -> Metric | None:
    """A latency metric: the stage's own (a bundle's), else what a bench measured of it."""
    if metric in stage.metrics:
        return stage.metrics[metric]
    for other in results.stages:
        found = other.metrics.get(f"{stage.name}.{metric}")
        if found is not None:
            return found
    return None


def interval(metric: Metric | None) -> Interval | None:
    """Value and 95 % interval of a ratio; without samples the interval is the value."""
    if metric is None:
        return None
    if len(metric.samples) < 2:
        return Interval(metric.value, metric.value, metric.value)
    return ratio_interval(metric.samples)


def _value(metric: Metric | None) -> float | None:
    return None if metric is None else metric.value


def _count(stage: StageRecord, name: str) -> int | None:
    metric = stage.metrics.get(name)
    return None if metric is None else int(metric.value)


def notes(results: RunResults) -> Sequence[tuple[str, str]]:
    """Stage and what it said; a bench's lines are the table's, unless it was disturbed."""
    quiet = {s.name for s in results.stages if s.uses == "bench" and not _unstable(s)}
    return [(s.name, s.note) for s in results.stages if s.note and s.name not in quiet]


def _unstable(stage: StageRecord) -> bool:
    return "unstable" in stage.metrics and stage.metrics["unstable"].value != 0


def setting(results: RunResults) -> str:
    """Machine and primary cell in one line."""
    machine = results.machine
    facts = [f"{machine.get('cpu', '?')} ({machine.get('instruction_set', '?')})"]
    for stage in results.stages:
        if stage.uses == "bench":
            cell = [stage.config.get(k) for k in ("provider", "threads", "batch")]
            provider, threads, batch = (c[0] if isinstance(c, list) and c else c for c in cell)
            facts.append(f"{provider}, {threads} thread{'s' * (threads != 1)}, batch {batch}")
            break
    return "; ".join(facts)


def short(number: int | None) -> str:
    """``12.3M``, ``702k``, ``85``; ``-`` for None."""
    if number is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            scale = 1e3 if letter == "k" else size
            return f"{number / scale:.3g}{letter}"
    return f"{number:,}"
