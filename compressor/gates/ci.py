"""What ``compressor gate RUN --baseline DIR`` judges."""

from __future__ import annotations

from pathlib import Path

from compressor.core import results as records
from compressor.core import yaml
from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.results import GateRecord, RunResults, StageRecord
from compressor.core.tasks import TASKS
from compressor.gates import baseline as baselines
from compressor.gates.apply import evaluate
from compressor.gates.config import BASELINE, LATENCY, Gate, parse
from compressor.gates.latency import Measure
from compressor.gates.verdicts import FAIL, INCONCLUSIVE, PASS, SKIPPED

ACCURACY_POINTS = 1.0
LATENCY_RATIO = 1.10
_SCORE_SHARE = 0.01  # of another task's score, where points mean nothing


def judge(
    run: Path, baseline: Path | None, measure: Measure | None = None
) -> tuple[GateRecord, ...]:
    """Apply the gates of a run's ``resolved.yaml``, or the defaults where it has none.

    Defaults against the baseline: accuracy 1.0 point, latency ratio 1.10, bytes and MACs not
    above it, parity passed.

    Args:
        run: A run folder.
        baseline: A folder that ``accept`` wrote.
        measure: How latency is measured; by default ``runtime.timing.interleave``.

    Raises:
        ConfigError: A gate does not fit the run, or there is no baseline.
        IntegrityError: Not a run folder, or a file of it or of the baseline is damaged.
    """
    results = records.load(run)
    own = _own(run)
    if own:
        found = list(evaluate(own, run, results, baseline=baseline, measure=measure))
        if baseline is not None and all(gate.versus != BASELINE for gate in own):
            said = f"no gate of this run says versus: {BASELINE}; nothing is compared with it"
            found.append(GateRecord(BASELINE, SKIPPED, said))
        return tuple(found)
    if baseline is None:
        raise ConfigError(f"{run}: has no gates of its own; give --baseline DIR")
    asked = defaults(results, baselines.load(baseline).shipped)
    there = [gate for gate in asked if _present(gate, results)]
    return (
        *evaluate(there, run, results, baseline=baseline, measure=measure),
        *(
            GateRecord(gate.text(), INCONCLUSIVE, "this run recorded no such metric")
            for gate in asked
            if gate not in there
        ),
        parity(results),
    )


def _own(run: Path) -> tuple[Gate, ...]:
    file = run / "resolved.yaml"
    if not file.is_file():
        raise IntegrityError(f"{file}: missing; give a run folder")
    value = yaml.load_file(file).value
    raw = value.get("gates") if isinstance(value, dict) else None
    return parse(raw or [])


def defaults(results: RunResults, base: StageRecord) -> tuple[Gate, ...]:
    """The gates of a run that brings none.

    Args:
        results: The run.
        base: The stage that the baseline ships.
    """
    name = baselines.shipped(results).name
    against = {"versus": BASELINE}
    gates = []
    for task in TASKS.values():
        if task.metric in base.metrics:
            drop = ACCURACY_POINTS
            if task.unit != "%":
                drop = _SCORE_SHARE * abs(base.metrics[task.metric].value)
            gates.append(Gate(metric=f"{name}.{task.metric}", max_drop=drop, **against))
    gates.append(Gate(metric=f"{name}.{LATENCY}", max_ratio=LATENCY_RATIO, **against))
    gates += [Gate(metric=f"{name}.{m}", max_ratio=1.0, **against) for m in ("bytes", "macs")]
    return tuple(gates)


def _present(gate: Gate, results: RunResults) -> bool:
    return gate.metric.endswith(f".{LATENCY}") or bool(results.find(gate.metric))


def parity(results: RunResults) -> GateRecord:
    """Whether every export of the run agreed with its network.

    An export that disagrees stops the run, so that a recorded difference is one that passed.
    """
    exports = [s for s in results.stages if s.uses == "export"]
    bad = [s.name for s in exports if s.state == "failed"]
    shown = [(s.name, s.metrics["parity_max"]) for s in exports if "parity_max" in s.metrics]
    if bad:
        return GateRecord("parity", FAIL, f"export {', '.join(bad)} failed")
    if not shown:
        return GateRecord("parity", INCONCLUSIVE, "this run exported nothing from torch")
    name, worst = max(shown, key=lambda row: row[1].value)
    return GateRecord(
        "parity",
        PASS,
        f"{len(shown)} exported, largest difference {worst.value:.2g}x of the logits' standard "
        f"deviation ({name})",
    )
