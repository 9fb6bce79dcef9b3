"""Names inside an ONNX graph: give inputs and outputs ours, keep all others apart from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import helper


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and all its subgraphs."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from graphs(inner)


def rename_(graph: onnx.GraphProto, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name the graph's inputs and outputs in order.

    Any other value that has one of these names gets another: the exporter itself fails or writes
    a wrong graph when it is asked for a name that it uses (PyTorch issues 158094, 168211).
    The wrapper's prefix ``model.`` goes from weight names.
    """
    if len(graph.output) == len(outputs):
        _separate_(graph)
    wanted = dict(zip((v.name for v in graph.input), inputs, strict=False))
    wanted |= dict(zip((v.name for v in graph.output), outputs, strict=False))
    taken = {*inputs, *outputs}
    mapping = {}
    for name in _values(graph):
        new = wanted.get(name) or name.removeprefix("model.")
        while name not in wanted and new in taken:
            new += "_"
        taken.add(new)
        mapping[name] = new
    for inner in graphs(graph):
        _apply_(inner, mapping)


def _separate_(graph: onnx.GraphProto) -> None:
    """Put an Identity before an output that is itself an input or a constant."""
    fixed = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    for value in graph.output:
        if value.name in fixed:
            source, value.name = value.name, value.name + "_output"
            graph.node.append(helper.make_node("Identity", [source], [value.name]))


def _values(graph: onnx.GraphProto) -> list[str]:
    """Names of all values, each once, in order of appearance."""
    found: dict[str, None] = {}
    for inner in graphs(graph):
        for item in (*inner.input, *inner.initializer):
            found.setdefault(item.name)
        for node in inner.node:
            for name in node.output:
                found.setdefault(name)
    found.pop("", None)
    return list(found)


def _apply_(graph: onnx.GraphProto, mapping: Mapping[str, str]) -> None:
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.name = mapping.get(item.name, item.name)
    for node in graph.node:
        node.input[:] = [mapping.get(name, name) for name in node.input]
        node.output[:] = [mapping.get(name, name) for name in node.output]


def text(model: onnx.ModelProto) -> bytes:
    """Every byte of the model except the weights' values: where a private string could hide."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for graph in graphs(bare.graph):
        for tensor in graph.initializer:
            tensor.ClearField("raw_data")
    return bytes(bare.SerializeToString())
