"""The integers that an artifact must give on any CPU that accumulates exactly, in NumPy.

Products and sums are taken in 64 bits, then requantized as ONNX Runtime does (MLAS
``quantize.cpp``, ``qladd.cpp``, ``qlmul.cpp``, ``qlgavgpool.cpp``): the accumulator becomes
float32, is multiplied by one float32 scale, rounded half to even, moved by the zero point and
saturated. It reads the QDQ files that ``qdq.write`` makes, node by node and without looking at the
code that wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from compressor.quantization.graph import attribute

Array = NDArray[Any]
WEIGHTED = {"Conv", "Gemm", "MatMul"}
_PASSING = {"MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Gather"}


@dataclass(frozen=True)
class Quantized:
    """Integers behind DequantizeLinear: ``real = (integers - zero) * scale``, along ``axis``."""

    integers: Array
    scale: Array
    zero: Array
    axis: int = 1

    @property
    def centred(self) -> Array:
        return self.integers.astype(np.int64) - self._along(self.zero.astype(np.int64))

    @property
    def real(self) -> Array:
        return self.centred.astype(np.float32) * self._along(self.scale)

    def _along(self, value: Array) -> Array:
        if value.ndim == 0 or value.size == 1:
            return value.reshape(())
        shape = [1] * self.integers.ndim
        shape[self.axis] = -1
        return value.reshape(shape)


@dataclass
class Answer:
    """What one run gave.

    Attributes:
        integers: Output of each QuantizeLinear.
        steps: The same before rounding, less the zero point; its distance to a half is the tie.
        outputs: Graph outputs.
        ran: Operator types that were computed in integers.
    """

    integers: dict[str, Array] = field(default_factory=dict)
    steps: dict[str, Array] = field(default_factory=dict)
    outputs: dict[str, Array] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)


class Oracle:
    """An artifact, ready to be asked."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path)
        graph = self.model.graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.ends = {o.name for o in graph.output}

    def run(self, feed: Mapping[str, Array], given: Mapping[str, Array] | None = None) -> Answer:
        """Compute every node; readers of a tensor in ``given`` get that instead of our integers.

        With the runtime's own integers given, each node is compared by itself: a rounding tie
        before it cannot spread.
        """
        values: dict[str, Any] = {**self.constants, **feed}
        answer = Answer()
        for node in self.model.graph.node:
            if node.op_type == "QuantizeLinear":
                self._quantize(node, values, answer, given or {})
            elif node.op_type == "DequantizeLinear":
                scale = values[node.input[1]]
                zero = values[node.input[2]] if len(node.input) > 2 else np.zeros((), np.int32)
                axis = attribute(node, "axis", 1)
                values[node.output[0]] = Quantized(values[node.input[0]], scale, zero, axis)
            else:
                self._compute(node, values, answer)
        answer.outputs = {name: real(values[name]) for name in self.ends}
        return answer

    def _quantize(
        self, node: NodeProto, values: dict[str, Any], answer: Answer, given: Mapping[str, Array]
    ) -> None:
        value, scale, zero = (values[name] for name in node.input)
        name = node.output[0]
        if isinstance(value, Quantized):  # a passing node kept its integers
            assert value.scale == scale
            assert value.zero == zero
            answer.integers[name], answer.steps[name] = value.integers, value.centred
        else:
            # An integer node has left its result in steps of this very scale.
            steps = value.steps if isinstance(value, Steps) else value / scale
            answer.integers[name], answer.steps[name] = requantize(steps, zero), steps
        values[name] = given.get(name, answer.integers[name])

    def _compute(self, node: NodeProto, values: dict[str, Any], answer: Answer) -> None:
        inputs = [values[name] for name in node.input if name]
        after = self.readers.get(node.output[0], [])
        quantized = [n.op_type for n in after] == ["QuantizeLinear"]
        scale = values[after[0].input[1]] if quantized else None
        op = node.op_type
        if op in _PASSING and isinstance(inputs[0], Quantized) and scale is not None:
            whole = inputs[0]
            moved = reference(node, [whole.integers, *inputs[1:]], self.model)
            values[node.output[0]] = Quantized(moved, whole.scale, whole.zero)
            answer.ran.add(op)
            return
        integer = all(isinstance(i, Quantized) for i in inputs)
        if integer and op in WEIGHTED:
            total, by = product(node, inputs)
            answer.ran.add(op)
            if scale is None:
                values[node.output[0]] = np.float32(total) * by
            else:
                values[node.output[0]] = Steps(np.float32(total) * (by / scale))
        elif integer and scale is not None and op in ARITHMETIC:
            values[node.output[0]] = Steps(ARITHMETIC[op](node, inputs, scale))
            answer.ran.add(op)
        else:
            values[node.output[0]] = reference(node, [real(i) for i in inputs], self.model)


@dataclass(frozen=True)
class Steps:
    """float32 result of an integer node in units of the output's scale."""

    steps: Array


def real(value: Any) -> Array:
    return value.real if isinstance(value, Quantized) else np.asarray(value)


def requantize(steps: Array, zero: Array) -> Array:
    """Round half to even, add the zero point, saturate to its type."""
    limits = np.iinfo(zero.dtype)
    moved = np.rint(steps).astype(np.float64) + int(zero)
    return np.clip(moved, limits.min, limits.max).astype(zero.dtype)


def reference(node: NodeProto, inputs: list[Array], model: onnx.ModelProto) -> Array:
    """A float node, or one that only moves values, by onnx's own evaluator."""
    versions = {o.domain: o.version for o in model.opset_import}
    names = [name for name in node.input if name]
    if node.op_type == "MaxPool":  # the evaluator pads integers with the least of a signed type
        return max_pool(node, inputs[0])
    feed = dict(zip(names, inputs, strict=True))
    return np.asarray(ReferenceEvaluator(node, opsets=versions).run(None, feed)[0])


def product(node: NodeProto, inputs: list[Quantized]) -> tuple[Array, Array]:
    """Exact int64 accumulators with the bias, and the float32 scale of each output channel."""
    x, w = inputs[:2]
    by = np.float32(x.scale) * np.asarray(w.scale, np.float32)
    bias = inputs[2].integers.astype(np.int64) if len(inputs) > 2 else np.zeros(1, np.int64)
    if node.op_type == "Conv":
        channel = (1, -1, *[1] * (x.integers.ndim - 2))
        return convolve(node, x.centred, w.centred) + bias.reshape(channel), by.reshape(channel)
    right = w.centred.T if attribute(node, "transB", 0) else w.centred
    return x.centred @ right + bias, by


def windows(node: NodeProto, x: Array, kernel: tuple[int, ...], fill: int) -> Array:
    """[n, c, *out, *kernel] of a Conv or pool without ceil_mode."""
    rank = len(kernel)
    assert attribute(node, "auto_pad", b"NOTSET") == b"NOTSET"
    assert not attribute(node, "ceil_mode", 0)
    pads = attribute(node, "pads", [0] * 2 * rank)
    dilations = attribute(node, "dilations", [1] * rank)
    strides = attribute(node, "strides", [1] * rank)
    ends = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    padded = np.pad(x, ends, constant_values=fill)
    wide = tuple(d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True))
    seen = sliding_window_view(padded, wide, axis=tuple(range(2, 2 + rank)))
    every = [slice(None, None, s) for s in strides] + [slice(None, None, d) for d in dilations]
    return seen[(slice(None), slice(None), *every)]


def convolve(node: NodeProto, x: Array, w: Array) -> Array:
    """Int64 convolution; padding is the zero point, so 0 after centring."""
    groups, kernel = attribute(node, "group", 1), w.shape[2:]
    parts = windows(node, x, kernel, 0)
    n, out = parts.shape[0], parts.shape[2 : 2 + len(kernel)]
    rows = np.moveaxis(parts, 1, 1 + len(kernel))  # [n, *out, c, *kernel]
    rows = rows.reshape(n, *out, groups, -1)
    filters = w.reshape(groups, w.shape[0] // groups, -1)
    total = np.einsum("n...gk,gok->n...go", rows, filters)
    return np.moveaxis(total.reshape(n, *out, -1), -1, 1)


def max_pool(node: NodeProto, x: Array) -> Array:
    kernel = tuple(attribute(node, "kernel_shape"))
    least = np.iinfo(x.dtype).min if x.dtype.kind in "iu" else -np.inf
    return windows(node, x, kernel, least).max(axis=tuple(range(-len(kernel), 0)))


def _add(node: NodeProto, inputs: list[Quantized], scale: Array) -> Array:
    terms = [i.centred * (np.float32(i.scale) / scale).astype(np.float64) for i in inputs]
    return np.asarray(terms[0] + terms[1])


def _multiply(node: NodeProto, inputs: list[Quantized], scale: Array) -> Array:
    by = np.float32(inputs[0].scale) * np.float32(inputs[1].scale) / scale
    return np.asarray(np.float32(inputs[0].centred * inputs[1].centred) * by)


def _concat(node: NodeProto, inputs: list[Quantized], scale: Array) -> Array:
    return np.concatenate([i.real / scale for i in inputs], axis=attribute(node, "axis"))


def _global_average(node: NodeProto, inputs: list[Quantized], scale: Array) -> Array:
    x = inputs[0]
    axes = tuple(range(2, x.integers.ndim))
    size = np.float32(np.prod(x.integers.shape[2:]))
    by = np.float32(x.scale) / (scale * size)
    return np.float32(x.centred.sum(axis=axes, keepdims=True)) * by


def _leaky_relu(node: NodeProto, inputs: list[Quantized], scale: Array) -> Array:
    x = inputs[0].real
    return np.where(x >= 0, x, x * np.float32(attribute(node, "alpha", 0.01))) / scale


def _sigmoid(node: NodeProto, inputs: list[Quantized], scale: Array) -> Array:
    return (1 / (1 + np.exp(-inputs[0].real.astype(np.float64)))) / scale


ARITHMETIC: dict[str, Callable[[NodeProto, list[Quantized], Array], Array]] = {
    "Add": _add,
    "Mul": _multiply,
    "Concat": _concat,
    "GlobalAveragePool": _global_average,
    "LeakyRelu": _leaky_relu,
    "Sigmoid": _sigmoid,
}


def wrong(ours: Answer, theirs: Mapping[str, Array], tie: float = 1e-3) -> list[str]:
    """Tensors whose integers differ otherwise than by one at a rounding tie."""
    found = []
    for name, integers in ours.integers.items():
        away = np.abs(integers.astype(np.int64) - theirs[name].astype(np.int64))
        steps = np.abs(ours.steps[name])
        at_tie = np.abs(steps % 1 - 0.5) < tie
        if (away > at_tie).any():
            found.append(f"{name}: {int((away > at_tie).sum())} of {away.size}")
    return found


def unsafe(path: Path) -> list[str]:
    """Layers in which ``vpmaddubsw`` could saturate: two neighbouring u8 x s8 products in int16.

    Which weights of a channel are neighbours is the kernel's choice, so the worst pair counts, as
    does the worst activation. Weights that are u8 run in another kernel, without such sums.
    """
    model = onnx.load(path)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    made = {o: n for n in model.graph.node for o in n.output}
    found = []
    for node in model.graph.node:
        source = made.get(node.input[1]) if node.op_type in WEIGHTED else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        weight = constants.get(source.input[0])
        if weight is None or weight.dtype != np.int8:
            continue
        straight = node.op_type == "Conv" or attribute(node, "transB", 0)
        rows = weight.reshape(len(weight), -1) if straight else weight.T
        for row in rows.astype(int):
            positive, negative = sorted(row[row > 0])[-2:], sorted(row[row < 0])[:2]
            if 255 * sum(positive) > 32767 or 255 * sum(negative) < -32768:
                found.append(node.name)
                break
    return found
