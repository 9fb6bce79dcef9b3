"""Who gains nothing from a quantized file: the CUDA provider, and CPUs it was not made for.

CUDA has no QLinear* and no ConvInteger kernels, and ONNX Runtime's QDQ fusions are for the CPU: a
QDQ file runs its layers in float there and pays for every QuantizeLinear and DequantizeLinear on
top, and a file of integer operators runs them on the CPU with copies in between
(onnxruntime#24807, #12229, ``qdq_selector_action_transformer.cc``). fp16 is the form for CUDA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx

from compressor.core.environment import instruction_set
from compressor.core.errors import MissingError
from compressor.runtime import metadata
from compressor.runtime.session import check_file

_QDQ = {"QuantizeLinear", "DequantizeLinear"}
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Besides all that start with QLinear: operators with integer kernels on the CPU alone.
_CPU_ONLY = {
    "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnCuda:
    """The int8 part of a file.

    Attributes:
        fallback: Operators that only the CPU has kernels for, with their count.
        float_layers: Int8 layers that CUDA would compute in float32.
        pairs: QuantizeLinear and DequantizeLinear nodes on activations that it would run besides.
    """

    fallback: Mapping[str, int]
    float_layers: int
    pairs: int

    @property
    def nodes(self) -> int:
        """How many nodes would fall back to the CPU."""
        return sum(self.fallback.values())


def on_cuda(path: Path) -> OnCuda:
    """Count, without CUDA.

    Args:
        path: An ONNX file; a float one gives zeros, and so does an ``.ort``, which cannot be read.

    Raises:
        ConfigError: No such file.
        IntegrityError: Not an ONNX file.
    """
    check_file(path)
    if path.suffix == ".ort":
        return OnCuda({}, 0, 0)
    graph = onnx.load(str(path), load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    fallback = {
        op: n for op, n in sorted(kinds.items()) if op.startswith("QLinear") or op in _CPU_ONLY
    }
    constants = {t.name for t in graph.initializer}
    moving = [n for n in graph.node if n.op_type in _QDQ and n.input[0] not in constants]
    dequantized = {n.output[0] for n in moving if n.op_type == "DequantizeLinear"}
    layers = sum(n.op_type in _LAYERS and n.input[0] in dequantized for n in graph.node)
    return OnCuda(fallback, layers, len(moving))


def check_int8(models: Mapping[str, Path], provider: str, host: str = "") -> list[str]:
    """One line for each model whose integers gain nothing on ``provider``, or suit another CPU.

    Args:
        models: Name to file.
        provider: ``cpu`` or ``cuda``.
        host: This CPU's instruction set by default.

    Raises:
        MissingError: CUDA has no kernel for a part of a model.
    """
    if provider != "cuda":
        return _foreign(models, host or instruction_set())
    lines = []
    for name, path in models.items():
        found = on_cuda(path)
        if found.nodes:
            ops = ", ".join(f"{n} {op}" for op, n in found.fallback.items())
            raise MissingError(
                f"{name}: int8 on CUDA: {found.nodes} nodes would fall back to the CPU ({ops}); "
                "bench it with provider cpu, or give an fp16 file (scheme: fp16)"
            )
        if found.float_layers:
            lines.append(
                f"{name}: int8 on CUDA: {found.float_layers} layers run in float32, with "
                f"{found.pairs} QuantizeLinear and DequantizeLinear on top; use scheme: fp16 there"
            )
    return lines


def _foreign(models: Mapping[str, Path], host: str) -> list[str]:
    made = {name: _made_for(path) for name, path in models.items()}
    return [
        f"{name}: made for {target}, this CPU is {host}: neither its speed nor its outputs here "
        f"are those of {target}"
        for name, target in made.items()
        if target not in {"", "portable", host}
    ]


def _made_for(path: Path) -> str:
    """The CPU that an int8 file was made for; empty for others and for what cannot be read."""
    if path.suffix == ".ort":
        return ""
    check_file(path)
    known = metadata.read(path)
    return known.get(metadata.TARGET, "") if known.get(metadata.PRECISION) == "int8" else ""
