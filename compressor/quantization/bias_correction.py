"""Empirical bias correction: quantization must not move the mean of a channel.

Rounding weights and activations leaves an error whose mean per output channel is rarely 0, and a
shift is what the following layers bear worst. The mean is measured on calibration samples and
taken out of the bias (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and
Bias Correction", section 4.2 and appendix D: layer by layer, behind layers already corrected).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from compressor.quantization import parts, qdq
from compressor.quantization.calibrate import Feeds
from compressor.quantization.graph import Array, Graph, constant_of
from compressor.quantization.observers import Range
from compressor.quantization.select import Selection, reduction_first
from compressor.quantization.target import Target
from compressor.quantization.weights import bias_scale

Deltas = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Correction:
    """What was measured.

    Attributes:
        graph: The float graph with corrected biases, to be written with the selection, ranges
            and rounding that it was measured with; it is no float reference any more.
        deltas: Weighted node name to what its bias gained, [channels], in the output's unit.
        skipped: Weighted int8 nodes without a bias to correct (a MatMul of rank 3 or more with
            no constant Add behind it).
    """

    graph: Graph
    deltas: Deltas
    skipped: tuple[str, ...]


def correct(
    graph: Graph,
    selection: Selection,
    ranges: Mapping[str, Range],
    target: Target,
    feeds: Feeds,
    *,
    rounding: Mapping[str, NDArray[np.int8]] = MappingProxyType({}),
    threads: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Correction:
    """Measure and fold the mean error of every int8 Conv, Gemm and MatMul with a bias.

    Layers in front of the measured one run in the kernels that will run them, corrected; its own
    sums are read before they are quantized. One pass over the samples per level of the network,
    each up to that level; a few dozen samples are enough for a mean, so give few of a large net.

    Args:
        graph: Prepared float model.
        selection: What becomes int8.
        ranges: As for :func:`.qdq.write`.
        target: As for :func:`.qdq.write`.
        feeds: Calibration batches, the same at every call.
        rounding: As for :func:`.qdq.write`.
        threads: Of the runtime.
        stop: Asked before each level; what is corrected by then is kept, as no layer's
            correction counts on a later one.
    """
    axes = {}
    skipped = []
    groups = parts.levels(graph, selection)
    for node in (n for group in groups for n in group):
        found = parts.channel_axis(node, graph)
        if found is None or _constant(node, graph) is None:
            skipped.append(node.name)
        else:
            axes[node.name] = found
    wanted = [n for group in groups for n in group if n.name in axes]
    if not wanted:
        return Correction(graph, {}, tuple(skipped))
    exact = parts.per_channel(
        graph.model, {n.output[0]: axes[n.name] for n in wanted}, feeds, threads=threads
    )
    deltas: dict[str, NDArray[np.float64]] = {}
    for group in groups:
        level = [n for n in group if n.name in axes]
        if stop():
            break
        if not level:
            continue
        written = qdq.write(apply(graph, deltas), selection, ranges, target, rounding)
        raw = {n.name: n.output[0] for n in written.model.graph.node}
        got = parts.per_channel(
            written.model, {raw[n.name]: axes[n.name] for n in level}, feeds, threads=threads
        )
        for node in level:
            error = got[raw[node.name]] - exact[node.output[0]]
            deltas[node.name] = _rounding_of_bias(node, graph, selection, written) - error
    return Correction(apply(graph, deltas), deltas, tuple(skipped))


def apply(graph: Graph, deltas: Deltas) -> Graph:
    """Add ``deltas`` to the biases; where a Conv, Gemm or matrix MatMul has none, it gets one.

    Args:
        graph: Not changed.
        deltas: Weighted node name to [channels].
    """
    nodes = {n.name: n for n in graph.nodes}
    constants: dict[tuple[str, int], Array] = {}
    for name, delta in deltas.items():
        place = _constant(nodes[name], graph)
        assert place is not None  # ``correct`` gives none for such nodes
        owner, index, old = place
        wide = old.astype(np.float64)
        shape = wide.shape if wide.size == delta.size else delta.shape
        constants[owner, index] = (wide.reshape(-1) + delta).reshape(shape).astype(np.float32)
    changed = parts.replace(graph, constants)
    for node in changed.nodes:
        if node.name in deltas and node.op_type == "MatMul" and len(node.input) == 3:
            node.op_type = "Gemm"
    return changed


def _rounding_of_bias(
    node: NodeProto, graph: Graph, selection: Selection, written: qdq.Written
) -> NDArray[np.float64]:
    """What the int32 grid added to the bias; the corrected one is rounded anew."""
    quantized = written.weights[node.name]
    bias = constant_of(node, graph, 2)
    if quantized.bias is None or bias is None:
        return np.zeros(len(quantized.scale))
    scale = written.tensors[selection.roots.get(node.input[0], node.input[0])].scale
    steps = bias_scale(scale, quantized.scale).astype(np.float64)
    return np.asarray(quantized.bias * steps - bias.reshape(-1))


def _constant(node: NodeProto, graph: Graph) -> tuple[str, int, Array] | None:
    """Where the bias of a weighted node lies: (node name, input index, value, 0 if absent)."""
    bias = constant_of(node, graph, 2)
    none = np.zeros(1, np.float32)
    if node.op_type != "MatMul":
        return node.name, 2, none if bias is None else bias
    weight = constant_of(node, graph, 1)
    reader = graph.sole_reader(node.output[0])
    if reader is not None and reader.op_type == "Add" and weight is not None:
        channels = len(reduction_first(node, weight))
        for index, name in enumerate(reader.input):
            row = graph.array(name)
            if row is not None and row.size == channels == row.shape[-1]:
                return reader.name, index, row
    rank = len(graph.shape(node.input[0]) or ())
    return (node.name, 2, none) if rank == 2 else None
