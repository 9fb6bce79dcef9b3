"""From a profile of the runtime's nodes to microseconds per region, per layer and per border.

The profile names float convolutions after their output tensor (``relu_1_nchwc``), int8 ones after
the node (``node_Conv_508_token_5``); what a name meant is found by taking such tails off until a
node or tensor of our graph is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto

from compressor.quantization.graph import Graph
from compressor.quantization.regions import Region

_BORDER = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
_LAYERS = frozenset(
    {"Conv", "FusedConv", "QLinearConv", "Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul"}
    | {"MatMulIntegerToFloat", "QLinearMatMul"}
)
_TAIL = re.compile(r"(_nchwc|_token_\d+(_out\d+)?|_out\d+|_q(_to_dq)?|_quantized|_\d+|/[^/]*)$")


class Names:
    """Finds the graph's node or tensor behind a name of the runtime's."""

    def __init__(self, graph: Graph) -> None:
        """Index ``graph``."""
        self._graph = graph
        self._nodes = {node.name for node in graph.nodes}

    def known(self, name: str) -> bool:
        """Whether it is a node or tensor of the graph as it stands."""
        return name in self._nodes or name in self._graph.producer or name in self._graph.inputs

    def node(self, name: str) -> str:
        """The graph's node of that name, or the maker of that tensor; ``""`` for neither."""
        found = self._strip(name)
        if found in self._nodes:
            return found
        maker = self._graph.producer.get(found)
        return "" if maker is None else maker.name

    def tensor(self, name: str) -> str:
        """The tensor of that name, or the first output of that node; ``""`` for neither."""
        found = self._strip(name)
        if found in self._nodes:
            return str(next(n.output[0] for n in self._graph.nodes if n.name == found))
        return found

    def _strip(self, name: str) -> str:
        while name and not self.known(name):
            shorter = _TAIL.sub("", name)
            if shorter == name:
                return ""
            name = shorter
        return name


def region_times(
    executed: ModelProto, times: Mapping[str, float], graph: Graph, regions: Sequence[Region]
) -> tuple[float, ...]:
    """Microseconds per region.

    Changes of layout count to the region whose result they change; Q and DQ count to none.

    Args:
        executed: The optimized graph of a model that was written from ``graph``.
        times: Its node name to microseconds.
        graph: Prepared.
        regions: Of ``graph``.
    """
    made = {out: node for node in executed.graph.node for out in node.output}
    names = Names(graph)

    def maker(node: NodeProto) -> str:
        return _origin(node, made, names)

    return _spent(executed, times, regions, maker)


def layer_times(
    executed: ModelProto, times: Mapping[str, float], graph: Graph, parts: Sequence[Region]
) -> tuple[float, ...]:
    """Microseconds per part of a region (:func:`.regions.split`).

    As :func:`region_times`, but what the runtime fused into a layer counts to that layer: a
    convolution into which the addition behind it went writes the sum and keeps its own name.

    Args:
        executed: The optimized graph of a model that was written from ``graph``.
        times: Its node name to microseconds.
        graph: Prepared.
        parts: Of regions of ``graph``; nodes outside of them are left out.
    """
    made = {out: node for node in executed.graph.node for out in node.output}
    names = Names(graph)
    own = {name for part in parts if part.weighted for name in part.nodes}
    layers = {name for part in parts for name in part.weighted}
    weights = {node.input[1]: node.name for node in graph.nodes if node.name in layers}

    def maker(node: NodeProto) -> str:
        if node.op_type in _LAYERS:
            marks = (names.node(node.name), *(weights.get(name, "") for name in node.input))
            found = next((name for name in marks if name in own), "")
            if found:
                return found
        return _origin(node, made, names)

    return _spent(executed, times, parts, maker)


def _spent(
    executed: ModelProto, times: Mapping[str, float], regions: Sequence[Region],
    maker: Callable[[NodeProto], str],
) -> tuple[float, ...]:  # fmt: skip
    home = {name: i for i, region in enumerate(regions) for name in region.nodes}
    spent = [0.0] * len(regions)
    for node in executed.graph.node:
        if node.op_type in _BORDER or node.name not in times:
            continue
        region = home.get(maker(node))
        if region is not None:
            spent[region] += times[node.name]
    return tuple(spent)


def _origin(node: NodeProto, made: Mapping[str, NodeProto], names: Names) -> str:
    """The graph's node behind an executed one, or behind the nearest before it; or ``""``."""
    seen = 0
    front: list[NodeProto] = [node]
    while front and seen < 16:
        seen += len(front)
        for one in front:
            for token in (*one.output, one.name):
                found = names.node(token)
                if found:
                    return found
        front = [made[name] for one in front for name in one.input if name in made]
    return ""


def _borders(
    executed: ModelProto, times: Mapping[str, float], names: Names
) -> Iterator[tuple[NodeProto, float]]:
    for node in executed.graph.node:
        own = names.known(node.name)
        if node.name in times and (
            node.op_type in _BORDER or (node.op_type in _LAYOUT and not own)
        ):
            yield node, times[node.name]


def border_rate(
    executed: ModelProto, times: Mapping[str, float], graph: Graph, sizes: Mapping[str, int]
) -> tuple[float, float]:
    """What a border costs: microseconds, and microseconds per element, both at least 0.

    A line through the Q and DQ nodes of a model with many borders, scaled up so that it also pays
    for the changes of layout beside them.

    Args:
        executed: Optimized graph of that model.
        times: Its node name to microseconds.
        graph: Prepared.
        sizes: Tensor name to elements.
    """
    names = Names(graph)
    rows = [(node, us) for node, us in _borders(executed, times, names) if node.op_type in _BORDER]
    spent = sum(us for _, us in rows)
    if not rows or spent <= 0:
        return 0.0, 0.0
    counts = np.array([sizes.get(_tensor(node, names), 0) for node, _ in rows], np.float64)
    costs = np.array([us for _, us in rows], np.float64)
    spread = float(((counts - counts.mean()) ** 2).sum())
    slope = float(((counts - counts.mean()) * costs).sum()) / spread if spread > 0 else 0.0
    slope = min(max(0.0, slope), spent / max(float(counts.sum()), 1.0))
    fixed = max(0.0, float(costs.mean() - slope * counts.mean()))
    factor = sum(us for _, us in _borders(executed, times, names)) / spent
    return fixed * factor, slope * factor


def _tensor(node: NodeProto, names: Names) -> str:
    """The float tensor that a Q reads or a DQ makes."""
    return names.tensor(node.input[0] if node.op_type == "QuantizeLinear" else node.output[0])
