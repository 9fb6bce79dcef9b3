"""Matrix products with constant weights, in the one form that ONNX Runtime's own tools take.

``MatMulNBitsQuantizer`` and ``quantize_dynamic`` look at MatMul alone, so a Gemm becomes MatMul and
Add first, which is exact.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from compressor.core.errors import StageError
from compressor.quantization.graph import Graph, attribute, constant_of, infer
from compressor.quantization.plain import Layer
from compressor.quantization.select import WEIGHTED, why_float


@dataclass(frozen=True, slots=True)
class Converted:
    """What a scheme made of a model.

    Attributes:
        model: Without our metadata; that is the caller's to write.
        layers: Every layer with weights, in graph order.
        warnings: One sentence each.
    """

    model: ModelProto
    layers: tuple[Layer, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Products:
    """A model whose matrix products are MatMul nodes.

    Attributes:
        model: To be handed to a quantizer.
        chosen: Names of the MatMul nodes to quantize.
        floats: Other layers with weights, by name: operator type and why they stay float.
    """

    model: ModelProto
    chosen: tuple[str, ...]
    floats: dict[str, tuple[str, str]]

    def layers(self, form: str, bits: int) -> tuple[Layer, ...]:
        """The table's rows when the chosen products have become ``form``."""
        rows = []
        for node in self.model.graph.node:
            if node.name in self.chosen:
                rows.append(Layer(node.name, node.op_type, form, bits))
            elif node.name in self.floats:
                op, reason = self.floats[node.name]
                rows.append(Layer(node.name, op, "float", reason=reason))
        return tuple(rows)


def products(graph: Graph, scheme: str, exclude: Collection[str] = ()) -> Products:
    """Rewrite and choose.

    Args:
        graph: Prepared float model.
        scheme: For the error message.
        exclude: Node names, output tensors or operator types that stay float.

    Raises:
        StageError: No matrix product is left to quantize.
    """
    chosen, floats = [], {}
    for node in graph.nodes:
        if node.op_type not in WEIGHTED | {"ConvTranspose"}:
            continue
        if node.op_type in {"Conv", "ConvTranspose"}:
            floats[node.name] = (node.op_type, f"scheme {scheme} is for matrix products")
        elif is_excluded(node, exclude):
            floats[node.name] = (node.op_type, "excluded")
        elif reason := why_float(node, graph):
            floats[node.name] = (node.op_type, reason)
        else:
            chosen.append(node.name)
    if not chosen:
        why = "; ".join(f"{name}: {reason}" for name, (_, reason) in list(floats.items())[:5])
        raise StageError(
            f"scheme {scheme}: no matrix product with constant weights ({why or 'no layers'}); "
            "scheme int8 is for convolutions"
        )
    return Products(_split_gemms(graph, frozenset(chosen)), tuple(chosen), floats)


def is_excluded(node: NodeProto, exclude: Collection[str]) -> bool:
    """Whether a node, its operator type or the tensor it writes is named."""
    return bool({node.name, node.op_type, node.output[0]}.intersection(exclude))


def _split_gemms(graph: Graph, names: Collection[str]) -> ModelProto:
    """Gemm -> MatMul and Add, under the Gemm's own name."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    nodes: list[NodeProto] = []
    added: set[str] = set()
    for node in graph.nodes:
        if node.op_type != "Gemm" or node.name not in names:
            nodes.append(node)
            continue
        weight = node.input[1]
        if attribute(node, "transB", 0):
            weight = f"{weight}/transposed"
            if weight not in added:  # several layers may share one matrix
                value = constant_of(node, graph, 1)
                assert value is not None
                tensor = numpy_helper.from_array(np.ascontiguousarray(value.T), weight)
                model.graph.initializer.append(tensor)
                added.add(weight)
        biased = len(node.input) > 2 and bool(node.input[2])
        made = f"{node.output[0]}/product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [made], name=node.name))
        if biased:
            ends = [made, node.input[2]], [node.output[0]]
            nodes.append(helper.make_node("Add", *ends, name=f"{node.name}/bias"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    replaced = {node.input[1] for node in graph.nodes if node.name in names}
    read = {name for node in nodes for name in node.input} | (set(graph.consumers) - replaced)
    kept = [t for t in model.graph.initializer if t.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return infer(model)


@contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's tools log through, and configure, the root logger; that is the program's."""
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
