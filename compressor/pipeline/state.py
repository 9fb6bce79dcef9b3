"""Where a pipeline stands: artifacts that are there, keys that can be computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressor.core.store import Entry, Store
from compressor.core.types import MODEL_KINDS, Artifact, Inputs, ModelSpec
from compressor.pipeline import keys
from compressor.pipeline.graph import Node, Ref


@dataclass(slots=True)
class State:
    """Grows as nodes turn out to be cached or have run.

    Attributes:
        store: Where bytes live.
        settings: Device and threads.
        artifacts: What each finished node made, by output name.
        specs: The network of each finished node, if it made one.
        sources: Memo of ``core.source``.
    """

    store: Store
    settings: keys.Settings
    artifacts: dict[str, dict[str, Artifact]] = field(default_factory=dict)
    specs: dict[str, ModelSpec | None] = field(default_factory=dict)
    sources: dict[str, list[Any]] = field(init=False)
    _kept: int = field(init=False)

    def __post_init__(self) -> None:
        self.sources = self.store.recall("sources")
        self._kept = len(self.sources)

    def ahead(self) -> State:
        """A copy that may look at what follows without this one knowing."""
        return State(self.store, self.settings, dict(self.artifacts), dict(self.specs))

    def missing(self, node: Node) -> list[str]:
        """Names of nodes that ``node`` needs and that are not finished."""
        needed = [ref.node for refs in node.inputs.values() for ref in refs]
        return [n for n in dict.fromkeys(needed) if n not in self.artifacts]

    def inputs(self, node: Node) -> Inputs:
        """Artifacts for a node whose inputs are all finished."""
        found: dict[str, Artifact | tuple[Artifact, ...]] = {}
        for name, refs in node.inputs.items():
            need = node.stage.needs[name.removesuffix(".val")]
            got = tuple(self._artifact(ref) for ref in refs)
            found[name] = got if need.many else got[0]
        return found

    def _artifact(self, ref: Ref) -> Artifact:
        return self.artifacts[ref.node][ref.output]

    def spec(self, node: Node, inputs: Inputs) -> ModelSpec | None:
        """The network that ``node`` introduces or inherits from the models it takes."""
        if node.stage.spec is not None:
            return node.stage.spec(node.config, inputs)
        if not MODEL_KINDS.intersection(node.stage.makes.values()):
            return None
        for name in ("model", *node.stage.needs):
            got = inputs.get(name, ())
            for artifact in got if isinstance(got, tuple) else (got,):
                if artifact.spec is not None:
                    return artifact.spec
        return None

    def parts(self, node: Node) -> keys.Parts:
        """The parts of the key of a node whose inputs are finished."""
        inputs = self.inputs(node)
        spec = self.spec(node, inputs)
        found = keys.parts(node, inputs, spec, self.store, self.settings, self.sources)
        # `plan` alone makes no store
        if len(self.sources) > self._kept and self.store.root.is_dir():
            self.store.memorize("sources", self.sources)
            self._kept = len(self.sources)
        return found

    def finish(self, node: Node, entry: Entry) -> None:
        """Take a node's stored results as its artifacts."""
        spec = self.spec(node, self.inputs(node))
        self.specs[node.name] = spec
        kinds = [output.kind for output in entry.outputs.values()]
        self.artifacts[node.name] = {
            name: Artifact(
                node.name if kinds.count(output.kind) == 1 else f"{node.name}.{name}",
                output.kind,
                self.store.object(output.digest),
                output.digest,
                spec if output.kind in MODEL_KINDS else None,
            )
            for name, output in entry.outputs.items()
        }


def digests(entry: Entry) -> Mapping[str, str]:
    """Output name to digest."""
    return {name: output.digest for name, output in entry.outputs.items()}
