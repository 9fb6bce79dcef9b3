"""Keeping float nodes float in a plain session.

Left alone, ONNX Runtime would quantize an excluded Conv or Gemm between DequantizeLinear and
QuantizeLinear (``weight_bias_quantization.cc``) and fuse an excluded Add there
(``qdq_selectors.cc``). Both look for QuantizeLinear directly, or through Relu or Clip, behind the
node; a LeakyRelu in between is neither, is removed by no optimizer, fuses into a float
convolution, and is a Relu with slope 0 and the identity with slope 1.
"""

from __future__ import annotations

from compressor.quantization.graph import Graph
from compressor.quantization.select import Selection

# What the runtime would make int8 again if Q stood directly behind it.
_CAPTURED = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"}
    | {"LeakyRelu", "Sigmoid", "Softmax", "Where"}
)
# Q is moved up, and DQ down, through these (``qdq_propagation.cc``).
_MOVING = frozenset({"MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice"})


def breakers(graph: Graph, selection: Selection) -> dict[str, float]:
    """Float nodes between int8 ones: name to the slope of the LeakyRelu behind or in them.

    The name of a Relu means that it is replaced; any other node gets a LeakyRelu behind it.
    """
    found: dict[str, float] = {}
    for node in graph.nodes:
        if node.name in selection.kinds or node.op_type not in _CAPTURED:
            continue
        before = any(_from_int8(name, graph, selection) for name in node.input)
        if not (before and _only_quantized(node.output[0], graph, selection)):
            continue
        reader = graph.sole_reader(node.output[0])
        if reader is not None and reader.op_type == "Relu":
            found[reader.name] = 0.0
        else:
            found[node.name] = 1.0
    return found


def _from_int8(name: str, graph: Graph, selection: Selection) -> bool:
    """Whether DequantizeLinear makes the tensor, or may be moved down to it."""
    if name in selection.roots:
        return True
    maker = graph.producer.get(name)
    if maker is None or maker.op_type not in _MOVING:
        return False
    return _from_int8(maker.input[0], graph, selection)


def _only_quantized(name: str, graph: Graph, selection: Selection) -> bool:
    """Whether only Q reads the tensor, at once, behind Relu or Clip, or when moved up to it."""
    floats = [r for r in graph.consumers.get(name, ()) if r.name not in selection.kinds]
    if name in graph.outputs or len(floats) > 1:
        return False
    if not floats:
        return name in selection.entries
    follows = floats[0].op_type in _MOVING | {"Relu", "Clip"} and name not in selection.entries
    return follows and _only_quantized(floats[0].output[0], graph, selection)
