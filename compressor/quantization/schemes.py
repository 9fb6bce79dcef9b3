"""The one entrance to every scheme: ``int8``, ``int4``, ``dynamic`` and ``fp16``.

``int8`` is :mod:`.plain`. The others need no calibration: all samples measure the result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import ModelProto

from compressor.core.errors import ConfigError, MissingError
from compressor.core.files import write_bytes
from compressor.export.formats import to_fp16
from compressor.quantization import plain, prepare, quality
from compressor.quantization.dynamic import dynamic
from compressor.quantization.graph import Array, Graph
from compressor.quantization.plain import Layer, Options, QuantizeReport
from compressor.quantization.products import Converted
from compressor.quantization.samples import Samples, check
from compressor.quantization.target import resolve
from compressor.quantization.weight_only import BITS, BLOCK, weight_only
from compressor.runtime import metadata
from compressor.runtime.session import check_provider

Scheme = Literal["int8", "int4", "dynamic", "fp16"]
_DEFAULTS = Options()


@dataclass(frozen=True, slots=True)
class Aim:
    """Where a file is meant to run (``any`` or as in :mod:`.target`, or ``cuda``), and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class SchemeReport:
    """What came out of a scheme without calibration; reads like :class:`.plain.QuantizeReport`.

    Attributes:
        scheme: Which.
        target: Where it is meant to run.
        layers: Every layer with weights; none for ``fp16``, which converts everything.
        sqnr: Output name to dB against fp32, with real kernels.
        agreement: Percent of samples with the same largest output, or None.
        held_out: How many samples measured this.
        warnings: One sentence each.
        provider: Where it was measured.
        float_convs: Empty: no convolution was to be int8.
        verdict: Empty: nothing is placed.
    """

    scheme: Scheme
    target: Aim
    layers: tuple[Layer, ...]
    sqnr: Mapping[str, float]
    agreement: float | None
    held_out: int
    warnings: tuple[str, ...]
    provider: str = "cpu"
    float_convs: tuple[str, ...] = ()
    verdict: str = ""

    @property
    def quantized(self) -> int:
        """How many layers are no longer float32."""
        return sum(layer.form != "float" for layer in self.layers)

    def table(self) -> dict[str, Any]:
        """JSON-able."""
        return {"schema": 1, "samples": 0, **asdict(self)}


def quantize(
    scheme: Scheme,
    model: Path,
    out: Path,
    samples: Mapping[str, Array] | Samples,
    options: Options = _DEFAULTS,
    progress: Callable[[int], None] = lambda samples: None,
    *,
    device: str = "cpu",
) -> QuantizeReport | SchemeReport:
    """Write ``model`` in a scheme.

    Args:
        scheme: ``int8``: weights and activations, calibrated; ``int4``: matrices in 4 bits;
            ``dynamic``: int8 matrices, activations at run time; ``fp16``: for CUDA.
        model: Float model.
        out: Where to write; atomically.
        samples: As :func:`.plain.quantize` takes them.
        options: See :class:`.plain.Options`; what a scheme has no use for is ignored.
        progress: Told how many samples calibration has read.
        device: ``cuda``: fp16 is compared with fp32 there, if this ONNX Runtime can.

    Raises:
        ConfigError: The model, the samples or an option do not fit the scheme.
        StageError: Nothing in the model can take the scheme.
    """
    if scheme == "int8":
        return plain.quantize(model, out, samples, options, progress)
    given = samples if isinstance(samples, Samples) else Samples(samples)
    graph = prepare.load(model)
    plain.check_exclude(graph, options.exclude)
    fixed = check(given, graph)
    aim, made = _convert(scheme, model, graph, options)
    _write(made.model, out, scheme, aim)
    batch = fixed or max(1, options.batch)
    whole = given.take(np.arange(len(given) // (fixed or 1) * (fixed or 1)))
    if len(whole) == 0:
        raise ConfigError(f"calibration: {len(given)} samples; the model's fixed batch is {fixed}")
    provider, said = _provider(scheme, device)
    sqnr, agreement = quality.compare(model, out, whole, batch, options.threads, provider)
    return SchemeReport(scheme, aim, made.layers, sqnr, agreement, len(whole),
                        (*made.warnings, *said), provider)  # fmt: skip


def _convert(scheme: Scheme, path: Path, graph: Graph, options: Options) -> tuple[Aim, Converted]:
    if scheme == "int4":
        reason = f"{BITS}-bit matrices in blocks of {BLOCK}, float activations: no CPU saturates"
        return Aim("any", reason), weight_only(graph, options.exclude)
    if scheme == "dynamic":
        target = resolve(options.target, options.weight_bits)
        bits = 8 if target.bits == "8" else 7
        reason = f"{bits}-bit weights, u8 activations with the range of each call"
        return Aim(target.name, reason), dynamic(graph, target, options.exclude)
    if options.exclude:
        raise ConfigError("exclude: scheme fp16 converts the whole model; leave it out")
    with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
        half = Path(folder, "half.onnx")
        to_fp16(path, half)
        made = Converted(onnx.load(half), ())
    return Aim("cuda", "few CPU kernels compute in fp16; the rest casts to fp32 and back"), made


def _write(model: ModelProto, out: Path, scheme: Scheme, aim: Aim) -> None:
    model.producer_name = "compressor"
    metadata.write_(
        model,
        {
            metadata.PRECISION: "int8" if scheme == "dynamic" else scheme,
            metadata.TARGET: aim.name,
            "compressor.target_reason": aim.reason,
            "compressor.scheme": scheme,
        },
    )
    onnx.checker.check_model(model)
    write_bytes(out, model.SerializeToString(deterministic=True))


def _provider(scheme: Scheme, device: str) -> tuple[str, tuple[str, ...]]:
    """Where the result is compared with fp32: a file for CUDA on CUDA, if there is one."""
    if scheme != "fp16":
        return "cpu", ()
    try:
        if device == "cuda":
            check_provider("cuda")
            return "cuda", ()
    except MissingError as error:
        return "cpu", (f"compared on the CPU only: {error}",)
    return "cpu", ("compared on the CPU only; on a CUDA machine run with --device cuda",)
