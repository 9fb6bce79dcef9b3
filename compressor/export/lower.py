"""PyTorch network to one clean ONNX file: preprocessing inside, dynamic batch, nothing private.

The exporter's raw graph holds stack traces, source paths and names of its own making; what leaves
here holds the graph, the weights and our metadata, and is the same bytes for the same weights.
"""

from __future__ import annotations

import copy
import site
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from compressor.core.errors import CompressorError, ConfigError, StageError
from compressor.core.files import write_bytes
from compressor.core.types import InputSpec, ModelSpec
from compressor.export import names
from compressor.export.exporter import BATCH, brief, trace
from compressor.runtime import metadata as meta

OPSETS = range(18, 24)  # torch's operator library is written for 18; 23 is its documented end
MAX_IR = 10  # read by ONNX Runtime 1.18 and later; opset 23 asks for no more
# Far below anything that adds to a logit. The limit is above the smallest normal number (1.2e-38),
# because a product with an activation must not be denormal either: arithmetic on denormals made
# ONNX Runtime 5 to 34 times slower (its issues 5472, 6865, 7448).
TINY = 1e-30
_MAX_WEIGHTS = 1 << 31  # one protobuf file ends at 2 GiB


@dataclass(frozen=True, slots=True)
class LowerReport:
    """What was written.

    Attributes:
        opset: Of the file.
        ir_version: Of the file.
        denormals_flushed: Weights with magnitude in (0, 1e-30) that were set to 0.
        bytes: Size of the file.
    """

    opset: int
    ir_version: int
    denormals_flushed: int
    bytes: int


class Preprocessed(nn.Module):
    """A network behind its own preprocessing: eats stored uint8, or float 0..1, un-normalised."""

    def __init__(self, model: nn.Module, inputs: Mapping[str, InputSpec]) -> None:
        super().__init__()
        self.model = model
        self.normalised: list[tuple[str, str] | None] = []
        for index, spec in enumerate(inputs.values()):
            if not spec.mean:
                self.normalised.append(None)
                continue
            # A buffer called `mean` collides with the operator's name in the exporter.
            tail = f"_{index}" if len(inputs) > 1 else ""
            shape = (1, -1) + (1,) * (len(spec.shape) - 1)
            mean = torch.tensor(spec.mean, dtype=torch.float32).reshape(shape)
            inv_std = 1 / torch.tensor(spec.std, dtype=torch.float64).reshape(shape)
            self.register_buffer(f"input_mean{tail}", mean)
            self.register_buffer(f"input_inv_std{tail}", inv_std.to(torch.float32))
            self.normalised.append((f"input_mean{tail}", f"input_inv_std{tail}"))

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """inputs: [batch, *shape] each, in the spec's order. Returns the network's output."""
        ready = []
        for x, buffers in zip(inputs, self.normalised, strict=True):
            value = x.to(torch.float32) / 255.0 if x.dtype == torch.uint8 else x
            if buffers is not None:
                value = (value - getattr(self, buffers[0])) * getattr(self, buffers[1])
            ready.append(value)
        return self.model(*ready)  # type: ignore[no-any-return]


def lower(
    model: nn.Module,
    spec: ModelSpec,
    path: Path,
    *,
    opset: int = 18,
    input: Literal["float", "uint8"] = "float",
    metadata: Mapping[str, str] | None = None,
) -> LowerReport:
    """Write ``model`` as one ONNX file.

    Inputs carry the spec's names, ``[batch, *shape]`` with a dynamic batch: float32 in 0..1 for
    images (or uint8 as stored), other dtypes as stored. The output is ``logits`` (classification)
    or ``values`` (regression). ``model`` itself is left alone: a copy is moved, set to eval mode
    and exported.

    Args:
        model: Eats normalised inputs in the spec's order.
        spec: Its inputs, classes and task.
        path: The file to write.
        opset: 18 to 23.
        input: ``uint8`` puts the division by 255 into the graph.
        metadata: Further entries, see ``runtime.metadata``.

    Raises:
        ConfigError: The opset is not offered, or ``uint8`` was asked without a uint8 input.
        StageError: The network cannot be exported, ignores the batch dimension, or is too large.
    """
    output = "values" if spec.task == "regression" else "logits"
    _check(spec, opset, input, output)
    wrapped = Preprocessed(_copy(model), spec.inputs).eval()
    proto = trace(wrapped, _examples(spec, input), opset, type(model).__name__)
    _strip_(proto)
    names.rename_(proto.graph, list(spec.inputs), [output])
    flushed = _flush_(proto.graph)
    _assert_form(proto, spec, opset)
    precision = {meta.PRECISION: "fp32"}
    meta.write_(proto, {**meta.of_spec(spec), **precision, **(metadata or {})})
    onnx.checker.check_model(proto, full_check=True)
    data = proto.SerializeToString(deterministic=True)
    write_bytes(path, data)
    return LowerReport(opset, proto.ir_version, flushed, len(data))


def _check(spec: ModelSpec, opset: int, input: str, output: str) -> None:
    if opset not in OPSETS:
        raise ConfigError(
            f"opset: {opset} is not offered; supported are {OPSETS[0]} to {OPSETS[-1]} "
            "(asked for less, PyTorch would silently write 18)"
        )
    if output in spec.inputs:
        raise ConfigError(
            f"inputs: one is called {output!r}, which is the output's name; rename it"
        )
    stored = {name: s.dtype for name, s in spec.inputs.items()}
    if input == "uint8" and "uint8" not in stored.values():
        raise ConfigError(f"input: uint8, but the inputs are stored as {stored}; use float")


def _copy(model: nn.Module) -> nn.Module:
    """An independent copy on the CPU, fp32, eval mode, contiguous."""
    size = sum(p.numel() * p.element_size() for p in (*model.parameters(), *model.buffers()))
    if size >= _MAX_WEIGHTS:
        raise StageError(
            f"export: {size / 2**30:.1f} GiB of weights; a single ONNX file ends at 2 GiB. "
            "Make the network smaller (distill, prune) before the export."
        )
    try:
        twin: nn.Module = copy.deepcopy(model)
    except Exception as error:  # a user's module may raise anything
        raise StageError(
            f"export: {type(model).__name__} cannot be copied ({brief(error)}); remove hooks, "
            "handles or tensors with a history from the module"
        ) from error
    twin.to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return twin.float().eval().requires_grad_(False)


def _examples(spec: ModelSpec, input: str) -> tuple[torch.Tensor, ...]:
    """One batch of two zeros per input: the exporter specialises on a batch of one."""
    dtypes = {"uint8": torch.uint8 if input == "uint8" else torch.float32, "int64": torch.int64}
    return tuple(
        torch.zeros((2, *s.shape), dtype=dtypes.get(s.dtype, torch.float32))
        for s in spec.inputs.values()
    )


def _strip_(model: onnx.ModelProto) -> None:
    """Remove stack traces, source paths, doc strings and inferred shapes, at every level."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    model.doc_string = graph.doc_string = ""
    for graph in names.graphs(model.graph):
        del graph.value_info[:]
        for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
            del item.metadata_props[:]
            item.doc_string = ""
    used = {node.domain for g in names.graphs(model.graph) for node in g.node} | {""}
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(sorted(kept, key=lambda entry: entry.domain))


def _flush_(graph: onnx.GraphProto) -> int:
    """Set weights below ``TINY`` to zero, after the exporter folded batch norms; count them.

    Single numbers are left: an epsilon is not a weight.
    """
    count = 0
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        small = (values != 0) & (np.abs(values) < TINY)
        if values.size > 1 and small.any():
            count += int(small.sum())
            tensor.CopyFrom(numpy_helper.from_array(np.where(small, np.float32(0), values),
                                                    tensor.name))  # fmt: skip
    return count


def _assert_form(model: onnx.ModelProto, spec: ModelSpec, opset: int) -> None:
    """What the file promises, read back from the graph itself."""
    got = {entry.domain: entry.version for entry in model.opset_import}
    if got.get("") != opset:
        raise StageError(f"export: asked for opset {opset}, PyTorch wrote {got.get('')}; "
                         f"use opset {OPSETS[0]}")  # fmt: skip
    if model.ir_version > MAX_IR:
        raise StageError(f"export: IR version {model.ir_version}; above {MAX_IR} ONNX Runtimes in "
                         "the field cannot read it. Use an older opset or PyTorch.")  # fmt: skip
    _assert_shapes(model.graph, spec)
    text = names.text(model)
    for place in {str(Path.cwd()), str(Path.home()), sys.prefix, *site.getsitepackages()}:
        if len(place) > 4 and place.encode() in text:
            raise CompressorError(f"export: a path of this machine ({place}) is left in the graph")


def _assert_shapes(graph: onnx.GraphProto, spec: ModelSpec) -> None:
    """Batch is free on every input and passes through to one output of the right width."""
    want: dict[str, list[str | int]] = {n: [BATCH, *s.shape] for n, s in spec.inputs.items()}
    shapes = {value.name: _dims(value) for value in (*graph.input, *graph.output)}
    for name, dims in want.items():
        if shapes.get(name) != dims:
            raise StageError(f"export: input {name!r} became {shapes.get(name)}, expected {dims}; "
                             "does forward use every input and any batch size?")  # fmt: skip
    if len(graph.output) != 1:
        raise StageError(f"export: the network returns {len(graph.output)} outputs; "
                         "it must return one tensor")  # fmt: skip
    dims = shapes[graph.output[0].name]
    if not dims or dims[0] != BATCH:
        raise StageError(f"export: the network ignores the batch dimension: its output is {dims} "
                         f"for an input of [{BATCH}, ...]; flatten with torch.flatten(x, 1), "
                         "and reduce over every dimension but the first")  # fmt: skip
    wanted = [BATCH, len(spec.classes)]
    if spec.classes and dims != wanted:
        raise StageError(f"export: the output is {dims}, expected {wanted}, one logit per class")


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
