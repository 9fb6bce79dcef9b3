"""The straight path: calibrate, write, check what the runtime makes of it, compare with fp32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from compressor.core.environment import instruction_set
from compressor.core.errors import ConfigError, IntegrityError, StageError
from compressor.core.files import write_bytes
from compressor.quantization import calibrate, prepare, qdq
from compressor.quantization.calibrate import Calibration
from compressor.quantization.graph import Array, Graph
from compressor.quantization.observers import METHODS, Method
from compressor.quantization.qdq import Written
from compressor.quantization.quality import compare
from compressor.quantization.samples import Samples, check, split
from compressor.quantization.select import Selection, select
from compressor.quantization.target import Target, TargetName, WeightBits, resolve


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller may choose.

    Attributes:
        target: See :mod:`compressor.quantization.target`.
        method: Calibration method, one of :data:`compressor.quantization.observers.METHODS`.
        percentile: For ``percentile``.
        weight_bits: ``auto``, 7 or 8.
        exclude: Node names, output tensor names or operator types that stay float.
        batch: Samples per call; a model with a fixed batch overrules it.
        threads: Of the runtime.
    """

    target: TargetName = "portable"
    method: Method = "minmax"
    percentile: float = 99.99
    weight_bits: WeightBits = "auto"
    exclude: Collection[str] = ()
    batch: int = 32
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of the table.

    Attributes:
        name: Of the node in the model.
        op: Operator type.
        form: ``int8`` or ``float``.
        weight_bits: 7 or 8 for weighted int8 layers, else None.
        low: Least and
        high: greatest value that the output's integers stand for; None where it is float.
        reason: Why it is float, or empty.
    """

    name: str
    op: str
    form: str
    weight_bits: int | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """What came out.

    Attributes:
        layers: Every operator that could have been int8, in graph order.
        quantized: How many of them are.
        float_convs: Convolutions that were to be int8 and that the runtime left float.
        sqnr: Output name to signal-to-noise ratio in dB against fp32, with real kernels; 200 at
            most (equal outputs).
        agreement: Percent of held-out samples with the same largest output; None if the first
            output is not ``[n, classes >= 2]``.
        held_out: How many samples measured this.
        warnings: From calibration and fusion.
        target: The resolved target and its reason.
        verdict: One line about the placement; empty where none was asked for.
    """

    layers: tuple[Layer, ...]
    quantized: int
    float_convs: tuple[str, ...]
    sqnr: Mapping[str, float]
    agreement: float | None
    held_out: int
    warnings: tuple[str, ...]
    target: Target
    calibration: Calibration = field(repr=False)
    verdict: str = ""

    def table(self) -> dict[str, Any]:
        """JSON-able: everything but the raw ranges."""
        return {
            "schema": 1,
            "target": asdict(self.target),
            "sqnr": dict(self.sqnr),
            "agreement": self.agreement,
            "held_out": self.held_out,
            "samples": self.calibration.samples,
            "float_convs": list(self.float_convs),
            "warnings": list(self.warnings),
            "layers": [asdict(layer) for layer in self.layers],
            **({"verdict": self.verdict} if self.verdict else {}),
        }


def quantize(
    model: Path,
    out: Path,
    calibration: Mapping[str, Array] | Samples,
    options: Options = Options(),
    progress: Callable[[int], None] = lambda samples: None,
    verdict: str = "",
) -> QuantizeReport:
    """Quantize an ONNX file to int8 (QDQ).

    Args:
        model: Float model, opset 11 to 26.
        out: Where to write; atomically.
        calibration: Input name to samples ``[n, ...]`` as the model takes them, or
            :class:`.samples.Samples`. Every fifth is held out and measures the result.
        options: See :class:`Options`.
        progress: Told how many samples calibration has read.
        verdict: Why the placement was not measured, if it should have been; into the metadata.

    Raises:
        ConfigError: The model or the samples cannot be used; see :mod:`.prepare`.
        StageError: Nothing in the model can be int8.
    """
    if options.method not in METHODS:
        raise ConfigError(f"method: unknown {options.method!r}; known: {', '.join(METHODS)}")
    graph = prepare.load(model)
    check_exclude(graph, options.exclude)
    samples = calibration if isinstance(calibration, Samples) else Samples(calibration)
    fixed = check(samples, graph)
    batch = fixed or max(1, options.batch)
    kept, held = split(samples, fixed)
    feeds = kept.feeds(batch)
    target = resolve(options.target, options.weight_bits)
    selection, found = calibrated(graph, feeds, options, progress)
    written = qdq.write(graph, selection, found.ranges, target)
    describe_(written.model, target, options, found.samples, verdict)
    onnx.checker.check_model(written.model)
    write_bytes(out, written.model.SerializeToString(deterministic=True))
    left = unfused(out, target, graph, selection)
    sqnr, agreement = compare(model, out, held, batch, options.threads)
    return QuantizeReport(
        layers=layers(graph, selection, written),
        quantized=len(selection.kinds),
        float_convs=left,
        sqnr=sqnr,
        agreement=agreement,
        held_out=len(held),
        warnings=(*found.warnings, *(f"{n}: runs in float" for n in left)),
        target=target,
        calibration=found,
        verdict=verdict,
    )


def calibrated(
    graph: Graph,
    feeds: calibrate.Feeds,
    options: Options,
    progress: Callable[[int], None] = lambda samples: None,
    tensors: Callable[[Selection], Sequence[str]] = Selection.ranges_needed,
) -> tuple[Selection, Calibration]:
    """Select and calibrate; layers that touch NaN or Inf are left float.

    ``tensors`` says which ranges are wanted, at least those that the selection needs.

    Raises:
        StageError: Nothing is left to quantize.
    """
    selection = select(graph, options.exclude)
    _must_hold(selection, graph)
    found = calibrate.calibrate(
        graph, tensors(selection), feeds, method=options.method,
        percentile=options.percentile, threads=options.threads, progress=progress,
    )  # fmt: skip
    exclude = set(options.exclude)
    while broken := found.broken.intersection(selection.ranges_needed()):
        touching = {n.name for n in graph.nodes if broken.intersection([*n.input, *n.output])}
        touching |= {name for name, fold in selection.folds.items() if fold.name in touching}
        if touching <= exclude:
            raise StageError(f"NaN or Inf in {', '.join(sorted(broken))}; nothing to quantize")
        exclude |= touching
        selection = select(graph, exclude)
        _must_hold(selection, graph)
        known = {*found.ranges, *found.broken}
        missing = [t for t in tensors(selection) if t not in known]
        if not missing:
            continue
        more = calibrate.calibrate(
            graph, missing, feeds, method=options.method, percentile=options.percentile,
            threads=options.threads,
        )  # fmt: skip
        found = replace(
            found,
            ranges={**found.ranges, **more.ranges},
            sizes={**found.sizes, **more.sizes},
            broken=found.broken | more.broken,
            warnings=tuple(dict.fromkeys([*found.warnings, *more.warnings])),
        )
    return selection, found


def _must_hold(selection: Selection, graph: Graph) -> None:
    if "weighted" not in selection.kinds.values():
        why = "; ".join(f"{n}: {r}" for n, r in list(selection.floats.items())[:5])
        ops = ", ".join(sorted({n.op_type for n in graph.nodes}))
        raise StageError(
            "no layer of this model can be int8 "
            f"({why or 'operators: ' + ops}); Conv, Gemm and MatMul with constant weights can"
        )


def check_exclude(graph: Graph, exclude: Collection[str]) -> None:
    """Raise ConfigError if a word names nothing in the graph."""
    known = {n.name for n in graph.nodes} | {n.op_type for n in graph.nodes} | set(graph.producer)
    unknown = sorted(set(exclude) - known)
    if unknown:
        raise ConfigError(
            f"exclude: {', '.join(map(repr, unknown))} is no node, tensor or operator of the model"
        )


def unfused(path: Path, target: Target, graph: Graph, selection: Selection) -> tuple[str, ...]:
    """Convolutions that were to be int8 and run in float, in the graph that the runtime executes.

    Raises:
        IntegrityError: Convolutions that were to be float run in int8 (see ``islands``); the file
            is removed.
    """
    from compressor.runtime.profile import fusion

    # Off ARM, the runtime fuses s8 activations only when told so; the file is meant for ARM.
    foreign = target.signed and instruction_set() != "arm64"
    report = fusion(path, config={"session.qdqisint8allowed": "1"} if foreign else {})
    most = sum(n.op_type == "Conv" and n.name in selection.kinds for n in graph.nodes)
    if report.qconvs > most:
        path.unlink()
        raise IntegrityError(
            f"{path.name}: {most} convolutions were to be int8 and this onnxruntime runs "
            f"{report.qconvs} so: a layer that was left float would be int8 again; leave none out "
            "(placement: none without exclude), and please report this"
        )
    return tuple(n for n in report.float_convs if n in selection.kinds)


def layers(graph: Graph, selection: Selection, written: Written) -> tuple[Layer, ...]:
    """The rows of the table."""
    rows = []
    for node in graph.nodes:
        if node.name in selection.floats:
            rows.append(Layer(node.name, node.op_type, "float", reason=selection.floats[node.name]))
        elif node.name in selection.kinds:
            weight = written.weights.get(node.name)
            output = selection.output(node)
            by = written.tensors.get(selection.roots.get(output, output))
            ends = (by.span.low, by.span.high) if by is not None else (None, None)
            bits = weight.bits if weight else None
            rows.append(Layer(node.name, node.op_type, "int8", bits, *ends))
    return tuple(rows)


def describe_(
    model: onnx.ModelProto, target: Target, options: Options, samples: int, placement: str = "",
    steps: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write the metadata of an int8 model.

    Args:
        model: To be described.
        target: For which it was written.
        options: The calibration method among them.
        samples: How many calibrated it.
        placement: How it was decided.
        steps: What recovered its accuracy.
    """
    from compressor.runtime import metadata

    model.producer_name = "compressor"
    metadata.write_(
        model,
        {
            metadata.PRECISION: "int8",
            metadata.TARGET: target.name,
            "compressor.target_reason": target.reason,
            "compressor.weight_bits": {"proven": "7-8"}.get(target.bits, target.bits),
            "compressor.calibration": f"{options.method}, {samples} samples",
            **({metadata.PLACEMENT: placement} if placement else {}),
            **({"compressor.recovery": ", ".join(steps)} if steps else {}),
        },
    )
