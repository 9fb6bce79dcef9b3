"""Parts of a graph: run up to some tensors, streamed; other constants for some nodes.

What the recovery methods (:mod:`.bias_correction`, :mod:`.equalization`, :mod:`.adaround`) share.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compressor.quantization.calibrate import Feeds
from compressor.quantization.graph import Array, Graph, captured, opset
from compressor.quantization.select import Selection

_MARK = "__part__"


def levels(graph: Graph, selection: Selection) -> list[list[NodeProto]]:
    """Int8 weighted nodes, grouped by how many others lie at most in front of them.

    No node of a level depends on another of the same level, so a level can be treated at once.
    """
    depth: dict[str, int] = {}
    found: list[list[NodeProto]] = []
    for node in graph.nodes:
        at = max((depth.get(name, 0) for name in (*node.input, *captured(node))), default=0)
        if selection.kinds.get(node.name) == "weighted":
            if at == len(found):
                found.append([])
            found[at].append(node)
            at += 1
        depth.update(dict.fromkeys(node.output, at))
    return found


def cut(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """The part of a model that makes the float tensors ``names``, which become its outputs."""
    needed, kept = set(names), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(name for name in (*node.input, *captured(node)) if name)
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names]
    weights = [t for t in model.graph.initializer if t.name in needed]
    part = helper.make_graph(kept[::-1], "part", list(model.graph.input), outputs, weights)
    return helper.make_model(
        part, ir_version=model.ir_version, opset_imports=model.opset_import,
        functions=model.functions,
    )  # fmt: skip


def open_model(model: ModelProto, threads: int = 1) -> Any:
    """A session of a model in memory; its int8 products are exact on every CPU."""
    from compressor.runtime.session import open_session

    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        path = Path(folder, "part.onnx")
        onnx.save(model, path)
        # Without it, 8-bit weights meant for VNNI would saturate where this host has none.
        return open_session(path, threads=threads, config={"session.x64quantprecision": "1"})


def channel_axis(node: NodeProto, graph: Graph) -> tuple[int, int] | None:
    """Axis of the output channels of a weighted node and the output's rank; None if unknown."""
    if node.op_type == "Gemm":
        return 1, 2
    if node.op_type == "Conv":
        return 1, len(graph.shape(node.input[1]) or ())
    rank = len(graph.shape(node.output[0]) or ())
    return (rank - 1, rank) if rank >= 2 else None


def per_channel(
    model: ModelProto,
    axes: Mapping[str, tuple[int, int]],
    feeds: Feeds,
    *,
    kind: Literal["mean", "peak"] = "mean",
    threads: int = 1,
) -> dict[str, NDArray[np.float64]]:
    """Mean, or largest magnitude, of each channel over samples and positions.

    Only one number per sample and channel leaves the runtime, and only sums are kept.

    Args:
        model: Makes the tensors.
        axes: Float tensor to (channel axis, rank).
        feeds: Batches of any sizes; every row of the first axis weighs the same.
        kind: Which.
        threads: Of the runtime.

    Returns:
        Tensor to [channels].
    """
    part = cut(model, list(axes))
    del part.graph.output[:]
    for i, (name, (channel, rank)) in enumerate(axes.items()):
        others = [a for a in range(1, rank) if a != channel]
        _reduce_(part, name, f"{_MARK}{i}", kind, others)
    session = open_model(part, threads)
    totals: dict[str, Any] = dict.fromkeys(axes, 0.0)
    rows = dict.fromkeys(axes, 0)
    for feed in feeds():
        for name, got in zip(axes, session.run(None, dict(feed)), strict=True):
            wide = got.astype(np.float64)
            rows[name] += len(wide)
            if kind == "mean":
                totals[name] = totals[name] + wide.sum(axis=0)
            elif len(wide):
                totals[name] = np.maximum(totals[name], wide.max(axis=0))
    return {n: t / max(1, rows[n]) if kind == "mean" else t for n, t in totals.items()}


def _reduce_(model: ModelProto, name: str, output: str, kind: str, axes: list[int]) -> None:
    """Make ``name`` [rows, channels] under the name ``output``, an output of the model."""
    graph, source = model.graph, name
    if kind == "peak":
        graph.node.append(helper.make_node("Abs", [name], [f"{output}/abs"]))
        source = f"{output}/abs"
    op = "ReduceMean" if kind == "mean" else "ReduceMax"
    if not axes:
        graph.node.append(helper.make_node("Identity", [source], [output]))
    elif opset(model) >= 18:
        graph.initializer.append(numpy_helper.from_array(np.array(axes), f"{output}/axes"))
        graph.node.append(helper.make_node(op, [source, f"{output}/axes"], [output], keepdims=0))
    else:
        graph.node.append(helper.make_node(op, [source], [output], axes=axes, keepdims=0))
    graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))


def replace(graph: Graph, constants: Mapping[tuple[str, int], Array]) -> Graph:
    """The same graph with other constants under some inputs.

    Every other reader of a shared constant keeps the old one. Names of nodes and activations
    stay, so a selection, ranges and calibration of ``graph`` fit the result too.

    Args:
        graph: Not changed.
        constants: (node name, input index) to the new constant; an optional last input that the
            node does not have is added.
    """
    model = ModelProto()
    model.CopyFrom(graph.model)
    taken = {*graph.constants, *graph.producer, *graph.inputs}
    nodes = {n.name: n for n in model.graph.node}
    for (owner, index), value in constants.items():
        node = nodes[owner]
        stem = f"{owner}/{'bias' if index == 2 or node.op_type == 'Add' else 'weight'}"
        name, k = stem, 1
        while name in taken:
            name, k = f"{stem}_{k}", k + 1
        taken.add(name)
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        node.input.extend([""] * (index + 1 - len(node.input)))
        node.input[index] = name
    used = set(Graph(model).consumers) | set(graph.outputs)
    kept = [TensorProto.FromString(t.SerializeToString()) for t in model.graph.initializer
            if t.name in used]  # fmt: skip
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return Graph(model)
