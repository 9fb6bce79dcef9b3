"""What int8 models are written from, whatever their placement: a network, ranges, roundings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from compressor.quantization import bias_correction, qdq
from compressor.quantization.bias_correction import Deltas
from compressor.quantization.calibrate import Calibration
from compressor.quantization.graph import Graph
from compressor.quantization.observers import Method, Range
from compressor.quantization.select import Selection
from compressor.quantization.target import Target


@dataclass(frozen=True, slots=True)
class Recipe:
    """The ingredients.

    Attributes:
        graph: Computes what the float model computes, under the same names.
        found: Ranges of its tensors.
        method: What they were chosen by.
        rounding: Weighted node to the integers of its weights, where they were learned.
        deltas: Weighted node to what its bias gains, [channels], measured with all of the above.
        steps: What was done to the plain recipe, each in words that tell it from every other.
    """

    graph: Graph = field(repr=False)
    found: Calibration = field(repr=False)
    method: Method = "minmax"
    rounding: Mapping[str, NDArray[np.int8]] = field(default_factory=dict, repr=False)
    deltas: Deltas = field(default_factory=dict, repr=False)
    steps: tuple[str, ...] = ()

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Of every tensor that any placement may quantize."""
        return self.found.ranges

    def then(self, step: str) -> tuple[str, ...]:
        """``steps`` with one more, in the place of an earlier one of its kind (its first word)."""
        kind = step.split()[0]
        return (*(s for s in self.steps if s.split()[0] != kind), step)

    def without_bias(self) -> Recipe:
        """The recipe to change: biases are right only for what they were measured with."""
        kept = tuple(s for s in self.steps if s.split()[0] != "bias")
        return replace(self, deltas={}, steps=kept)

    def write(self, selection: Selection, target: Target, cache: qdq.WeightCache) -> qdq.Written:
        """The QDQ model of a placement; a layer that it leaves float keeps its own bias.

        Args:
            selection: What is int8; made from ``graph`` or from one with the same nodes.
            target: Decides the integers.
            cache: Of this recipe alone.
        """
        inside = {n: d for n, d in self.deltas.items() if selection.kinds.get(n) == "weighted"}
        graph = bias_correction.apply(self.graph, inside) if inside else self.graph
        return qdq.write(graph, selection, self.ranges, target, self.rounding, cache)
