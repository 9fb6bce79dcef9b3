"""Runs what is stale: one node after the other, each looked up, locked, computed, published."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from compressor.core import files
from compressor.core.environment import check_onnxruntime, onnxruntime_packages
from compressor.core.errors import (
    CompressorError,
    ConfigError,
    IntegrityError,
    MissingError,
    StageError,
    SystemFault,
)
from compressor.core.locks import MACHINE
from compressor.core.store import Entry
from compressor.core.types import Context, Progress, StageResult
from compressor.pipeline import keys, planning
from compressor.pipeline.graph import Node, Pipeline
from compressor.pipeline.machine import EXTRA_OF, lacks
from compressor.pipeline.state import State
from compressor.pipeline.timings import StoredTimings


@dataclass(frozen=True, slots=True)
class Done:
    """A finished node: its stored entry, and whether it was computed now."""

    node: Node
    entry: Entry
    ran: bool


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: measure again, and which stages' code edits are accepted as harmless."""

    rebench: bool = False
    accept_code: frozenset[str] = frozenset()


class Reporter(Progress, Protocol):
    """What the engine tells the outside: a :class:`Progress` that knows which node it is in."""

    def start(self, node: Node) -> None:
        """Announce that ``node`` is being computed."""

    def finish(self, done: Done) -> None:
        """Announce that ``node`` is there, cached or computed."""


def execute(
    pipeline: Pipeline,
    state: State,
    nodes: Sequence[Node],
    options: Options,
    reporter: Reporter,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Done]:
    """Bring every node up to date, in order.

    Raises what the first failing stage raised; before anything runs, what :func:`_foresee` and
    :class:`_Machine` raise.
    """
    _foresee(pipeline, state, nodes)
    machine = _Machine(pipeline, state, nodes, options)
    finished = []
    for node in nodes:
        done = _Runner(pipeline, state, node, options, reporter, clock, machine).run()
        state.finish(node, done.entry)
        state.store.remember(pipeline.name, node.name, done.entry.key)
        reporter.finish(done)
        finished.append(done)
    return finished


def _foresee(pipeline: Pipeline, state: State, nodes: Sequence[Node]) -> None:
    """Refuse now what would otherwise fail after an hour of training.

    Raises:
        ConfigError: Files that stages read are not there; all of them.
        MissingError: Several onnxruntime packages.
        SystemFault: The store cannot be written.
    """
    files.check_writable(state.store.root)
    problems: list[str] = []
    for node in nodes:
        try:
            keys.externals(node, state.store)
        except ConfigError as error:
            where = ("stages", node.stem, "with")
            line = pipeline.document.locate(where).removesuffix(".".join(where))
            problems += (line + problem for problem in error.problems)
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    wants = any("onnxruntime" in node.stage.needs_extra for node in nodes)
    if wants and len(onnxruntime_packages()) > 1:
        check_onnxruntime()


class _Machine:
    """Asked before each stage that must run; the first time it looks at all that follow.

    Not earlier: what is cached needs neither torch nor a provider, and looking costs a plan.
    """

    def __init__(
        self, pipeline: Pipeline, state: State, nodes: Sequence[Node], options: Options
    ) -> None:
        self._pipeline = pipeline
        self._state = state
        self._nodes = nodes
        self._options = options
        self._asked = False

    def check(self, node: Node) -> None:
        """Raise MissingError if ``node`` or, the first time, a stage behind it cannot run here."""
        if self._asked:
            problem = lacks(self._pipeline.document, node, self._state.settings.device)
            found = [problem] if problem else []
        else:
            self._asked = True
            rest = self._nodes[self._nodes.index(node) :]
            steps = planning.plan(self._pipeline, self._state.ahead(), rest, self._options.rebench)
            kept = self._options.accept_code
            found = planning.problems([s for s in steps if s.node.stem not in kept])
        if found:
            raise MissingError("\n".join(found))


class _Runner:
    """One node on its way from key to entry."""

    def __init__(
        self,
        pipeline: Pipeline,
        state: State,
        node: Node,
        options: Options,
        reporter: Reporter,
        clock: Callable[[], float],
        machine: _Machine,
    ) -> None:
        self._machine = machine
        self._pipeline = pipeline
        self._state = state
        self._store = state.store
        self._node = node
        self._options = options
        self._reporter = reporter
        self._clock = clock

    def run(self) -> Done:
        node, store = self._node, self._store
        parts = self._state.parts(node)
        key = keys.digest(parts)
        again = self._options.rebench and node.stage.measures_with(node.config)
        entry = None if again else store.lookup(key)
        if entry is None and node.stem in self._options.accept_code:
            entry = self._accepted(key, parts)
        if entry is not None:
            return Done(node, entry, ran=False)
        self._machine.check(node)
        self._reporter.start(node)

        def waiting() -> None:
            self._reporter.say(f"{node.name}: another run computes this; waiting for it")

        with store.lock(key, waiting):
            entry = None if again else store.lookup(key)
            if entry is not None:
                return Done(node, entry, ran=False)
            return Done(node, self._compute(key, parts), ran=True)

    def _accepted(self, key: str, parts: keys.Parts) -> Entry | None:
        """The last result, if nothing but code differs and the user said that it is harmless."""
        recent = self._store.recent(self._pipeline.name, self._node.name)
        if recent is None:
            return None
        but_code = {**recent.parts, "code": parts["code"]}
        if but_code != dict(parts) or self._store.lookup(recent.key) is None:
            return None
        entry = dataclasses.replace(recent, key=key, parts=parts)
        self._store.commit(entry)
        self._reporter.say(f"{self._node.name}: edit accepted, result kept")
        return entry

    def _compute(self, key: str, parts: keys.Parts) -> Entry:
        node, store = self._node, self._store
        notes: list[str] = []
        timings = StoredTimings(store, again=self._options.rebench)
        resume = store.resume(key)
        with files.faults(resume):
            resume.mkdir(parents=True, exist_ok=True)
        began = self._clock()
        with store.workdir() as workdir:
            context = Context(
                workdir,
                resume,
                node.seed,
                self._state.settings.device,
                self._state.settings.threads,
                _Noting(self._reporter, notes),
                timings,
            )
            result = self._call(context)
            self._check(result, workdir)
            if keys.externals(node, store) != parts["externals"]:
                raise IntegrityError(f"{node.name}: its files changed while it ran; run it again")
            outputs = {
                name: dataclasses.replace(store.put(result.outputs[name]), kind=kind)
                for name, kind in node.stage.makes.items()
            }
        entry = Entry(
            key,
            node.stage.name,
            outputs,
            dict(result.metrics),
            parts,
            self._clock() - began,
            tuple(notes),
            tuple(timings.read),
        )
        store.commit(entry)
        files.remove(resume)
        return entry

    def _call(self, context: Context) -> StageResult:
        """Run the stage; what it raises is said to come from it."""
        node = self._node
        try:
            with files.faults(context.workdir):
                if node.stage.measures_with(
                    node.config
                ):  # measuring takes the machine for itself when it must
                    return node.stage.run(node.config, self._state.inputs(node), context)
                with MACHINE.share():
                    return node.stage.run(node.config, self._state.inputs(node), context)
        except CompressorError as error:
            error.args = (f"{node.name}: {error}",)
            raise
        except MemoryError as error:
            raise SystemFault(f"{node.name}: out of memory; use a smaller batch") from error
        except ModuleNotFoundError as error:
            extra = EXTRA_OF.get(str(error.name).partition(".")[0])
            advice = f'; `pip install "compressor[{extra}]"`' if extra else ""
            raise MissingError(f"{node.name}: needs {error.name}{advice}") from error

    def _check(self, result: StageResult, workdir: Path) -> None:
        """Hold a stage to what it declares."""
        declared, made = set(self._node.stage.makes), set(result.outputs)
        name = self._node.name
        if declared != made:
            raise StageError(f"{name}: declares {sorted(declared)} and made {sorted(made)}")
        for output, path in result.outputs.items():
            if not path.exists():
                raise StageError(f"{name}.{output}: {path} does not exist")
            if not path.resolve().is_relative_to(workdir.resolve()):
                raise StageError(f"{name}.{output}: {path} is outside the work folder")
        for metric, value in result.metrics.items():
            if not all(map(math.isfinite, (value.value, *value.samples))):
                raise StageError(f"{name}.{metric}: {value.value} is not a finite number")


class _Noting:
    """Passes progress on and keeps the lines that were said: a cache hit repeats them."""

    def __init__(self, inner: Progress, notes: list[str]) -> None:
        self._inner = inner
        self._notes = notes

    def update(self, done: int, total: int, note: str = "") -> None:
        self._inner.update(done, total, note)

    def say(self, line: str) -> None:
        self._notes.append(line)
        self._inner.say(line)
