"""A wired pipeline as values: nodes, the outputs that feed them, the file they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compressor.core import yaml
from compressor.core.config import Config
from compressor.core.types import Stage
from compressor.pipeline.file import Combination


@dataclass(frozen=True, slots=True)
class Ref:
    """An output of a node."""

    node: str
    output: str


@dataclass(frozen=True, slots=True)
class Node:
    """One computation: a stage, a matrix member, or the engine's evaluation of a model.

    Attributes:
        name: Unique in the pipeline; evaluations are ``NAME@val`` and ``NAME@test``.
        stem: The stage's name in the file, without the combination.
        reference: Of the stage value.
        stage: The stage value.
        config: Typed options.
        seed: Root of its randomness.
        inputs: Input name to the outputs wired to it; one for inputs that take one.
        combination: Matrix keys and values that distinguish it.
        evaluates: For an evaluation: the node whose model it judges, else empty.
        split: For an evaluation: ``val`` or ``test``.
    """

    name: str
    stem: str
    reference: str
    stage: Stage[Any]
    config: Config
    seed: int
    inputs: Mapping[str, tuple[Ref, ...]]
    combination: Combination
    evaluates: str = ""
    split: str = ""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A checked and wired pipeline file.

    Attributes:
        name: Its name.
        seed: Its seed.
        nodes: In an order in which they can run, evaluations included.
        document: The file with overrides applied.
        gates: The raw list below ``gates``; ``compressor.gates`` gives it meaning.
    """

    name: str
    seed: int
    nodes: tuple[Node, ...]
    document: yaml.Document
    gates: Sequence[Any]

    def node(self, name: str) -> Node:
        """The node of that name. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def upstream(self, names: Sequence[str]) -> tuple[Node, ...]:
        """The named nodes, the evaluations of their models, and everything they need."""
        wanted = {n.name for n in self.nodes if n.name in names or n.stem in names}
        wanted |= {n.name for n in self.nodes if n.evaluates in wanted}
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted.update(ref.node for refs in node.inputs.values() for ref in refs)
        return tuple(n for n in self.nodes if n.name in wanted)
