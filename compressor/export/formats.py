"""Other forms of an exported graph: fp16 weights and arithmetic, and ONNX Runtime's ``.ort``.

Torch-free: quantization uses it too.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from compressor.core.errors import StageError
from compressor.core.files import write_bytes
from compressor.runtime import metadata as meta


def to_fp16(src: Path, dst: Path) -> None:
    """Write ``src`` with fp16 weights and arithmetic; inputs and outputs stay as they are.

    For CUDA. The CPU provider has few fp16 kernels and computes in fp32 between casts: there the
    file is half the size and no faster. Values beyond 65504 are clamped, and values below 6e-8
    raised to it, by ``onnxruntime.transformers.float16``.

    Args:
        src: A float32 model.
        dst: The file to write; its metadata says ``fp16``.

    Raises:
        StageError: ``src`` is not fp32 by its own metadata, or the converter cannot do it.
    """
    model = onnx.load(str(src), load_external_data=False)
    precision = meta.read(model).get(meta.PRECISION, "fp32")
    if precision != "fp32":
        raise StageError(f"{src}: fp16 needs an fp32 model, this one is {precision}")
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        half = convert_float_to_float16(model, keep_io_types=True)
    except (ValueError, AssertionError, RuntimeError) as error:
        raise StageError(f"{src}: ONNX Runtime's fp16 converter failed: {error}") from error
    _sort_(half.graph)
    del half.graph.value_info[:]
    meta.write_(half, {meta.PRECISION: "fp16"})
    onnx.checker.check_model(half, full_check=True)
    write_bytes(dst, half.SerializeToString(deterministic=True))


def _sort_(graph: onnx.GraphProto) -> None:
    """Order nodes after their inputs: the converter appends its casts at the end."""
    made = {name for node in graph.node for name in node.output}
    known: set[str] = set()
    waiting, ordered = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if (made & _reads(node)) <= known:
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise StageError(f"fp16: {later[0].name} reads its own output; not a valid graph")
        waiting = later
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del graph.node[:]
    graph.node.extend(copies)


def _reads(node: onnx.NodeProto) -> set[str]:
    """Names that a node and its subgraphs take."""
    inner = (a.g for a in node.attribute if a.HasField("g"))
    return {*node.input, *(name for g in inner for n in g.node for name in _reads(n))}
