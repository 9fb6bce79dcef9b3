"""Scheme ``int4``: matrices in 4 bits, activations in float.

Each column of a weight matrix is cut into blocks with a scale and a zero point of their own
(``MatMulNBits``, https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md):
a sixth of the bytes. Nothing is calibrated, and nothing depends on the CPU but the speed.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, TensorProto

from compressor.core.errors import ConfigError
from compressor.quantization.graph import Graph
from compressor.quantization.products import Converted, products, quiet

BITS = 4
BLOCK = 32
_LEAST_SHARE = 0.5


def weight_only(graph: Graph, exclude: Collection[str] = (), block: int = BLOCK) -> Converted:
    """Put the constant matrices of MatMul and Gemm into 4 bits.

    Args:
        graph: Prepared float model.
        exclude: Node names, output tensors or operator types that stay float.
        block: Rows of a column that share a scale: a power of two from 16 on.

    Raises:
        ConfigError: ``block`` is no power of two, or below 16.
        StageError: No matrix product with constant weights.
    """
    if block < 16 or block & (block - 1):
        raise ConfigError(f"block: {block}; give a power of two, 16 or more")
    found = products(graph, "int4", exclude)
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        model = ModelProto()
        model.CopyFrom(found.model)
        others = [n.name for n in model.graph.node if n.name not in found.chosen]
        quantizer = MatMulNBitsQuantizer(
            model, bits=BITS, block_size=block, is_symmetric=False, nodes_to_exclude=others
        )
        quantizer.process()
    written = quantizer.model.model
    _once_(written)
    return Converted(written, found.layers("int4", BITS), _warnings(graph, written))


def _once_(model: ModelProto) -> None:
    """The quantizer writes a matrix that two layers share twice under one name."""
    kept: dict[str, TensorProto] = {}
    for tensor in model.graph.initializer:
        kept.setdefault(tensor.name, TensorProto.FromString(tensor.SerializeToString()))
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept.values())


def _warnings(graph: Graph, written: ModelProto) -> tuple[str, ...]:
    """Says when most of the weights were not in matrices to begin with."""
    before = sum(t.ByteSize() for t in graph.constants.values())
    still = {t.name: t.ByteSize() for t in written.graph.initializer if t.name in graph.constants}
    share = sum(still.values()) / max(1, before)
    if share <= _LEAST_SHARE:
        return ()
    return (f"{100 * share:.0f} % of the weights stay float; scheme int8 takes convolutions too",)
