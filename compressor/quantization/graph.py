"""A read-only view of an ONNX graph: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = NDArray[Any]


class Graph:
    """Indexes of a model whose nodes are named uniquely and sorted (see ``prepare``).

    Attributes:
        model: The model; not to be changed while the view is used.
        nodes: In topological order.
        constants: Initializer name to tensor.
        producer: Tensor name to the node that makes it.
        consumers: Tensor name to the nodes that read it, each once; a node whose subgraph
            captures the tensor counts as a reader.
        inputs: Names of the graph inputs that are not initializers.
        outputs: Names of the graph outputs.
    """

    def __init__(self, model: ModelProto) -> None:
        """Index ``model``."""
        graph = model.graph
        self.model = model
        self.nodes: tuple[NodeProto, ...] = tuple(graph.node)
        self.constants: dict[str, TensorProto] = {t.name: t for t in graph.initializer}
        self.inputs = tuple(i.name for i in graph.input if i.name not in self.constants)
        self.outputs = tuple(o.name for o in graph.output)
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.output:
                if name:
                    self.producer[name] = node
            for name in dict.fromkeys([*node.input, *captured(node)]):
                if name:
                    self.consumers.setdefault(name, []).append(node)
        self._types = {
            v.name: v.type.tensor_type
            for v in (*graph.input, *graph.output, *graph.value_info)
            if v.type.HasField("tensor_type")
        }
        self._arrays: dict[str, Array] = {}

    def array(self, name: str) -> Array | None:
        """The constant tensor of that name as an array, or None if it is not constant."""
        if name not in self.constants:
            return None
        if name not in self._arrays:
            self._arrays[name] = numpy_helper.to_array(self.constants[name])
        return self._arrays[name]

    def is_float(self, name: str) -> bool:
        """Whether the tensor is known to be float32."""
        if name in self.constants:
            return bool(self.constants[name].data_type == TensorProto.FLOAT)
        kind = self._types.get(name)
        return kind is not None and kind.elem_type == TensorProto.FLOAT

    def element(self, name: str) -> int:
        """ONNX element type of an activation or graph input; 0 if unknown."""
        kind = self._types.get(name)
        return 0 if kind is None else int(kind.elem_type)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Known shape with None for a free dimension; None where not even the rank is known."""
        if name in self.constants:
            return tuple(self.constants[name].dims)
        kind = self._types.get(name)
        if kind is None or not kind.HasField("shape"):
            return None
        return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)

    def sole_reader(self, name: str) -> NodeProto | None:
        """The one node that reads the tensor, or None (several readers, none, graph output)."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def captured(node: NodeProto) -> Iterator[str]:
    """Names that the subgraphs of ``node`` (If, Loop, Scan) read, outer ones among them."""
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
        for graph in graphs:
            for inner in graph.node:
                yield from inner.input
                yield from captured(inner)
            yield from (o.name for o in graph.output)


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of an attribute, or ``default``."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def constant_of(node: NodeProto, graph: Graph, index: int) -> Array | None:
    """The constant under input ``index`` of ``node``; None if absent, empty or not constant."""
    if index >= len(node.input) or not node.input[index]:
        return None
    return graph.array(node.input[index])


def opset(model: ModelProto) -> int:
    """Version of the default operator set."""
    return next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)


def infer(model: ModelProto) -> ModelProto:
    """The model with the shapes of all tensors that onnx can infer."""
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
