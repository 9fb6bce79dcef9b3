"""Runs of operators that become int8, or stay float, together.

A border (a Q or a DQ and the change of layout with it) costs 20 to 60 us where a convolution takes
100, so it may only sit where nothing cheap is torn off: behind a layer with its activation, and
behind the pooling, addition or concatenation that alone reads the result. Leaving squeezenet's
first convolution float but not the Relu and the pool behind it made the whole network slower.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from compressor.quantization.graph import Graph
from compressor.quantization.select import WEIGHTED, Selection


@dataclass(frozen=True, slots=True)
class Region:
    """One unit of the decision.

    Attributes:
        name: Of its first weighted node, or of its first node if it has none.
        nodes: Names in graph order, folded activations among them.
        weighted: Those with weights.
    """

    name: str
    nodes: tuple[str, ...]
    weighted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Edge:
    """A tensor between regions, or between a region and the operators that are always float.

    Attributes:
        tensor: Its name.
        producer: Index of the region that makes it; None for float operators and inputs.
        readers: Indexes of the other regions that read it, sorted, one per reading operator.
        outside: How many float operators read it, at least 1 if it is a graph output.
        free: Its maker is a matrix product, which writes float without a DequantizeLinear.
    """

    tensor: str
    producer: int | None
    readers: tuple[int, ...]
    outside: int
    free: bool

    def quantized(self, floats: Collection[int]) -> bool:
        """Whether a Q stands here when the regions ``floats`` are float."""
        made_float = self.producer is None or self.producer in floats
        return made_float and any(r not in floats for r in self.readers)

    def dequantized(self, floats: Collection[int]) -> int:
        """How many DQ cost something here: the runtime gives every float reader its own."""
        if self.free or self.producer is None or self.producer in floats:
            return 0
        return self.outside + sum(r in floats for r in self.readers)


def divide(graph: Graph, selection: Selection) -> tuple[Region, ...]:
    """Partition everything that can be int8 into regions, in graph order.

    Every weighted operator opens a region. Any other joins those of the inputs that it alone
    reads (a Concat or Add unites the branches that end in it), else that of its latest input.

    Args:
        graph: Prepared.
        selection: Everything that can be int8.
    """
    folded = {fold.name for fold in selection.folds.values()}
    parent: list[int] = []
    home: dict[str, int] = {}  # node name to a region, to be looked up with _root
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.name not in selection.kinds and node.name not in folded:
            continue
        if selection.kinds.get(node.name) == "weighted":
            parent.append(len(parent))
            home[node.name] = len(parent) - 1
            continue
        joined = [_root(home[name], parent) for name in _joins(node, graph, home, position)]
        home[node.name] = min(joined)
        for other in joined:
            parent[other] = min(joined)
    members: dict[int, list[NodeProto]] = {}
    for node in graph.nodes:
        if node.name in home:
            members.setdefault(_root(home[node.name], parent), []).append(node)
    return tuple(_region(nodes, selection) for _, nodes in sorted(members.items()))


def _root(region: int, parent: Sequence[int]) -> int:
    while parent[region] != region:
        region = parent[region]
    return region


def _joins(
    node: NodeProto, graph: Graph, home: Collection[str], position: Mapping[str, int]
) -> list[str]:
    """Makers of the inputs whose regions ``node`` belongs to, at least one."""
    makers = {name: graph.producer[name].name for name in node.input if name in graph.producer}
    inside = {name: maker for name, maker in makers.items() if maker in home}
    if node.op_type == "MatMul":  # of two activations: int8 only if both are
        return list(inside.values())
    alone = [maker for name, maker in inside.items() if graph.sole_reader(name) is not None]
    return alone or [max(inside.values(), key=position.__getitem__)]


def _region(nodes: Sequence[NodeProto], selection: Selection) -> Region:
    names = tuple(n.name for n in nodes)
    weighted = tuple(n for n in names if selection.kinds.get(n) == "weighted")
    return Region((weighted or names)[0], names, weighted)


def split(graph: Graph, region: Region) -> tuple[Region, ...]:
    """A region of several layers as parts: one per layer, and last what several of them feed.

    A layer takes along what it alone feeds inside the region, its activation for one. The addition
    of two branches, and what follows it, is nobody's own.

    Args:
        graph: Prepared.
        region: Of ``graph``.

    Returns:
        A partition of the region's nodes; the last part has no weights, where there is such a
        part. Empty for a region with fewer than two layers.
    """
    if len(region.weighted) < 2:
        return ()
    makers = {out: node.name for node in graph.nodes for out in node.output}
    inputs = {node.name: node.input for node in graph.nodes}
    feeds: dict[str, frozenset[str]] = {}  # node to the layers whose result it works on
    for name in region.nodes:
        before = (feeds.get(makers.get(tensor, ""), frozenset()) for tensor in inputs[name])
        feeds[name] = frozenset({name}) if name in region.weighted else frozenset().union(*before)
    parts = [
        Region(layer, tuple(n for n in region.nodes if feeds[n] == {layer}), (layer,))
        for layer in region.weighted
    ]
    shared = tuple(n for n in region.nodes if len(feeds[n]) != 1)
    return (*parts, Region(shared[0], shared, ())) if shared else tuple(parts)


def parts(
    graph: Graph, regions: Sequence[Region]
) -> tuple[tuple[Region, ...], Mapping[int, tuple[int, ...]]]:
    """The regions, then the parts of those with several layers (:func:`split`).

    Args:
        graph: Prepared.
        regions: Of ``graph``.

    Returns:
        Both in one row, so that one index names either; and per divided region, where its parts
        stand in it.
    """
    found = list(regions)
    inside: dict[int, tuple[int, ...]] = {}
    for i, region in enumerate(regions):
        first = len(found)
        found += split(graph, region)
        if len(found) > first:
            inside[i] = tuple(range(first, len(found)))
    return tuple(found), inside


def edges(graph: Graph, selection: Selection, regions: Sequence[Region]) -> tuple[Edge, ...]:
    """The tensors at which a border may be, in graph order."""
    home = {name: i for i, region in enumerate(regions) for name in region.nodes}
    tensors = dict.fromkeys(graph.inputs)
    tensors.update(dict.fromkeys(name for node in graph.nodes for name in node.output if name))
    return tuple(filter(None, (_edge(t, graph, selection, home) for t in tensors)))


def _edge(tensor: str, graph: Graph, selection: Selection, home: dict[str, int]) -> Edge | None:
    maker = graph.producer.get(tensor)
    producer = None if maker is None else home.get(maker.name)
    readers: list[int] = []
    outside = 0
    for node in graph.consumers.get(tensor, ()):
        region = home.get(node.name)
        if region is None:
            outside += 1
        elif region != producer and tensor in _data(node, graph, selection):
            readers.append(region)
    if tensor in graph.outputs:
        outside = max(outside, 1)
    if not readers and (producer is None or not outside):
        return None
    free = maker is not None and maker.op_type in WEIGHTED - {"Conv"} and not readers
    return Edge(tensor, producer, tuple(sorted(readers)), outside, free)


def _data(node: NodeProto, graph: Graph, selection: Selection) -> Iterator[str]:
    """The inputs of an int8 node that are activations."""
    one = selection.kinds.get(node.name) in {"weighted", "passing"}
    names = node.input[:1] if one else node.input
    yield from (name for name in names if name and name not in graph.constants)


def tensors(graph: Graph, selection: Selection) -> tuple[str, ...]:
    """Every tensor whose range some choice of regions needs, in a stable order."""
    needed = dict.fromkeys(selection.ranges_needed())
    for node in graph.nodes:
        if node.name in selection.kinds:
            needed.update(dict.fromkeys(_data(node, graph, selection)))
    return tuple(needed)


def excluded(regions: Sequence[Region], floats: Collection[int]) -> frozenset[str]:
    """The node names to exclude so that the regions ``floats`` stay float."""
    return frozenset(name for i in floats for name in regions[i].nodes)
