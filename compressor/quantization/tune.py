"""Int8 where it pays on this machine, float where it does not, fp32 if int8 pays nowhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compressor.core.environment import cpu_name, instruction_set, machine_fingerprint
from compressor.core.errors import MissingError
from compressor.core.files import write_bytes
from compressor.core.hashing import digest_file, digest_json
from compressor.core.types import TimingProtocol, Timings
from compressor.quantization import plain, prepare, regions
from compressor.quantization.candidates import Candidates, Journal
from compressor.quantization.graph import Array
from compressor.quantization.placement import Floats
from compressor.quantization.plain import Layer, Options, QuantizeReport
from compressor.quantization.quality import Judge, Labelled, compare
from compressor.quantization.samples import Samples, check, split
from compressor.quantization.search import FP32, Found, Goal, Search
from compressor.quantization.target import TargetName, resolve
from compressor.stats.bootstrap import Interval

_FED = 16  # samples that are timed, cycled through


@dataclass(frozen=True, slots=True)
class TunedReport(QuantizeReport):
    """A report with what led to the placement.

    Attributes:
        rows: JSON-able rows of the sensitivity table, one per region.
        placement: JSON-able facts of the search: protocol, machine, candidates, seconds.
    """

    rows: tuple[Mapping[str, Any], ...] = ()
    placement: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """JSON-able: as the plain one, with the regions and the search."""
        rows = [dict(row) for row in self.rows]
        return {**QuantizeReport.table(self), "regions": rows, "placement": dict(self.placement)}


def foreign(target: TargetName, explicit: bool = False, host: str = "") -> str:
    """Why a placement for ``target`` cannot be measured here; empty if it can.

    Args:
        target: As configured.
        explicit: The caller asked for measuring in so many words.
        host: This machine's instruction set by default.

    Raises:
        MissingError: It cannot, and was asked for explicitly.
    """
    found = host or instruction_set()
    if target in {"portable", "host", found}:
        return ""
    line = f"not measured on {target}; run `verify --choose` there"
    if explicit:
        raise MissingError(
            f"placement: measured needs a machine with {target}, this one has {found}; "
            "use placement: none here and `verify --choose` there"
        )
    return line


def tune(
    model: Path,
    out: Path,
    calibration: Mapping[str, Array] | Samples,
    options: Options,
    goal: Goal,
    timings: Timings,
    resume: Path,
    *,
    labelled: Labelled | None = None,
    identity: str = "",
    progress: Callable[[int], None] = lambda samples: None,
    told: Callable[[float, str], None] = lambda spent, note: None,
) -> TunedReport:
    """Quantize what pays, by measurement.

    Args:
        model: Float model, as for :func:`compressor.quantization.plain.quantize`.
        out: Where to write the best model; atomically.
        calibration: As there; the held-out fifth judges unless ``labelled`` is given.
        options: As there; the target must be measurable here (:func:`foreign`).
        goal: Budget and accuracy.
        timings: Measures; the choice is a function of what it returns.
        resume: Folder that survives a kill; a second call goes on from it. Its ``best.onnx`` is
            a model that may be used, at every moment after the first measurement.
        labelled: Samples with labels; needed for ``goal.max_drop``.
        identity: Of the samples, for a folder that others may have used; the model and options
            are added.
        progress: Told how many samples calibration has read.
        told: Told seconds spent and what is being done.

    Raises:
        ConfigError: The model or the samples cannot be used.
        StageError: Nothing in the model can be int8.
    """
    graph = prepare.load(model)
    plain.check_exclude(graph, options.exclude)
    samples = calibration if isinstance(calibration, Samples) else Samples(calibration)
    fixed = check(samples, graph)
    if labelled is not None:
        check(labelled.samples, graph)
    kept, held = split(samples, fixed)
    selection, found = plain.calibrated(
        graph, kept.feeds(fixed or max(1, options.batch)), options, progress,
        partial(regions.tensors, graph),
    )  # fmt: skip
    judge = Judge(model, held, fixed=fixed, threads=options.threads, labelled=labelled)
    asked = [digest_file(model), identity, asdict(options), asdict(goal), len(samples)]
    journal = Journal(resume, digest_json(asked))
    target = resolve(options.target, options.weight_bits)
    candidates = Candidates(graph, selection, found, target, options, judge, journal)
    feed = _feed(samples, fixed or goal.batch)
    protocol = _protocol(goal, fixed, feed)
    original = _unchanged(model, "")
    journal.keep_best(original, {"placement": FP32, "speedup": 1.0})

    def better(choice: Floats, speed: Interval) -> None:
        facts = {"placement": _names(choice, candidates), "speedup": speed.value}
        journal.keep_best(candidates.file(choice).read_bytes(), facts)

    search = Search(model, candidates, goal, timings, protocol, feed, len(judge), told, better)
    result = search.run()
    decided, why = _choose(result, goal, candidates, len(original), protocol)
    report = _publish(model, out, candidates, decided, why, result, held, fixed, options)
    return replace(report, placement=_facts(result, candidates, protocol, goal))


def _feed(samples: Samples, batch: int) -> dict[str, Array]:
    """Whole batches of the first samples, repeated if there are fewer than one batch."""
    rows = np.arange(max(_FED // batch, 1) * batch) % len(samples)
    return dict(next(iter(samples.take(rows).feeds(len(rows))())))


def _protocol(goal: Goal, fixed: int | None, feed: Mapping[str, Array]) -> TimingProtocol:
    from compressor.runtime.timing import feed_digest

    batch = fixed or goal.batch
    return TimingProtocol("cpu", goal.threads, batch, inputs=feed_digest(feed), seed=goal.seed)


def _choose(
    found: Found, goal: Goal, candidates: Candidates, fp32_bytes: int, protocol: TimingProtocol
) -> tuple[Floats | None, str]:
    """The placement that ships, or None for fp32, and the verdict: a function of timings."""
    from compressor.runtime.choose import Candidate, choose
    from compressor.stats.ratios import ratio

    where = f"on {cpu_name()}, {protocol.threads} thread(s), batch {protocol.batch}"
    if found.forced is None:
        return None, f"fp32 kept: no int8 layer leaves {goal.words()}"
    if found.unstable:
        return None, f"fp32 kept: the timings are unstable ({found.unstable}) {where}"
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
    tie = "" if gain.low > 1.0 else f", no slower and {saved:,} bytes smaller"
    return floats, (
        f"int8 is {gain.value:.2f}x [{gain.low:.2f}, {gain.high:.2f}] the speed of fp32{tie} "
        f"{where}: {total - len(floats)} of {total} regions in int8"
    )


def _publish(
    model: Path, out: Path, candidates: Candidates, floats: Floats | None, verdict: str,
    found: Found, held: Samples, fixed: int | None, options: Options,
) -> TunedReport:  # fmt: skip
    """Write ``out`` and say what it is."""
    from compressor.runtime import metadata

    if floats is None:
        write_bytes(out, _unchanged(model, verdict))
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
        left = plain.unfused(out, candidates.target, chosen)
    batch = fixed or max(1, options.batch)
    sqnr, agreement = compare(model, out, held, batch, options.threads)
    return TunedReport(
        layers=kinds,
        quantized=sum(layer.form == "int8" for layer in kinds),
        float_convs=left,
        sqnr=sqnr,
        agreement=agreement,
        held_out=len(held),
        warnings=(*candidates.found.warnings, *(f"{n}: runs in float" for n in left)),
        target=candidates.target,
        calibration=candidates.found,
        verdict=verdict,
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


def _names(choice: Floats, candidates: Candidates) -> list[str]:
    return [candidates.regions[i].name for i in sorted(choice)]


def _facts(
    found: Found, candidates: Candidates, protocol: TimingProtocol, goal: Goal
) -> dict[str, Any]:
    tried = [
        {"float": _names(choice, candidates), **asdict(speed)}
        for choice, speed in found.tried.items()
    ]
    return {
        "machine": machine_fingerprint(),
        "protocol": asdict(protocol),
        "goal": asdict(goal),
        "forced": None if found.forced is None else _names(found.forced, candidates),
        "candidates": tried,
        "seconds": round(found.spent, 3),
        "unstable": found.unstable,
    }


def _unchanged(model: Path, note: str) -> bytes:
    """The float model as one file, with a note in its metadata."""
    from compressor.runtime import metadata

    proto = onnx.load(model)
    if note:
        known = metadata.read(proto).get(metadata.PRECISION, FP32)
        metadata.write_(proto, {metadata.PRECISION: known, metadata.PLACEMENT: note})
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
