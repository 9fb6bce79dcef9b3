"""What ``import compressor`` gives: the commands as functions, typed, without exits or prints."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.core import environment, files, results
from compressor.core.errors import ConfigError, suggestion
from compressor.core.results import GateRecord, RunResults
from compressor.core.store import Store
from compressor.core.types import Timing, TimingProtocol
from compressor.pipeline import execution, planning, progress, record, wiring
from compressor.pipeline.keys import Settings
from compressor.pipeline.state import State
from compressor.pipeline.wiring import Pipeline

if TYPE_CHECKING:
    from compressor.quantization.plain import QuantizeReport
    from compressor.quantization.quality import Labelled

StrPath = str | os.PathLike[str]

# Of samples on the command line, unpacked: a small zip can declare anything.
MAX_NPZ_BYTES = 8 << 30


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
) -> tuple[State, Sequence[wiring.Node]]:
    known = {n.stem for n in pipeline.nodes} | {n.name for n in pipeline.nodes}
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}: no such stage{suggestion(name, known)}")
    settings = Settings(device, threads or environment.usable_threads())
    state = State(Store(store_path(store), warn), settings)
    return state, pipeline.upstream(only) if only else pipeline.nodes


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
    reporter: execution.Reporter | None = None,
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

    pipeline = load(path, overrides)
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

    folder = Path(run)
    return room.write(folder, results.load(folder))


def bench(
    models: Sequence[StrPath],
    *,
    provider: str = "cpu",
    threads: int = 1,
    batch: int = 1,
    rounds: int = 30,
    inputs: StrPath | None = None,
) -> Timing:
    """Interleaved latency of any ONNX files; the first is the baseline.

    Args:
        models: At least one file; one alone is measured against itself (the A/A control).
        provider: ``cpu`` or ``cuda``.
        threads: Intra-op threads.
        batch: Samples per call.
        rounds: Interleaved rounds.
        inputs: ``.npz`` with one array per model input; None feeds random values.
    """
    from compressor.data.arrays import read_npz
    from compressor.runtime.timing import feed_digest, interleave, named

    feed = None if inputs is None else read_npz(Path(inputs), MAX_NPZ_BYTES)
    protocol = TimingProtocol(provider, threads, batch, rounds, inputs=feed_digest(feed))
    return interleave(named([Path(m) for m in models]), protocol, feed)


def quantize(
    model: StrPath,
    out: StrPath,
    calibration: StrPath,
    *,
    placement: Literal["measured", "none"] | None = None,
    budget: float = 180.0,
    min_sqnr: float = 25.0,
    max_drop: float | None = None,
    labelled: StrPath | None = None,
    told: Callable[[float, str], None] = lambda spent, note: None,
    **options: Any,
) -> QuantizeReport:
    """Make an int8 file of an ONNX model trained elsewhere.

    A measured placement leaves its state in ``OUT.tune`` when it is interrupted, with the best
    model so far as ``best.onnx``, and goes on from it when it is called again.

    Args:
        model: The fp32 file.
        out: Where the result goes, written atomically: int8 where it pays on this machine, or
            the fp32 model if int8 pays nowhere.
        calibration: ``.npz`` with one array per model input, first axis samples.
        placement: ``measured``, or ``none`` for int8 throughout; None measures if ``target`` is
            this machine's.
        budget: Seconds for what is measured.
        min_sqnr: Least SQNR in dB of every output on the held-out samples.
        max_drop: Instead, the largest drop in accuracy on ``labelled``, in points.
        labelled: ``.npz`` with one array per model input and ``labels`` (classes).
        told: Told seconds spent and what is being done.
        options: Fields of :class:`compressor.quantization.plain.Options`; ``threads``, which are
            not those that latency is measured with, are all usable ones by default.

    Raises:
        ConfigError: The files, or ``max_drop`` without labels or without a measured placement.
        MissingError: ``measured`` asked for a target that this machine is not.
    """
    from compressor.core.hashing import digest_file
    from compressor.data.arrays import read_npz
    from compressor.pipeline.timings import StoredTimings
    from compressor.quantization.goal import Goal
    from compressor.quantization.plain import Options
    from compressor.quantization.tune import place

    if max_drop is not None and labelled is None:
        raise ConfigError("max_drop: needs labels; give --eval Y.npz with the inputs and `labels`")
    samples = read_npz(Path(calibration), MAX_NPZ_BYTES)
    judged = None if labelled is None else _labelled(Path(labelled))
    state = Path(f"{os.fspath(out)}.tune")
    given = [Path(p) for p in (calibration, labelled) if p is not None]
    chosen = Options(**{"threads": environment.usable_threads(), **options})
    report = place(
        Path(model), Path(out), samples, chosen, Goal(budget, min_sqnr, max_drop),
        StoredTimings(Store(state)), state, placement=placement or "measured",
        explicit=placement is not None, labelled=judged,
        identity=" ".join(map(digest_file, given)), told=told,
    )  # fmt: skip
    files.remove(state)
    return report


def _labelled(path: Path) -> Labelled:
    """Inputs and class labels of an ``.npz``. Raises ConfigError."""
    from compressor.core.tasks import CLASSIFICATION
    from compressor.data.arrays import read_npz
    from compressor.quantization.quality import Labelled
    from compressor.quantization.samples import Samples

    arrays = read_npz(path, MAX_NPZ_BYTES)
    labels = arrays.pop("labels", None)
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if labels is None or labels.ndim != 1 or set(lengths.values()) != {len(labels)}:
        raise ConfigError(
            f"{path}: needs `labels` [n] and one array [n, ...] per model input; got "
            f"labels {None if labels is None else list(labels.shape)}, samples {lengths}"
        )
    return Labelled(Samples(arrays), labels, CLASSIFICATION)


def verify(bundle: StrPath) -> Any:
    """Check a bundle's hashes and golden outputs with this package's own verifier."""
    from compressor.runtime import verify as room

    return room.verify(Path(bundle))


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
