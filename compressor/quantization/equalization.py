"""Cross-layer equalization: move scale from a layer's channels to the layer behind it.

Relu(x / s) = Relu(x) / s for s > 0, so a channel of one layer can be divided by s and the weights
of the next layer that read it multiplied by s: the float function is the same, and the channels
share one quantized range better (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.1). Only positively homogeneous operators may lie
between: Relu, LeakyRelu, PRelu, the poolings, flattening; not Clip, HardSwish or Sigmoid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from compressor.quantization import parts
from compressor.quantization.calibrate import Feeds
from compressor.quantization.graph import Array, Graph, attribute, constant_of
from compressor.quantization.select import WEIGHTED, reduction_first, why_float

_ACTIVATIONS = frozenset({"Relu", "LeakyRelu", "PRelu"})
_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
_FLAT = frozenset({"Flatten", "Reshape", "Squeeze"})
_LIMIT = 1000.0  # a channel is scaled by this at most: float32 keeps its digits
_CONVERGED = 1e-3
Wide = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two layers with nothing but homogeneous operators, each read once, between them.

    Attributes:
        first: Name of the node whose output channels are divided.
        second: Name of the node whose input channels are multiplied.
        tensor: What ``first`` makes, behind its activation if it has one; the tensor that is
            quantized and [n, channels, ...].
        channels: Of ``first``.
        low: Least factor that ``equalize`` multiplied ``second`` by, and
        high: the greatest; 1 before.
    """

    first: str
    second: str
    tensor: str
    channels: int
    low: float = 1.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Equalized:
    """The rescaled graph; its activations have other ranges, so calibrate it.

    Attributes:
        graph: Computes the same as before, under the same names.
        pairs: With their factors.
        rounds: Sweeps over all pairs until no factor moved.
    """

    graph: Graph
    pairs: tuple[Pair, ...]
    rounds: int


def pairs(graph: Graph) -> tuple[Pair, ...]:
    """All pairs, in graph order; a node can be second of one and first of the next."""
    found = []
    for node in graph.nodes:
        if node.op_type in WEIGHTED and not why_float(node, graph):
            pair = _pair(node, graph)
            if pair is not None:
                found.append(pair)
    return tuple(found)


def peaks(graph: Graph, feeds: Feeds, threads: int = 1) -> dict[str, Wide]:
    """Largest magnitude of each channel of the tensors between pairs, over the samples."""
    axes = {}
    for pair in pairs(graph):
        node = next(n for n in graph.nodes if n.name == pair.first)
        found = parts.channel_axis(node, graph)
        if found is not None:
            axes[pair.tensor] = found
    return parts.per_channel(graph.model, axes, feeds, kind="peak", threads=threads) if axes else {}


def equalize(
    graph: Graph, observed: Mapping[str, Wide] = MappingProxyType({}), max_rounds: int = 50
) -> Equalized:
    """Rescale all pairs, again and again, until none moves by more than 0.1 %.

    Args:
        graph: Prepared float model; not changed.
        observed: Pair tensor to the peak of each of its channels, from :func:`peaks`. Such a
            pair balances the activation, which has one scale, against the second layer's
            weights, which have one per output channel, once and for all (Xiao et al. 2023,
            "SmoothQuant", equation 4, migration strength 0.5; 1 before a depthwise layer, where
            no two channels share a scale). Other pairs balance the first layer's weights and
            bias against the second's weights, as in the data-free paper. (It absorbs large
            biases with the statistics of a BatchNormalization, which is folded here; a bias
            that counts as a weight keeps a channel of almost only bias from being blown up.)
        max_rounds: Sweeps at most.
    """
    found = pairs(graph)
    tables = _tables(graph, found)
    factors = {p.first: np.ones(p.channels) for p in found}
    for pair in found:
        if pair.tensor in observed:
            factors[pair.first] = _smooth(observed[pair.tensor], tables[pair.second])
    entering = {p.second: p.first for p in found}
    moved, rounds = np.inf, 0
    while found and moved > _CONVERGED and rounds < max_rounds:
        moved, rounds = 0.0, rounds + 1
        for pair in (p for p in found if p.tensor not in observed):
            old, before = factors[pair.first], factors.get(entering.get(pair.first, ""))
            out = _outgoing(pair.first, graph, tables, before) / old
            into = _incoming(tables[pair.second], old, factors.get(pair.second))
            step = np.ones(pair.channels)
            live = (out > 0) & (into > 0)  # a dead channel, or one nobody reads, stays
            step[live] = np.sqrt(out[live] / into[live])
            new = np.clip(old * step, 1 / _LIMIT, _LIMIT)
            moved = max(moved, float(np.abs(np.log(new / old)).max()))
            factors[pair.first] = new
    ranged = tuple(
        replace(p, low=float(factors[p.first].min()), high=float(factors[p.first].max()))
        for p in found
    )
    return Equalized(_rewrite(graph, found, factors), ranged, rounds)


def _tables(graph: Graph, found: Sequence[Pair]) -> dict[str, Wide]:
    """Largest weight of each [group, output, input channel] of the nodes of all pairs."""
    channels = {p.second: p.channels for p in found}
    tables = {}
    for node in graph.nodes:
        if node.name in channels or any(p.first == node.name for p in found):
            weight = constant_of(node, graph, 1)
            assert weight is not None  # ``why_float`` saw it
            groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
            rows = np.abs(reduction_first(node, weight)).astype(np.float64)
            inputs = channels.get(node.name, groups) // groups
            tables[node.name] = rows.reshape(groups, len(rows) // groups, inputs, -1).max(axis=3)
    return tables


def _smooth(peak: Wide, table: Wide) -> Wide:
    """Factors that balance the channels' peaks against their shares in the rows' scales."""
    rows = table.max(axis=2, keepdims=True)
    share = (table / np.where(rows > 0, rows, 1.0)).max(axis=1).reshape(-1)
    live = (peak > 0) & (share > 0)
    factor = np.ones(len(peak))
    alone = table.shape[2] == 1
    factor[live] = peak[live] if alone else np.sqrt(peak[live] / share[live])
    if live.any():
        factor[live] /= np.exp(np.log(factor[live]).mean())  # a common factor changes nothing
    return np.clip(factor, 1 / _LIMIT, _LIMIT)


def _outgoing(name: str, graph: Graph, tables: Mapping[str, Wide], before: Wide | None) -> Wide:
    """Largest weight or bias of each output channel, its inputs multiplied by ``before``."""
    table = tables[name]
    if before is not None:
        table = table * before.reshape(len(table), 1, -1)
    largest: Wide = table.max(axis=2).reshape(-1)
    bias = constant_of(next(n for n in graph.nodes if n.name == name), graph, 2)
    return largest if bias is None else np.maximum(largest, np.abs(bias.reshape(-1)))


def _incoming(table: Wide, before: Wide, after: Wide | None) -> Wide:
    """Largest weight that reads each input channel, after both kinds of scaling."""
    if after is not None:
        table = table / after.reshape(*table.shape[:2], 1)
    largest: Wide = table.max(axis=1).reshape(-1) * before
    return largest


def _rewrite(graph: Graph, found: Sequence[Pair], factors: Mapping[str, Wide]) -> Graph:
    """Divide and multiply the original weights once, in float64."""
    nodes = {n.name: n for n in graph.nodes}
    entering = {p.second: factors[p.first] for p in found}
    constants: dict[tuple[str, int], Array] = {}
    for name in dict.fromkeys([*factors, *entering]):
        node = nodes[name]
        weight, bias = constant_of(node, graph, 1), constant_of(node, graph, 2)
        assert weight is not None  # ``why_float`` saw it
        rows = _scaled(node, weight, entering.get(name), factors.get(name))
        straight = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
        value = rows if straight else rows.T
        constants[name, 1] = value.reshape(weight.shape).astype(np.float32)
        if bias is not None and name in factors:
            row = np.broadcast_to(bias.reshape(-1), (len(rows),)).astype(np.float64)
            constants[name, 2] = (row / factors[name]).astype(np.float32)
    return parts.replace(graph, constants)


def _scaled(node: NodeProto, weight: Array, before: Wide | None, after: Wide | None) -> Wide:
    """Weights [channels, reduction]: inputs multiplied by ``before``, outputs over ``after``."""
    rows = np.array(reduction_first(node, weight), np.float64)
    if before is not None:
        groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
        inputs = before.reshape(groups, 1, -1, 1)
        split = rows.reshape(groups, len(rows) // groups, inputs.shape[2], -1)
        rows = (split * inputs).reshape(rows.shape)
    return rows if after is None else rows / after[:, None]


def _pair(node: NodeProto, graph: Graph) -> Pair | None:
    """The pair that starts at ``node``, walking through homogeneous operators, or None."""
    spatial = node.op_type == "Conv"
    weight = constant_of(node, graph, 1)
    assert weight is not None  # ``why_float`` saw it
    channels = len(reduction_first(node, weight))
    name = tensor = str(node.output[0])
    flat, pooled = False, False
    while (reader := graph.sole_reader(name)) is not None:
        op = reader.op_type
        if reader.domain not in {"", "ai.onnx"} or reader.input[0] != name:
            return None
        if op in WEIGHTED:
            fits = _reads_channels(reader, graph, channels, spatial, name if flat else "")
            return Pair(node.name, reader.name, tensor, channels) if fits else None
        if len([o for o in reader.output if o]) != 1:
            return None
        name = str(reader.output[0])
        if op in _ACTIVATIONS:
            if op == "PRelu" and constant_of(reader, graph, 1) is None:
                return None
            tensor = name if not (flat or pooled) else tensor
        elif op in _POOLS and spatial and not flat:
            pooled = True
        elif op in _FLAT and spatial and not flat and _keeps_rows(reader, graph):
            flat = True
        else:
            return None
    return None


def _keeps_rows(node: NodeProto, graph: Graph) -> bool:
    """Whether [n, C, ...] becomes [n, C * ...]."""
    before, after = graph.shape(node.input[0]), graph.shape(node.output[0])
    if before is None or after is None or len(after) != 2:
        return False
    features = [d for d in before[1:] if d is not None]
    return len(features) == len(before) - 1 and after[1] == int(np.prod(features))


def _reads_channels(node: NodeProto, graph: Graph, channels: int, spatial: bool, flat: str) -> bool:
    """Whether the inputs of a weighted node are ``channels``, in order, each once or in a row."""
    if why_float(node, graph):
        return False
    weight = constant_of(node, graph, 1)
    assert weight is not None  # ``why_float`` saw it
    if node.op_type == "Conv":
        return spatial and not flat and weight.shape[1] * attribute(node, "group", 1) == channels
    features = reduction_first(node, weight).shape[1]
    if spatial:
        shape = graph.shape(flat) if flat else None
        return shape is not None and shape[1] == features
    return bool(features == channels)
