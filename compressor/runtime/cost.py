"""Parameters, multiply-accumulates and bytes of an ONNX file, by the definition used for torch.

MACs of one sample: Conv, output elements x (input channels / groups) x kernel; ConvTranspose, the
same with input elements and output channels; Gemm and MatMul with a constant matrix, rows x in x
out. Nothing else counts. Weights behind Quantize/DequantizeLinear, Cast or Transpose, or packed in
MatMulNBits, are found, so a quantized file has the MACs and parameters of its float original.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import zstandard
from onnx import TensorProto, helper, inliner, shape_inference

from compressor.core.errors import ConfigError
from compressor.runtime.session import check_file

_ZSTD_LEVEL = 19
_PASS = {"DequantizeLinear", "QuantizeLinear", "Cast", "Transpose", "Identity", "Reshape"}
# Operator to the positions of its weights and biases. The first is the weight that makes MACs.
_WEIGHTS = {
    "Conv": (1, 2), "FusedConv": (1, 2), "ConvInteger": (1,), "QLinearConv": (3, 8),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2), "QGemm": (3, 6), "MatMul": (1, 0), "MatMulInteger": (1, 0),
    "QLinearMatMul": (3, 0),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2), "PRelu": (1,), "Gather": (0,),
    "LSTM": (1, 2, 3), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
}  # fmt: skip
_CONVS = {"Conv", "FusedConv", "ConvInteger", "QLinearConv"}
_PRODUCTS = {"Gemm", "QGemm", "MatMul", "MatMulInteger", "QLinearMatMul"}


@dataclass(frozen=True, slots=True)
class Cost:
    """Size of a model.

    Attributes:
        parameters: Elements of weights and biases; scales, zero points, running statistics and
            normalisation constants are none.
        macs: Multiply-accumulates per sample.
        bytes: Of the file.
        zstd_bytes: Of the file compressed with zstd level 19: what a download costs.
    """

    parameters: int
    macs: int
    bytes: int
    zstd_bytes: int


def graph_cost(path: Path) -> Cost:
    """Cost of an ONNX file.

    Raises:
        ConfigError: A shape that MACs depend on cannot be inferred.
        IntegrityError: The file is refused, see :func:`session.check_file`.
    """
    check_file(path)
    graph = Graph(onnx.load(str(path)), str(path))
    size, packed = sizes(path)
    return Cost(graph.parameters(), graph.macs(), size, packed)


def sizes(path: Path) -> tuple[int, int]:
    """Bytes, plain and with zstd, of a file or of all files of a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
    contents = [file.read_bytes() for file in files]
    return sum(map(len, contents)), sum(len(compressor.compress(c)) for c in contents)


class Graph:
    """A model with inferred shapes at batch 1 and a way back from an operator to its weights."""

    def __init__(self, model: onnx.ModelProto, where: str = "model") -> None:
        """Take a model over (local functions are inlined); ``where`` starts error messages."""
        if model.functions:
            model = inliner.inline_local_functions(model)
        constants = {i.name for i in model.graph.initializer}
        inputs = [i for i in model.graph.input if i.name not in constants]
        self._where = where
        self._batch = 1
        for value in inputs:
            dims = value.type.tensor_type.shape.dim
            if dims and dims[0].HasField("dim_value"):
                self._batch = max(1, dims[0].dim_value)
            elif dims:
                dims[0].dim_value = 1
        packed = _unpack_(model.graph)
        for value in model.graph.output:  # may name the batch that is now 1
            value.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        graph = shape_inference.infer_shapes(model, data_prop=True).graph
        self.nodes = list(graph.node)
        self._made = {out: node for node in self.nodes for out in node.output if out}
        self._constants = {i.name: tuple(i.dims) for i in graph.initializer} | packed
        for node in self.nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        self._constants[node.output[0]] = tuple(attribute.t.dims)
        self._shapes = dict(_known_shapes(graph)) | self._constants

    def root(self, name: str) -> str | None:
        """The constant behind a tensor, through quantisation and layout changes; None if fed."""
        while name not in self._constants:
            node = self._made.get(name)
            if node is None or node.op_type not in _PASS:
                return None
            name = node.input[0]
        return name

    def weights(self, node: onnx.NodeProto) -> list[str]:
        """Names of the constants that are a node's weights and biases, the main weight first."""
        places = _WEIGHTS.get(node.op_type, ())
        roots = [self.root(node.input[i]) for i in places if i < len(node.input) and node.input[i]]
        return [r for r in roots if r is not None]

    def parameters(self) -> int:
        """Elements of all weights and biases, shared ones once."""
        found = {name for node in self.nodes for name in (*self.weights(node), *self._bias(node))}
        return sum(prod(self._constants[name]) for name in found)

    def _bias(self, node: onnx.NodeProto) -> Iterator[str]:
        """The constant of an Add that follows a product with a weight."""
        if node.op_type != "Add":
            return
        for this, other in (node.input, reversed(node.input)):
            root, maker = self.root(this), self._through(other)
            if root and maker and maker.op_type in _PRODUCTS and self.weights(maker):
                yield root

    def _through(self, name: str) -> onnx.NodeProto | None:
        """The node that made a tensor; Q, DQ and the scaling of MatMulInteger are skipped."""
        node = self._made.get(name)
        if node is not None and node.op_type == "Mul":
            cast = self._made.get(node.input[0])
            node = cast if cast is not None and cast.op_type == "Cast" else node
        while node is not None and node.op_type in {"QuantizeLinear", "DequantizeLinear", "Cast"}:
            node = self._made.get(node.input[0])
        return node

    def macs(self) -> int:
        """Multiply-accumulates of one sample. Raises ConfigError if a shape is unknown."""
        return sum(self.node_macs(node) for node in self.nodes)

    def node_macs(self, node: onnx.NodeProto) -> int:
        """Multiply-accumulates of one node for one sample; 0 for what does not count."""
        kind = node.op_type
        if kind not in _CONVS | _PRODUCTS | {"ConvTranspose"} or not self.weights(node):
            return 0
        if kind in _PRODUCTS:
            return self._product_macs(node)
        place = _WEIGHTS[kind][0]
        kernel = prod(self._shape(node.input[place])[1:])
        moving = node.input[0] if kind == "ConvTranspose" else node.output[0]
        return prod(self._shape(moving)) * kernel // self._batch

    def _product_macs(self, node: onnx.NodeProto) -> int:
        left, right = (0, 3) if node.op_type.startswith("Q") else (0, 1)
        shape = self._shape(node.input[left])
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        depth = shape[0] if transposed else shape[-1]
        self._shape(node.input[right])  # both operands must be known for the output to be
        return prod(self._shape(node.output[0])) * depth // self._batch

    def _shape(self, name: str) -> tuple[int, ...]:
        shape: tuple[int, ...] | None = self._shapes.get(name)
        if shape is None:
            maker = self._made.get(name)
            of = f" (made by {maker.op_type} {maker.name!r})" if maker is not None else ""
            raise ConfigError(
                f"{self._where}: the shape of {name!r}{of} is unknown, so MACs cannot be counted; "
                "only the batch dimension may be open"
            )
        return shape


def _unpack_(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    """MatMulNBits becomes the MatMul that it stands for; returns the shapes of the matrices.

    Inference knows standard operators only, and a matrix has K x N weights however packed.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        sizes = {a.name: a.i for a in node.attribute}
        name = f"{node.input[1]}/unpacked"
        if name not in shapes:
            shapes[name] = (sizes["K"], sizes["N"])
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]))
        node.op_type, node.domain = "MatMul", ""
        del node.input[2:], node.attribute[:]
        node.input[1] = name
    return shapes


def _known_shapes(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        known = tensor.elem_type != TensorProto.UNDEFINED and tensor.HasField("shape")
        if known and all(d.HasField("dim_value") for d in dims):
            yield value.name, tuple(d.dim_value for d in dims)
