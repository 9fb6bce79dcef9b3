"""The commands on pipelines and their runs. What only a run needs is imported when it runs."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.core import environment, files
from compressor.core.errors import ConfigError, suggestion
from compressor.core.store import Store
from compressor.pipeline import planning, wiring
from compressor.pipeline.graph import Node, Pipeline
from compressor.pipeline.keys import Settings
from compressor.pipeline.state import State

if TYPE_CHECKING:
    from compressor.core.results import GateRecord, RunResults
    from compressor.pipeline.execution import Reporter

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left.

    Attributes:
        results: The record, gates included.
        folder: The run folder, or None after ``only`` (a part of a pipeline leaves no run).
        exit_code: 0, 3 (a gate failed) or 4 (inconclusive under ``strict``).
        computed: Names of the stages that ran; the others were cached.
    """

    results: RunResults
    folder: Path | None
    exit_code: int
    computed: tuple[str, ...]


def store_path(store: StrPath | None = None) -> Path:
    """The store to use: the argument, ``COMPRESSOR_STORE``, or ``.compressor`` here."""
    return Path(store or os.environ.get("COMPRESSOR_STORE") or ".compressor")


def load(path: StrPath, overrides: Sequence[str] = ()) -> Pipeline:
    """Read, check and wire a pipeline file, gates included.

    Args:
        path: The YAML file.
        overrides: ``a.b=value`` texts, applied before checking.

    Raises:
        ConfigError: With every problem of the file.
    """
    from compressor import gates

    return wiring.load(Path(path), overrides, gates.problems)


def _prepare(
    pipeline: Pipeline,
    only: Sequence[str],
    device: str,
    threads: int | None,
    store: StrPath | None,
    warn: Any = None,
) -> tuple[State, Sequence[Node]]:
    _known("--only", only, {n.stem for n in pipeline.nodes} | {n.name for n in pipeline.nodes})
    settings = Settings(device, threads or environment.usable_threads())
    state = State(Store(store_path(store), warn), settings)
    return state, pipeline.upstream(only) if only else pipeline.nodes


def _known(option: str, names: Sequence[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{option} {name}: no such stage{suggestion(name, known)}")


def plan(
    path: StrPath,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    store: StrPath | None = None,
    rebench: bool = False,
) -> list[planning.Step]:
    """Wiring and cache state with reasons; runs nothing. Raises ConfigError."""
    pipeline = load(path, overrides)
    state, nodes = _prepare(pipeline, only, device, threads, store)
    return planning.plan(pipeline, state, nodes, rebench)


def run(
    path: StrPath,
    overrides: Sequence[str] = (),
    *,
    only: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    store: StrPath | None = None,
    runs: StrPath = "runs",
    rebench: bool = False,
    strict: bool = False,
    accept_code: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> Outcome:
    """Run what is stale, then the gates, and leave a run folder with its report.

    Args:
        path: The pipeline file.
        overrides: ``a.b=value`` texts.
        only: Stages to bring up to date with all they need; no gates, no run folder.
        device: ``cpu`` or ``cuda``, for training.
        threads: CPU threads; None takes what this process may use.
        store: Folder of the store.
        runs: Folder below which ``NAME/STAMP`` appears.
        rebench: Measure again whatever was measured.
        strict: Let an inconclusive gate count.
        accept_code: Stages whose code edits did not matter.
        reporter: Told about progress; silent by default.

    Raises:
        CompressorError: See ``core.errors``; whatever finished before stays in the store.
    """
    from compressor import gates, report
    from compressor.pipeline import execution, progress, record

    pipeline = load(path, overrides)
    _known("--accept-code", accept_code, {n.stem for n in pipeline.nodes})
    told = reporter or progress.Quiet()
    state, nodes = _prepare(pipeline, only, device, threads, store, told.say)
    if not only:
        files.check_writable(Path(runs) / pipeline.name)
    options = execution.Options(rebench, frozenset(accept_code))
    done = execution.execute(pipeline, state, nodes, options, told)
    found = record.summarize(pipeline, done, datetime.datetime.now(datetime.UTC))
    computed = tuple(d.node.name for d in done if d.ran)
    if only:
        return Outcome(found, None, 0, computed)

    def judge(folder: Path, found: RunResults) -> RunResults:
        verdicts = gates.evaluate(gates.parse(pipeline.gates), folder, found, baseline=None)
        found = dataclasses.replace(found, gates=tuple(verdicts))
        report.write(folder, found)
        return found

    folder, found = record.write(Path(runs), pipeline, state, found, done, judge)
    return Outcome(found, folder, gates.exit_code(found.gates, strict), computed)


def gate(
    run: StrPath, baseline: StrPath | None, *, strict: bool = False
) -> tuple[tuple[GateRecord, ...], int]:
    """Judge a run against a committed baseline; returns verdicts and exit code (0, 3 or 4).

    Raises:
        IntegrityError: Not a run folder, or not a baseline.
    """
    from compressor import gates

    verdicts = gates.judge(Path(run), None if baseline is None else Path(baseline))
    return tuple(verdicts), gates.exit_code(verdicts, strict)


def accept(run: StrPath, baseline: StrPath) -> None:
    """Make a run the baseline that later runs are judged against."""
    from compressor import gates

    gates.accept(Path(run), Path(baseline))


def write_report(run: StrPath) -> Path:
    """Write summary.md, report.html and junit.xml of a run again; returns the HTML's path."""
    from compressor import report as room
    from compressor.core import results

    folder = Path(run)
    return room.write(folder, results.load(folder))


def initialize(folder: StrPath) -> Path:
    """Write a starter project: a pipeline, a model and a dataset of the user's own to fill in."""
    from compressor.pipeline import starter

    target = Path(folder)
    for name in starter.FILES:
        if (target / name).exists():
            raise ConfigError(f"{target / name} exists; give a new folder")
    for name, text in starter.FILES.items():
        files.write_text(target / name, text)
    return target
