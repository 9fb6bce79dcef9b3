"""One gate, the stages it means, and the evidence that a run folder and a baseline hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.core.results import RunResults, StageRecord
from compressor.core.tasks import Task
from compressor.core.types import MODEL_KINDS, Metric
from compressor.gates import baseline as baselines
from compressor.gates import latency, limits, verdicts
from compressor.gates.baseline import Baseline
from compressor.gates.config import BASELINE, LATENCY, Gate, headline, split
from compressor.gates.pairing import DifferentSamples, Side, pair, scores
from compressor.gates.verdicts import FAIL, INCONCLUSIVE, SKIPPED, Verdict
from compressor.stats import compare


def failed(results: RunResults, dotted: str) -> tuple[StageRecord, ...]:
    """The stages that a name means and that failed."""
    return tuple(s for s in results.members(split(dotted)[0]) if s.state == "failed")


def subjects(results: RunResults, dotted: str) -> tuple[StageRecord, ...]:
    """The stages that a name means and that have the metric."""
    name, metric = split(dotted)
    if metric == LATENCY:
        return tuple(s for s in results.members(name) if baselines.model_output(s))
    return tuple(stage for stage, _ in results.find(dotted))


@dataclass(frozen=True, slots=True)
class Court:
    """What all gates of one call share.

    Attributes:
        run: The run folder.
        results: Its record.
        baseline: What to compare with, if there is one.
        measure: How latency is measured; None for the default.
    """

    run: Path
    results: RunResults
    baseline: Baseline | None
    measure: latency.Measure | None

    def hear(self, gate: Gate) -> Iterator[tuple[str, Verdict]]:
        """Name and verdict for each member of the gate's stage."""
        for stage in failed(self.results, gate.metric):
            yield stage.name, Verdict(FAIL, f"stage {stage.name} failed; there is nothing to judge")
        for stage in subjects(self.results, gate.metric):
            if gate.versus is None:
                yield stage.name, self._alone(gate, stage)
            elif gate.versus != BASELINE:
                for other in self._others(gate.versus, stage):
                    yield stage.name, self._within(gate, stage, other)
            elif self.baseline is not None:
                yield stage.name, self._against(self.baseline, gate, stage)
            else:
                hint = "needs a baseline: `compressor gate RUN --baseline DIR`"
                yield stage.name, Verdict(SKIPPED, hint)

    def _others(self, versus: str, stage: StageRecord) -> tuple[StageRecord, ...]:
        """Stages to compare with; of a matrix those whose combination agrees, else all."""
        others = (*subjects(self.results, versus), *failed(self.results, versus))
        mine = _combination(stage.name)
        agreeing = tuple(
            other
            for other in others
            if all(mine.get(k, v) == v for k, v in _combination(other.name).items())
        )
        return agreeing or others

    def _alone(self, gate: Gate, stage: StageRecord) -> Verdict:
        name = split(gate.metric)[1]
        task = headline(name)
        if task is None:
            return limits.metric_limit(
                stage.metrics[name], gate.kind, gate.limit, unstable=_unstable(stage)
            )
        found = scores(self._side(stage), task)
        if task.metric == "accuracy":
            return verdicts.accuracy_floor(int(found.sum()), len(found), gate.limit)
        return verdicts.mean_limit(task, found, gate.limit)

    def _within(self, gate: Gate, stage: StageRecord, other: StageRecord) -> Verdict:
        """Against another stage of the same run."""
        if other.state == "failed":
            return Verdict(FAIL, f"stage {other.name} failed; there is nothing to compare with")
        name, theirs = split(gate.metric)[1], split(gate.versus or "")[1]
        task = headline(name)
        if task is not None:
            return _drop(self._side(other), self._side(stage), task, gate.limit)
        return limits.metric_ratio(
            stage.metrics[name],
            other.metrics[theirs],
            gate.limit,
            together=stage.name == other.name,
            unstable=_unstable(stage),
        )

    def _against(self, held: Baseline, gate: Gate, stage: StageRecord) -> Verdict:
        """Against the committed baseline."""
        name = split(gate.metric)[1]
        if name == LATENCY:
            model = baselines.model_file(self.run, stage)
            protocol = latency.protocol_of(self.results, stage)
            return latency.judge(held, model, gate.limit, protocol, self.measure)
        ships = stage.name == baselines.shipped(self.results).name
        reference = _recorded(held, stage, name, ships)
        if reference is None:
            return Verdict(INCONCLUSIVE, f"not comparable: the baseline recorded no {name}")
        task = headline(name)
        if task is not None:
            return self._drop_from(held, stage, task, gate.limit)
        return limits.metric_ratio(
            stage.metrics[name], reference, gate.limit, together=False, unstable=_unstable(stage)
        )

    def _drop_from(self, held: Baseline, stage: StageRecord, task: Task, limit: float) -> Verdict:
        base = _make_side(
            "the baseline",
            held.predictions,
            held.shipped,
            held.results.machine,
        )
        new = self._side(stage)
        try:
            verdict = _drop(base, new, task, limit)
        except DifferentSamples as error:
            return Verdict(INCONCLUSIVE, f"not comparable: {error}")
        if base.cpu == new.cpu and base.instruction_set == new.instruction_set:
            return verdict
        return verdict.adding(
            f"the baseline's predictions are from {base.cpu} ({base.instruction_set}), "
            f"these from {new.cpu} ({new.instruction_set})"
        )

    def _side(self, stage: StageRecord) -> Side:
        file = baselines.predictions_file(self.run, stage)
        return _make_side(stage.name, file, stage, self.results.machine)


def _make_side(name: str, file: Path, stage: StageRecord, machine: Mapping[str, Any]) -> Side:
    outputs = [o for o in stage.outputs.values() if o.kind in MODEL_KINDS]
    return Side(
        name,
        file,
        outputs[0].digest if outputs else "",
        str(machine.get("instruction_set", "unknown")),
        str(machine.get("cpu", "unknown CPU")),
        tuple(machine.get("features", ())),
    )


def _drop(base: Side, new: Side, task: Task, limit: float) -> Verdict:
    """Paired comparison; the same file on the same instructions must predict the same classes."""
    found = pair(base, new, task)
    if task.metric != "accuracy":  # values differ in the last bit with threads and versions
        return verdicts.score_drop(task, found.base, found.new, limit)
    same_model = bool(base.model) and base.model == new.model
    same_cpu = (base.instruction_set, base.features) == (new.instruction_set, new.features)
    if same_model and same_cpu:
        return verdicts.identity(found.flips, len(found.labels))
    right_base, right_new = found.base > 0.5, found.new > 0.5
    verdict = verdicts.paired_drop(right_base, compare(right_base, right_new), limit)
    if same_model:
        verdict = verdict.adding(f"the same model; {found.flips} predictions differ")
    return verdict.adding(verdicts.worst_class(found.labels, right_base, right_new))


def _recorded(held: Baseline, stage: StageRecord, name: str, ships: bool) -> Metric | None:
    """The baseline's value: what ships is held to what shipped, any other stage to its namesake."""
    twin = held.results.stage(stage.name)
    order = [held.shipped, twin] if ships else [twin, held.shipped]
    return next((s.metrics[name] for s in order if s is not None and name in s.metrics), None)


def _unstable(stage: StageRecord) -> bool:
    flag = stage.metrics.get("unstable")
    return flag is not None and flag.value != 0


def _combination(name: str) -> dict[str, str]:
    """``student[loss=kd,seed=0]`` -> the keys and values in brackets."""
    inside = name.partition("[")[2].removesuffix("]")
    rows = (part.partition("=") for part in inside.split(",") if part)
    return {key: value for key, _, value in rows}
