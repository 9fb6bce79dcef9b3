"""What a search ends in: the choice, the file, the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from compressor.core.environment import cpu_name, machine_fingerprint
from compressor.core.files import write_bytes
from compressor.core.types import TimingProtocol
from compressor.quantization import plain, sensitivity
from compressor.quantization.candidates import Candidates
from compressor.quantization.goal import Goal
from compressor.quantization.placement import Floats
from compressor.quantization.plain import Layer, Options, QuantizeReport
from compressor.quantization.quality import compare
from compressor.quantization.recovery import Rung
from compressor.quantization.samples import Samples
from compressor.quantization.search import FP32, Found
from compressor.stats.bootstrap import Interval


@dataclass(frozen=True, slots=True)
class TunedReport(QuantizeReport):
    """A report with what led to the placement.

    Attributes:
        recovery: What was tried for accuracy, in order; empty if nothing had to be.
        rows: JSON-able rows of the sensitivity table, one per region, its layers inside.
        placement: JSON-able facts of the search: protocol, machine, candidates, seconds.
    """

    recovery: tuple[Rung, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    placement: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """JSON-able: as the plain one, with the recovery, what was looked at and the search."""
        plain = QuantizeReport.table(self)
        return {
            **plain,
            **sensitivity.tables(plain["layers"], self.rows),
            "recovery": [rung.plain() for rung in self.recovery],
            "placement": dict(self.placement),
        }


def decide(
    found: Found, goal: Goal, candidates: Candidates, fp32_bytes: int, protocol: TimingProtocol
) -> tuple[Floats | None, str]:
    """The placement that ships, or None for fp32, and the verdict: a function of timings."""
    from compressor.runtime.choose import Candidate, choose
    from compressor.stats.ratios import ratio

    where = f"on {cpu_name()}, {protocol.threads} thread(s), batch {protocol.batch}"
    if found.unstable:
        again = "measure again when the machine is quiet (`run --rebench` in a pipeline)"
        return None, f"fp32 kept: the timings are unstable ({found.unstable}) {where}; {again}"
    if found.forced is None:
        tried = "; recovery did not get there, the stage qat may" if found.recovery else ""
        return None, f"fp32 kept: no int8 layer leaves {goal.words()}{tried}"
    if found.last is None:
        return None, f"fp32 kept: no int8 placement with {goal.words()} was found"
    rounds = found.last.rounds
    names = {("int8" if i == 0 else f"int8 ({i + 1})"): str(i) for i in range(len(found.finalists))}
    walk = [Candidate(FP32, FP32, 0.0, fp32_bytes)]
    for name, i in names.items():
        size = candidates.file(found.finalists[int(i)]).stat().st_size
        walk.append(Candidate(name, "int8", 0.0, size))

    def speedup(one: str, two: str) -> Interval:
        return ratio(rounds[names.get(one, one)], rounds[names.get(two, two)])

    chosen = choose(walk, speedup, 0.0)
    if chosen.name == FP32:
        return None, f"fp32 kept: {chosen.reasons[1]} {where}"
    floats = found.finalists[int(names[chosen.name])]
    gain = speedup(FP32, chosen.name)
    total = len(candidates.regions)
    saved = fp32_bytes - candidates.file(floats).stat().st_size
    steps = candidates.recipe.steps
    recovered = f", with {' and '.join(s.split(',')[0] for s in steps)}" if steps else ""
    tie = "" if gain.low > 1.0 else f", no slower and {saved:,} bytes smaller"
    return floats, (
        f"int8 is {gain.value:.2f}x [{gain.low:.2f}, {gain.high:.2f}] the speed of fp32{tie} "
        f"{where}: {total - len(floats)} of {total} regions in int8{recovered}"
    )


def advice(goal: Goal, model: Path) -> tuple[str, ...]:
    """What to do when recovery failed, for a file that a pipeline exported and for any other."""
    from compressor.runtime import metadata

    failed = f"recovery did not reach {goal.words()} with every layer in int8"
    if metadata.SOURCE not in metadata.read(model):
        return (f"{failed}; the stage `qat` may, from the PyTorch checkpoint of this model",)
    return (
        f"{failed}; add a stage, then export and quantize its checkpoint:",
        "  qat: {uses: qat, in: {model: pruned, teacher: teacher}}",
    )


def publish(
    model: Path, out: Path, candidates: Candidates, floats: Floats | None, verdict: str,
    found: Found, held: Samples, fixed: int | None, options: Options, goal: Goal,
) -> TunedReport:  # fmt: skip
    """Write ``out`` and say what it is."""
    from compressor.runtime import metadata

    if floats is None:
        write_bytes(out, unchanged(model, verdict))
        kinds: tuple[Layer, ...] = tuple(
            Layer(n.name, n.op_type, "float", reason="fp32 kept")
            for n in candidates.graph.nodes
            if n.name in candidates.selection.kinds
        )
        left: tuple[str, ...] = ()
    else:
        chosen, made = candidates.written(floats)
        metadata.write_(made.model, {metadata.PLACEMENT: verdict})
        onnx.checker.check_model(made.model)
        write_bytes(out, made.model.SerializeToString(deterministic=True))
        reasons = _reasons(floats, found, candidates, chosen.floats)
        kinds = plain.layers(candidates.graph, replace(chosen, floats=reasons), made)
        left = plain.unfused(out, candidates.target, candidates.graph, chosen)
    batch = fixed or max(1, options.batch)
    sqnr, agreement = compare(model, out, held, batch, options.threads)
    return TunedReport(
        layers=kinds,
        quantized=sum(layer.form == "int8" for layer in kinds),
        float_convs=left,
        sqnr=sqnr,
        agreement=agreement,
        held_out=len(held),
        warnings=(
            *candidates.found.warnings,
            *(f"{n}: runs in float" for n in left),
            *(() if found.recovered else advice(goal, model)),
        ),
        target=candidates.target,
        calibration=candidates.found,
        verdict=verdict,
        recovery=found.recovery,
        rows=tuple(_rows(found, floats, candidates)),
    )


def _why(index: int, found: Found) -> str:
    return "float for accuracy" if index in (found.forced or ()) else "faster so in this place"


def _reasons(
    floats: Floats, found: Found, candidates: Candidates, known: Mapping[str, str]
) -> dict[str, str]:
    own = {name: _why(i, found) for i in floats for name in candidates.regions[i].weighted}
    return {**known, **own}


def _rows(found: Found, floats: Floats | None, candidates: Candidates) -> list[dict[str, Any]]:
    kept = candidates.all_float if floats is None else floats
    return [
        row.plain(*(("float", "fp32 kept" if floats is None else _why(i, found)) if i in kept
                    else ("int8", "")))
        for i, row in enumerate(found.table)
    ]  # fmt: skip


def names_of(choice: Floats, candidates: Candidates) -> list[str]:
    """Names of the regions that are float."""
    return [candidates.regions[i].name for i in sorted(choice)]


def facts(
    found: Found, candidates: Candidates, protocol: TimingProtocol, goal: Goal
) -> dict[str, Any]:
    """JSON-able: what was asked, and everything that was measured on the way."""
    tried = [
        {"float": names_of(choice, candidates), **asdict(speed)}
        for choice, speed in found.tried.items()
    ]
    return {
        "machine": machine_fingerprint(),
        "protocol": asdict(protocol),
        "goal": asdict(goal),
        "forced": None if found.forced is None else names_of(found.forced, candidates),
        "candidates": tried,
        "seconds": round(found.spent, 3),
        "unstable": found.unstable,
    }


def unchanged(model: Path, note: str) -> bytes:
    """The float model as one file, with a note in its metadata."""
    from compressor.runtime import metadata

    proto = onnx.load(model)
    if note:
        known = metadata.read(proto).get(metadata.PRECISION, FP32)
        metadata.write_(proto, {metadata.PRECISION: known, metadata.PLACEMENT: note})
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
