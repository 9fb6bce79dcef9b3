"""Hold a stage to its contract, ours or a user's, in one line of a test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.core.config import Config
from compressor.core.hashing import digest_path
from compressor.core.types import (
    Artifact,
    Context,
    Inputs,
    ModelSpec,
    Stage,
    StageResult,
    Timing,
    TimingProtocol,
)


class Silent:
    """Progress that goes nowhere but remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, done: int, total: int, note: str = "") -> None:
        """Check that it makes sense."""
        assert 0 <= done <= total, (done, total)

    def say(self, line: str) -> None:
        """Remember."""
        self.lines.append(line)


class NoTimings:
    """For stages that do not measure."""

    def measure(
        self,
        models: Mapping[str, Path],
        protocol: TimingProtocol,
        feed: Mapping[str, Any] | None = None,
    ) -> Timing:
        """Refuse."""
        raise AssertionError("the stage measures but does not declare measures=True")

    def profile(
        self, model: Path, protocol: TimingProtocol, feed: Mapping[str, Any] | None = None
    ) -> Mapping[str, float]:
        """Refuse."""
        raise AssertionError("the stage measures but does not declare measures=True")


class MadeUpTimings:
    """Pure function of the files: milliseconds proportional to size, so that choices repeat."""

    def measure(
        self,
        models: Mapping[str, Path],
        protocol: TimingProtocol,
        feed: Mapping[str, Any] | None = None,
    ) -> Timing:
        """``bytes / 1e5`` ms, the same in every round, and a perfect A/A control."""
        cost = {name: path.stat().st_size / 1e5 for name, path in models.items()}
        cost["A/A"] = next(iter(cost.values()))
        rounds = {name: (ms,) * protocol.rounds for name, ms in cost.items()}
        return Timing("made up", protocol, rounds, rounds, digest="made-up")

    def profile(
        self, model: Path, protocol: TimingProtocol, feed: Mapping[str, Any] | None = None
    ) -> Mapping[str, float]:
        """10 us for every node that ONNX Runtime executes."""
        from compressor.runtime.profile import optimized_graph

        return {node.name: 10.0 for node in optimized_graph(model).graph.node}


def context(folder: Path, seed: int = 0, **changes: Any) -> Context:
    """A context below ``folder`` on the CPU with one thread."""
    workdir, resume = folder / "work", folder / "resume"
    workdir.mkdir(parents=True, exist_ok=True)
    resume.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "workdir": workdir,
        "resume": resume,
        "seed": seed,
        "device": "cpu",
        "threads": 1,
        "progress": Silent(),
        "timings": NoTimings(),
    }
    return Context(**(values | changes))


def artifact(name: str, kind: str, path: Path, spec: ModelSpec | None = None) -> Artifact:
    """An artifact of a file or folder, with its true digest."""
    return Artifact(name, kind, path, digest_path(path), spec)


def _digests(inputs: Inputs) -> list[str]:
    groups = [g if isinstance(g, tuple) else (g,) for g in inputs.values()]
    return [digest_path(a.path) for group in groups for a in group]


def check_stage(
    stage: Stage[Any],
    config: Config,
    inputs: Inputs,
    folder: Path,
    *,
    metrics: Sequence[str] = (),
) -> StageResult:
    """Run a stage twice and check everything that the engine relies on.

    Declared inputs are given, declared outputs exist inside ``workdir`` and nothing else is
    returned, inputs are unchanged, metrics are finite and include ``metrics``, and (for a
    deterministic stage) the same seed gives the same bytes and metrics.

    Returns:
        The first result.

    Raises:
        AssertionError: Naming what the stage broke.
    """
    for name, need in stage.needs.items():
        assert need.optional or name in inputs, f"{stage.name} needs {name}"
    before = _digests(inputs)
    timings: Any = MadeUpTimings() if stage.measures_with(config) else NoTimings()
    results = []
    for attempt in ("first", "second"):
        ctx = context(folder / attempt, timings=timings)
        result = stage.run(config, inputs, ctx)
        assert set(result.outputs) == set(stage.makes), f"{stage.name} made {set(result.outputs)}"
        for name, path in result.outputs.items():
            assert path.exists(), f"{stage.name}.{name}: {path} does not exist"
            assert path.resolve().is_relative_to(ctx.workdir.resolve()), f"{path} left the workdir"
        for name, metric in result.metrics.items():
            finite = all(map(math.isfinite, (metric.value, *metric.samples)))
            assert finite, f"{stage.name}.{name} is {metric.value}"
        results.append(result)
    assert _digests(inputs) == before, f"{stage.name} changed its inputs"
    missing = set(metrics) - set(results[0].metrics)
    assert not missing, f"{stage.name} does not give {sorted(missing)}"
    if stage.deterministic:
        made = [{n: digest_path(p) for n, p in r.outputs.items()} for r in results]
        assert made[0] == made[1], f"{stage.name}: the same seed gave other bytes"
        assert results[0].metrics == results[1].metrics, f"{stage.name}: other metrics"
    return results[0]
