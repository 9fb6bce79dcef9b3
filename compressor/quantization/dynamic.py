"""Scheme ``dynamic``: int8 matrices, activations quantized at run time by their own range.

For transformers and MLPs whose activations vary too much for one range, at the price of finding
the range at every call. Convolutions are refused: they would become ConvInteger, which the runtime
neither fuses nor runs faster than float (onnxruntime#16009: 2.6 times slower; #12854).
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path

import onnx

from compressor.core.errors import ConfigError
from compressor.quantization.graph import Graph
from compressor.quantization.products import Converted, is_excluded, products, quiet
from compressor.quantization.target import Target


def dynamic(graph: Graph, target: Target, exclude: Collection[str] = ()) -> Converted:
    """Make the constant matrices of MatMul and Gemm int8, per column.

    Args:
        graph: Prepared float model.
        target: 7-bit weights unless it says 8: x86 without VNNI saturates otherwise, and the
            activations of a dynamic model prove nothing.
        exclude: Node names, output tensors or operator types that stay float.

    Raises:
        ConfigError: Convolutions that are not excluded.
        StageError: No matrix product with constant weights.
    """
    _refuse_convolutions(graph, exclude)
    found = products(graph, "dynamic", exclude)
    narrow = target.bits != "8"
    with quiet(), tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = Path(folder, "dynamic.onnx")
        quantize_dynamic(
            found.model, path, op_types_to_quantize=["MatMul"], per_channel=True,
            reduce_range=narrow, weight_type=QuantType.QInt8,
            nodes_to_quantize=list(found.chosen),
        )  # fmt: skip
        model = onnx.load(path)
    return Converted(model, found.layers("dynamic", 7 if narrow else 8))


def _refuse_convolutions(graph: Graph, exclude: Collection[str]) -> None:
    names = [n.name for n in graph.nodes if n.op_type == "Conv" and not is_excluded(n, exclude)]
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ConfigError(
            f"scheme dynamic: {len(names)} convolutions ({shown}) would become ConvInteger, which "
            "ONNX Runtime runs slower than float; use scheme int8, or exclude: [Conv] "
            "(--exclude Conv), which leaves them float and makes the matrix products dynamic"
        )
