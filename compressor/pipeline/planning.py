"""What would run, why, and whether it can run here.

Nothing is computed, and a library that computes is imported only where a config depends on what
it finds (``device: cuda``, a stage's own ``check``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compressor.core.errors import ConfigError, MissingError
from compressor.pipeline import keys, machine
from compressor.pipeline.graph import Node, Pipeline
from compressor.pipeline.state import State

CACHED = "cached"
STALE = "stale"
NEW = "new"
WAITS = "waits"


@dataclass(frozen=True, slots=True)
class Step:
    """One node of a plan.

    Attributes:
        node: The node.
        state: ``cached``; ``stale`` (a key changed); ``new`` (never computed here); ``waits``
            (an input will be computed, so its key is not known yet).
        reason: Why it is not cached, or empty.
        seconds: How long it took last time, or None.
        code: ``module:attribute`` references that the config will import.
        problem: Why it cannot run on this machine, or empty; cached results need no machine.
    """

    node: Node
    state: str
    reason: str
    seconds: float | None
    code: tuple[str, ...]
    problem: str = ""


def plan(pipeline: Pipeline, state: State, nodes: Sequence[Node], rebench: bool) -> list[Step]:
    """The cache state of ``nodes`` in order. Results are trusted unverified here."""
    steps = []
    for node in nodes:
        step = _step(pipeline, state, node, rebench)
        if step.state != CACHED:
            lacking = machine.lacks(pipeline.document, node, state.settings.device)
            step = replace(step, problem=lacking)
        steps.append(step)
    return steps


def problems(steps: Sequence[Step]) -> list[str]:
    """What this machine lacks, each sentence once with the first stage that needs it."""
    found: dict[str, str] = {}
    for problem in (s.problem for s in steps if s.problem):
        found.setdefault(problem.partition("stages.")[2].partition(": ")[2], problem)
    return list(found.values())


def _step(pipeline: Pipeline, state: State, node: Node, rebench: bool) -> Step:
    recent = state.store.recent(pipeline.name, node.name)
    last = recent.seconds if recent else None
    code = tuple(node.stage.code(node.config))
    missing = state.missing(node)
    if missing:
        return Step(node, WAITS, f"waits for {', '.join(missing)}", last, code)
    try:
        parts = state.parts(node)
    except (ConfigError, MissingError) as error:
        return Step(node, STALE, str(error), last, code)
    entry = state.store.read(keys.digest(parts))
    if entry is not None and not (rebench and node.stage.measures_with(node.config)):
        state.finish(node, entry)
        return Step(node, CACHED, "", entry.seconds, code)
    if entry is not None:
        return Step(node, STALE, "--rebench", last, code)
    if recent is None:
        return Step(node, NEW, "never computed here", None, code)
    why = "; ".join(keys.differences(recent.parts, parts)) or "its stored bytes are gone"
    return Step(node, STALE, why, last, code)
