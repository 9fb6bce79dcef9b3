"""What would run, and why; nothing is computed and no library that computes is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compressor.core.errors import ConfigError, MissingError
from compressor.pipeline import keys
from compressor.pipeline.state import State
from compressor.pipeline.wiring import Node, Pipeline

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
    """

    node: Node
    state: str
    reason: str
    seconds: float | None
    code: tuple[str, ...]


def plan(pipeline: Pipeline, state: State, nodes: Sequence[Node], rebench: bool) -> list[Step]:
    """The cache state of ``nodes`` in order. Results are trusted unverified here."""
    return [_step(pipeline, state, node, rebench) for node in nodes]


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
