"""The QDQ writer: a float graph, a selection and ranges -> a model that fuses to int8 kernels.

Every tensor that an int8 node makes is written under a name of its own, quantized, and
dequantized *under the old name*, so float readers, graph outputs and subgraphs need no change.

Float nodes stay float by construction, see :mod:`.islands`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compressor.quantization.graph import Graph, attribute, captured, constant_of
from compressor.quantization.islands import breakers
from compressor.quantization.observers import Range
from compressor.quantization.scales import Parameters, parameters
from compressor.quantization.select import Selection, reduction_first
from compressor.quantization.target import Target
from compressor.quantization.weights import QuantizedWeight, bias_scale, quantize_weight


@dataclass(slots=True)
class Written:
    """The model, and what its layers were quantized with.

    Attributes:
        model: QDQ model.
        weights: Weighted node name to its integers.
        tensors: Quantized tensor name to its parameters.
    """

    model: ModelProto
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    tensors: dict[str, Parameters] = field(default_factory=dict)


WeightCache = dict[tuple[str, bytes, str], QuantizedWeight]


def write(
    graph: Graph,
    selection: Selection,
    ranges: Mapping[str, Range],
    target: Target,
    rounding: Mapping[str, NDArray[np.int8]] = MappingProxyType({}),
    cache: WeightCache | None = None,
) -> Written:
    """Write the QDQ form of ``graph``.

    Args:
        graph: Prepared float model.
        selection: What becomes int8.
        ranges: A range for each of ``selection.ranges_needed()``.
        target: Decides the integers.
        rounding: Weighted node name to integers that replace the nearest ones, see
            :func:`.weights.quantize_weight`.
        cache: Kept by a caller that writes the same graph again with the same ``rounding`` (a
            change of either needs a cache of its own): weights are quantized once.
    """
    known = {} if cache is None else cache
    return _Writer(graph, selection, ranges, target, rounding, known).write()


class _Writer:
    def __init__(
        self,
        graph: Graph,
        selection: Selection,
        ranges: Mapping[str, Range],
        target: Target,
        rounding: Mapping[str, NDArray[np.int8]],
        cache: WeightCache,
    ) -> None:
        self.graph, self.selection, self.target = graph, selection, target
        self._cache = cache
        model = ModelProto()
        model.CopyFrom(graph.model)
        del model.graph.node[:]
        del model.graph.value_info[:]
        self.written = Written(model)
        self.nodes: list[NodeProto] = []
        self._taken = {*graph.producer, *graph.constants, *graph.inputs}
        self._node_names = {n.name for n in graph.nodes}
        self._ranges, self._rounding = ranges, rounding
        self._entry: dict[str, str] = {}  # float tensor -> name of its dequantized copy
        self._entries = frozenset(selection.entries)
        self._folded = {fold.name for fold in selection.folds.values()}
        self._breakers = breakers(graph, selection)

    def write(self) -> Written:
        for name in self.graph.inputs:
            self._enter(name)
        for node in self.graph.nodes:
            if node.name in self._folded:
                continue
            kind = self.selection.kinds.get(node.name)
            if kind is None:
                self._float(node)
            elif kind == "weighted":
                self._weighted(node)
            elif node.op_type in {"HardSwish", "HardSigmoid"}:
                self._hard(node)
            else:
                self._plain(node)
        proto = self.written.model.graph
        outside = {name for node in self.graph.nodes for name in captured(node)}
        outside.update(self.graph.outputs)
        read = outside.union(*(node.input for node in self.nodes))
        # HardSigmoid reads the integers alone and leaves its input's DequantizeLinear unread.
        alive = [n for n in self.nodes if n.op_type != "DequantizeLinear" or n.output[0] in read]
        proto.node.extend(alive)
        used = outside.union(*(node.input for node in alive))
        kept = [TensorProto.FromString(t.SerializeToString()) for t in proto.initializer
                if t.name in used]  # fmt: skip
        del proto.initializer[:]
        proto.initializer.extend(kept)
        return self.written

    # names and small pieces

    def _name(self, wanted: str) -> str:
        name, k = wanted, 1
        while name in self._taken:
            name, k = f"{wanted}_{k}", k + 1
        self._taken.add(name)
        return name

    def _node(self, op: str, inputs: list[str], output: str, name: str, **attributes: Any) -> None:
        unique, k = name, 1
        while unique in self._node_names:
            unique, k = f"{name}_{k}", k + 1
        self._node_names.add(unique)
        self.nodes.append(helper.make_node(op, inputs, [output], name=unique, **attributes))

    def _constant(self, wanted: str, value: NDArray[np.generic]) -> str:
        name = self._name(wanted)
        self.written.model.graph.initializer.append(
            numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
        )
        return name

    def _parameters(self, tensor: str) -> Parameters:
        root = self.selection.roots.get(tensor, tensor)
        if root not in self.written.tensors:
            signed = self.target.signed
            self.written.tensors[root] = parameters(self._ranges[root], signed)
        return self.written.tensors[root]

    def _pair(self, source: str, output: str, by: Parameters, stem: str) -> None:
        """``source`` -> Q -> DQ -> ``output``."""
        scale = self._constant(f"{stem}/scale", np.array(by.scale, np.float32))
        zero = self._constant(f"{stem}/zero_point", by.zero)
        middle = self._name(f"{stem}/quantized")
        self._node("QuantizeLinear", [source, scale, zero], middle, f"{stem}/Q")
        self._node("DequantizeLinear", [middle, scale, zero], output, f"{stem}/DQ")

    def _integers(self, stem: str, values: NDArray[np.generic], scale: NDArray[np.float32],
                  zero: NDArray[np.generic] | None, axis: int | None) -> str:  # fmt: skip
        """A constant of integers behind DequantizeLinear; returns the float tensor's name."""
        inputs = [self._constant(f"{stem}/quantized", values),
                  self._constant(f"{stem}/scale", scale)]  # fmt: skip
        if zero is not None:
            inputs.append(self._constant(f"{stem}/zero_point", zero))
        output = self._name(f"{stem}/dequantized")
        attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
        self._node("DequantizeLinear", inputs, output, f"{stem}/DQ", **attributes)
        return output

    # tensors

    def _enter(self, name: str) -> None:
        """Quantize a float tensor for its int8 readers, once."""
        if name in self._entries and name not in self._entry:
            self._entry[name] = self._name(f"{name}/dequantized")
            self._pair(name, self._entry[name], self._parameters(name), name)

    def _leave(self, tensor: str) -> str:
        """The name that an int8 node writes instead of ``tensor``; Q and DQ follow."""
        return self._name(f"{tensor}/raw")

    def _read(self, name: str) -> str:
        """What an int8 node reads for ``name``: the dequantized copy of a tensor or constant."""
        value = self.graph.array(name)
        if value is None:
            return self._entry.get(name, name)
        by = parameters(Range(float(value.min(initial=0)), float(value.max(initial=0))),
                        self.target.signed)  # fmt: skip
        scale = np.array(by.scale, np.float32)
        return self._integers(name, by.quantize(value), scale, by.zero, None)

    # nodes

    def _float(self, node: NodeProto) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        slope = self._breakers.get(node.name)
        if slope is not None and node.op_type == "Relu":
            self._node("LeakyRelu", [node.input[0]], node.output[0], node.name + "/float",
                       alpha=slope)  # fmt: skip
        elif slope is not None:
            copy.output[0] = self._name(f"{node.output[0]}/float")
            self.nodes.append(copy)
            self._node("LeakyRelu", [copy.output[0]], node.output[0], f"{node.name}/float",
                       alpha=slope)  # fmt: skip
        else:
            self.nodes.append(copy)
        for name in node.output:
            self._enter(name)

    def _weighted(self, node: NodeProto) -> None:
        weight = constant_of(node, self.graph, 1)
        bias = constant_of(node, self.graph, 2)
        assert weight is not None  # ``select.why_float`` saw it
        rows = reduction_first(node, weight)
        if bias is not None:
            bias = np.broadcast_to(bias.reshape(-1), (len(rows),)).astype(np.float32)
        scale = self._parameters(node.input[0]).scale
        key = (node.name, scale.tobytes(), self.target.bits)
        if key not in self._cache:
            self._cache[key] = quantize_weight(
                np.ascontiguousarray(rows), bias, scale, self.target.bits,
                self._rounding.get(node.name),
            )  # fmt: skip
        quantized = self._cache[key]
        self.written.weights[node.name] = quantized
        straight = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
        values = quantized.values if straight else quantized.values.T
        zeros = np.zeros(len(rows), np.int8)
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[0] = self._read(node.input[0])
        copy.input[1] = self._integers(
            f"{node.name}/weight", values.reshape(weight.shape), quantized.scale, zeros,
            0 if straight else 1,
        )  # fmt: skip
        if quantized.bias is not None:
            steps = bias_scale(scale, quantized.scale)
            copy.input[2] = self._integers(f"{node.name}/bias", quantized.bias, steps, None, 0)
        self._finish(copy, node)

    def _plain(self, node: NodeProto) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        if node.op_type == "Relu":  # one that no layer could take over; a table look-up in int8
            copy.op_type = "LeakyRelu"
            copy.attribute.append(helper.make_attribute("alpha", 0.0))
        count = 1 if self.selection.kinds[node.name] == "passing" else len(node.input)
        for i in range(count):
            copy.input[i] = self._read(node.input[i])
        self._finish(copy, node)

    def _finish(self, copy: NodeProto, node: NodeProto) -> None:
        """Write ``copy`` and, unless its output stays float, Q and DQ behind it."""
        tensor = self.selection.output(node)
        if tensor in self.selection.roots:
            copy.output[0] = self._leave(tensor)
            self.nodes.append(copy)
            self._pair(copy.output[0], tensor, self._parameters(tensor), tensor)
        else:
            self.nodes.append(copy)

    def _hard(self, node: NodeProto) -> None:
        """HardSigmoid is a scale and an offset, cut off at 0 and 1: what saturation does.

        Reading the integers with the scale ``alpha * scale``, adding ``beta`` and quantizing to
        steps of 1/255 from 0 gives ``max(0, min(1, alpha * x + beta))`` in one QLinearAdd;
        HardSwish multiplies by x.
        """
        swish = node.op_type == "HardSwish"
        slope = 1.0 / 6.0 if swish else float(attribute(node, "alpha", 0.2))
        offset = 0.5 if swish else float(attribute(node, "beta", 0.5))
        by = self._parameters(node.input[0])
        source = self._read(node.input[0])
        pair = next(n for n in reversed(self.nodes) if source in n.output)
        stem = f"{node.name}/hard"
        scaled = self._name(f"{stem}/scaled")
        scale = self._constant(f"{stem}/slope", np.array(by.scale * np.float32(slope), np.float32))
        self._node("DequantizeLinear", [pair.input[0], scale, pair.input[2]], scaled, f"{stem}/DQ")
        signed = self.target.signed
        low = -128 if signed else 0
        kind = np.int8 if signed else np.uint8
        # One step of |offset| above or below a zero point: a scale must be above 0.
        value, zero = (np.array(low + (offset * sign > 0), kind) for sign in (1.0, -1.0))
        size = np.array(abs(offset) or 1.0, np.float32)
        added = self._integers(f"{stem}/offset", value, size, zero, None)
        raw, tensor = self._name(f"{stem}/sum"), self.selection.output(node)
        self._node("Add", [scaled, added], raw, f"{stem}/Add")
        gate = Parameters(np.float32(1 / 255), low, signed)
        if not swish:
            self.written.tensors[tensor] = gate
            self._pair(raw, tensor, gate, tensor)
            return
        sigmoid = self._name(f"{stem}/sigmoid")
        self._pair(raw, sigmoid, gate, stem + "/sigmoid")
        product = self._leave(tensor)
        self._node("Mul", [source, sigmoid], product, node.name)
        self._pair(product, tensor, self._parameters(tensor), tensor)
