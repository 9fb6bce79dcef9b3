"""Which nodes become int8, by one table of rules per operator.

Kinds: ``weighted`` (Conv, Gemm, MatMul with constant weights), ``arithmetic`` (has an int8 kernel
with a range of its own), ``passing`` (moves values, keeps scale and zero point), ``folded`` (a Relu
or Clip that the quantized range of the layer before it already expresses). Everything else is
float. The lists follow the QDQ selectors of ONNX Runtime 1.31
(``qdq_selector_action_transformer.cc``): only what it fuses on the CPU is chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from compressor.quantization.graph import Array, Graph, attribute, constant_of
from compressor.quantization.weights import MAX_REDUCTION

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_ARITHMETIC = frozenset(
    {"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid"}
    | {"HardSwish", "HardSigmoid", "Relu"}
)
_LAYOUT = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"})
_PASSING = _LAYOUT | {"MaxPool", "Slice", "Gather", "Expand", "Tile"}
# Not worth a Q and a DQ if nothing behind them is int8.
_ONLY_INSIDE = _LAYOUT | {"Sigmoid", "Slice", "Gather", "Expand", "Tile"}
_CHOOSABLE = WEIGHTED | _ARITHMETIC


@dataclass(frozen=True, slots=True)
class Selection:
    """The int8 part of a graph.

    Attributes:
        kinds: Node name to ``weighted``, ``arithmetic`` or ``passing``; the rest is float.
        folds: Name of a weighted or arithmetic node to the Relu or Clip that it takes over.
        roots: Int8 tensor to the tensor whose scale and zero point it shares (itself, mostly).
        entries: Float tensors that int8 nodes read; they are quantized in front of them.
        floats: Weighted nodes that stay float, with the reason.
    """

    kinds: Mapping[str, str]
    folds: Mapping[str, NodeProto]
    roots: Mapping[str, str]
    entries: tuple[str, ...]
    floats: Mapping[str, str] = field(default_factory=dict)

    def ranges_needed(self) -> tuple[str, ...]:
        """Tensors whose range calibration must find, in a stable order."""
        return tuple(dict.fromkeys([*self.entries, *self.roots.values()]))

    def output(self, node: NodeProto) -> str:
        """The tensor that an int8 node makes once its activation is folded."""
        fold = self.folds.get(node.name)
        return str(fold.output[0] if fold is not None else node.output[0])


def select(graph: Graph, exclude: Collection[str] = ()) -> Selection:
    """Choose every node that ONNX Runtime can run in int8, less the excluded ones.

    Args:
        graph: Prepared.
        exclude: Names of nodes, tensors they write, or operator types, that stay float.
            A passing node is exact in either form and follows its input.
    """
    kinds: dict[str, str] = {}
    floats: dict[str, str] = {}
    made: set[str] = set()  # tensors made by int8 nodes
    for node in graph.nodes:
        kind, reason = _kind(node, graph, made, exclude)
        if kind:
            kinds[node.name] = kind
            made.update(node.output)
        elif node.op_type in WEIGHTED or node.op_type == "ConvTranspose":
            floats[node.name] = reason
    _retreat_(kinds, graph)
    return _finish(kinds, floats, graph)


def _kind(
    node: NodeProto, graph: Graph, made: set[str], exclude: Collection[str]
) -> tuple[str, str]:
    op = node.op_type
    if node.domain not in {"", "ai.onnx"}:
        return "", f"operator of {node.domain}"
    if op in _PASSING:
        single = len([o for o in node.output if o]) == 1
        return ("passing" if node.input[0] in made and single else ""), ""
    if node.name in exclude or op in exclude or node.output[0] in exclude:
        return "", "excluded"
    if op in WEIGHTED:
        reason = why_float(node, graph)
        if not reason:
            return "weighted", ""
        both = op == "MatMul" and all(i in made for i in node.input)
        return ("arithmetic", "") if both else ("", reason)
    if op == "Clip" and node.input[0] in made and _folds(node, graph):
        return "folding", ""
    inside = op in _ARITHMETIC and any(i in made for i in node.input)
    if not inside or not all(graph.is_float(i) for i in node.input if i):
        return "", "no int8 kernel"
    if op in {"Add", "Mul"} and any(_tiny(i, graph) for i in node.input):
        return "", "broadcasts a scalar input"
    if op == "AveragePool" and attribute(node, "dilations"):
        return "", "dilated"
    if op == "HardSigmoid" and attribute(node, "alpha", 0.2) <= 0.0:
        return "", "falls, or is constant: no scale of integers does"
    if op == "Add" and _is_bias(node, graph):
        return "", "bias of a matrix product, which writes float anyway"
    return ("folding" if op == "Relu" and _folds(node, graph) else "arithmetic"), ""


def why_float(node: NodeProto, graph: Graph) -> str:
    """Why a weighted node cannot be int8; empty if it can."""
    weight = constant_of(node, graph, 1)
    if weight is None or weight.dtype != np.float32:
        return "weights are not constant float32"
    if not graph.is_float(node.input[0]) or node.input[0] in graph.constants:
        return "input is not a float32 activation"
    if not np.isfinite(weight).all():
        return "weights hold NaN or Inf"
    bias = constant_of(node, graph, 2)
    if len(node.input) > 2 and node.input[2] and (bias is None or not np.isfinite(bias).all()):
        return "bias is not a finite constant"
    if node.op_type == "Gemm":
        columns = weight.shape[0 if attribute(node, "transB", 0) else 1]
        plain = not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == 1.0
        if not plain or attribute(node, "beta", 1.0) != 1.0:
            return "Gemm with transA, alpha or beta"
        if bias is not None and bias.size not in {1, columns}:
            return "Gemm whose bias is a matrix"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "weights are not a matrix"
    if weight.size == 0 or reduction_first(node, weight).shape[1] > MAX_REDUCTION:
        return f"no weights, or more than {MAX_REDUCTION} products that could overflow int32"
    return ""


def reduction_first(node: NodeProto, weight: Array) -> Array:
    """The weights of Conv, Gemm or MatMul as [channels, reduction], a view where possible."""
    if node.op_type == "Conv":
        return weight.reshape(weight.shape[0], -1)
    return weight if attribute(node, "transB", 0) else weight.T


def _tiny(name: str, graph: Graph) -> bool:
    # A Python scalar (x + 3): its own int8 form is exact, so it is welcome when constant.
    return graph.shape(name) == () and name not in graph.constants


def _is_bias(add: NodeProto, graph: Graph) -> bool:
    for i, name in enumerate(add.input):
        dot = graph.producer.get(name)
        if dot is not None and dot.op_type == "MatMul" and add.input[1 - i] in graph.constants:
            return graph.sole_reader(name) is not None and not why_float(dot, graph)
    return False


def _folds(node: NodeProto, graph: Graph) -> bool:
    """Whether a Relu or Clip can vanish into the quantized range of the node before it."""
    before = graph.producer.get(node.input[0])
    if before is None or before.op_type not in _CHOOSABLE - {"Sigmoid", "HardSigmoid", "Relu"}:
        return False
    if graph.sole_reader(node.input[0]) is None:
        return False
    if node.op_type == "Relu":
        return True
    low, high = constant_of(node, graph, 1), constant_of(node, graph, 2)
    given = [len(node.input) > i and bool(node.input[i]) for i in (1, 2)]
    if (given[0] and low is None) or (given[1] and high is None):
        return False
    # The quantized range always holds 0; a Clip that cuts 0 off is not expressed by it.
    return (low is None or float(low) <= 0.0) and (high is None or float(high) >= 0.0)


def _retreat_(kinds: dict[str, str], graph: Graph) -> None:
    """Take back, from the outputs on, what only reshapes for float readers."""
    for node in reversed(graph.nodes):
        if node.name not in kinds:
            continue
        inside = _has_int8_reader(node.output[0], kinds, graph)
        before = graph.producer.get(node.input[0])
        only = node.op_type in _ONLY_INSIDE
        if kinds[node.name] == "folding" and before is not None:
            only = before.op_type in {"Gemm", "MatMul"} or before.name not in kinds
        if only and not inside:
            del kinds[node.name]


def _has_int8_reader(name: str, kinds: Mapping[str, str], graph: Graph) -> bool:
    return any(r.name in kinds for r in graph.consumers.get(name, ()))


def _finish(kinds: dict[str, str], floats: dict[str, str], graph: Graph) -> Selection:
    folds: dict[str, NodeProto] = {}
    roots: dict[str, str] = {}
    entries: dict[str, None] = {}
    final: dict[str, str] = {}
    for node in graph.nodes:
        kind = kinds.get(node.name)
        if kind is None:
            continue
        if kind == "folding":
            folds[graph.producer[node.input[0]].name] = node
            roots.pop(node.input[0], None)
            roots[node.output[0]] = node.output[0]
            continue
        final[node.name] = kind
        data = [node.input[0]] if kind in {"passing", "weighted"} else list(node.input)
        for name in data:
            if name and name not in roots and name not in graph.constants:
                entries[name] = None
        if kind == "passing":
            roots[node.output[0]] = roots[node.input[0]]
        elif node.op_type not in {"Gemm", "MatMul"} or _has_int8_reader(
            node.output[0], kinds, graph
        ):
            roots[node.output[0]] = node.output[0]
    return Selection(final, folds, roots, tuple(entries), floats)
