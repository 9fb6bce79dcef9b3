"""Gates against the stored results of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from compressor.core.errors import ConfigError, suggestion
from compressor.core.results import GateRecord, RunResults
from compressor.gates import baseline as baselines
from compressor.gates.config import BASELINE, Gate
from compressor.gates.court import Court, failed, subjects
from compressor.gates.latency import Measure
from compressor.gates.verdicts import FAIL, INCONCLUSIVE


def evaluate(
    gates: Sequence[Gate],
    run: Path,
    results: RunResults,
    *,
    baseline: Path | None = None,
    measure: Measure | None = None,
) -> tuple[GateRecord, ...]:
    """Judge every gate, each member of a matrix by itself.

    Args:
        gates: Typed gates.
        run: The run folder, for predictions and models.
        results: Its record.
        baseline: A folder that ``accept`` wrote; without it gates against it are skipped.
        measure: How latency is measured; by default ``runtime.timing.interleave``.

    Returns:
        One record per gate and member, in the order of the gates, then a FAIL for every bundle
        that ships although nothing was within its ``max_drop``.

    Raises:
        ConfigError: A gate names a stage or metric that the run does not have; no baseline there.
        IntegrityError: Predictions are missing, damaged, or of different samples within the run.
    """
    unknown = [p for i, gate in enumerate(gates) for p in _unknown(i, gate, results)]
    if unknown:
        raise ConfigError(*unknown)
    held = baselines.load(baseline) if baseline is not None else None
    court = Court(run, results, held, measure)
    heard = (
        GateRecord(gate.text(stage), verdict.state, verdict.sentence)
        for gate in gates
        for stage, verdict in court.hear(gate)
    )
    return (*heard, *_beyond(results))


def exit_code(records: Sequence[GateRecord], strict: bool) -> int:
    """3 for any FAIL, 4 for any INCONCLUSIVE under ``strict``, else 0."""
    states = {record.verdict for record in records}
    if FAIL in states:
        return 3
    return 4 if strict and INCONCLUSIVE in states else 0


def _beyond(results: RunResults) -> Iterator[GateRecord]:
    """Bundles whose candidates all lost more than was asked for (on val): never a success."""
    for stage in results.stages:
        within = stage.metrics.get("within")
        if stage.uses == "bundle" and within is not None and within.value == 0:
            limit = stage.config.get("max_drop", "")
            text = f"{stage.name}.within (max_drop {limit} on val)"
            said = "no candidate is within max_drop of the teacher; the best float model ships"
            yield GateRecord(text, FAIL, said)


def _unknown(index: int, gate: Gate, results: RunResults) -> Iterator[str]:
    """Problems of one gate's names, now that the metrics are known."""
    for key, word in (("metric", gate.metric), ("versus", gate.versus)):
        if word is None or word == BASELINE or failed(results, word):
            continue
        if not subjects(results, word):
            known = [f"{s.name}.{m}" for s in results.stages for m in s.metrics]
            near = suggestion(word, known)
            yield f"gates.{index}.{key}: this run has no {word!r}{near}"
