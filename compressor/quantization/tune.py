"""Int8 where it pays on this machine, float where it does not, fp32 if int8 pays nowhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from compressor.core.environment import instruction_set
from compressor.core.errors import ConfigError, MissingError
from compressor.core.hashing import digest_bytes, digest_json
from compressor.core.types import TimingProtocol, Timings
from compressor.quantization import plain, prepare, regions
from compressor.quantization.candidates import Candidates, Journal
from compressor.quantization.goal import Goal
from compressor.quantization.graph import Array, Graph
from compressor.quantization.outcome import TunedReport, decide, facts, names_of, publish, unchanged
from compressor.quantization.placement import Floats
from compressor.quantization.plain import Options, QuantizeReport
from compressor.quantization.quality import Judge, Labelled
from compressor.quantization.recipe import Recipe
from compressor.quantization.recovery import Ladder
from compressor.quantization.samples import Samples, check, split
from compressor.quantization.search import FP32, Search
from compressor.quantization.target import TargetName, resolve
from compressor.stats.bootstrap import Interval

Placement = Literal["measured", "none"]
_FED = 16  # samples that are timed, cycled through


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


def place(
    model: Path,
    out: Path,
    calibration: Mapping[str, Array] | Samples,
    options: Options,
    goal: Goal,
    timings: Timings,
    resume: Path,
    *,
    placement: Placement = "measured",
    explicit: bool = False,
    labelled: Labelled | None = None,
    identity: str = "",
    progress: Callable[[int], None] = lambda samples: None,
    told: Callable[[float, str], None] = lambda spent, note: None,
) -> QuantizeReport:
    """:func:`tune`, or the plain path for ``none`` and for a target that is not this machine's.

    Arguments are those of :func:`tune`, and ``explicit``: ``measured`` was asked for in so many
    words.

    Raises:
        ConfigError: As :func:`tune`; or ``goal.max_drop`` where nothing holds it.
        MissingError: Explicitly measured, for a target that is not this machine's.
    """
    measured = placement == "measured"
    line = foreign(options.target, explicit) if measured else ""
    if measured and not line:
        return tune(model, out, calibration, options, goal, timings, resume, labelled=labelled,
                    identity=identity, progress=progress, told=told)  # fmt: skip
    if goal.max_drop is not None:
        raise ConfigError(f"max_drop: cannot be held, the placement is {line or 'none'}")
    report = plain.quantize(model, out, calibration, options, progress, line)
    worst = min(report.sqnr.values(), default=goal.min_sqnr)
    if not line or worst >= goal.min_sqnr:
        return report
    below = f"SQNR {worst:.1f} dB is below min_sqnr {goal.min_sqnr:g}, which only a measured "
    held = f"{below}placement holds: quantize on {options.target}"
    return replace(report, warnings=(*report.warnings, held))


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
    graph, samples, fixed = _checked(model, calibration, options, labelled)
    kept, held = split(samples, fixed)
    selection, found = plain.calibrated(
        graph, kept.feeds(fixed or max(1, options.batch)), options, progress,
        partial(regions.tensors, graph),
    )  # fmt: skip
    original = unchanged(model, "")  # with the weights that lie beside the file
    asked = [digest_bytes(original), identity, asdict(options), asdict(goal), len(samples)]
    journal = Journal(resume, digest_json(asked))
    journal.keep_best(original, {"placement": FP32, "speedup": 1.0})
    judge = Judge(model, held, fixed=fixed, threads=options.threads, labelled=labelled)
    plainly = Candidates(
        graph, selection, Recipe(graph, found, options.method),
        resolve(options.target, options.weight_bits), options, judge, journal,
    )  # fmt: skip

    def better(choice: Floats, speed: Interval) -> None:
        known = {"placement": names_of(choice, search.candidates), "speedup": speed.value}
        journal.keep_best(search.candidates.file(choice).read_bytes(), known)

    feed = _feed(samples, fixed or goal.batch)
    protocol = _protocol(goal, fixed, feed)
    ladder = Ladder(kept, fixed, options, goal, journal) if goal.recovery else None
    search = Search(
        model, plainly, goal, timings, protocol, feed, len(judge), told, better, ladder
    )  # fmt: skip
    result = search.run()
    candidates = search.candidates
    chosen, why = decide(result, goal, candidates, len(original), protocol)
    report = publish(model, out, candidates, chosen, why, result, held, fixed, options, goal)
    return replace(report, placement=facts(result, candidates, protocol, goal))


def _checked(
    model: Path, calibration: Mapping[str, Array] | Samples, options: Options,
    labelled: Labelled | None,
) -> tuple[Graph, Samples, int | None]:  # fmt: skip
    """The prepared graph, the samples and the model's fixed batch. Raises ConfigError."""
    graph = prepare.load(model)
    plain.check_exclude(graph, options.exclude)
    samples = calibration if isinstance(calibration, Samples) else Samples(calibration)
    fixed = check(samples, graph)
    if labelled is not None:
        check(labelled.samples, graph)
    return graph, samples, fixed


def _feed(samples: Samples, batch: int) -> dict[str, Array]:
    """Whole batches of the first samples, repeated if there are fewer than one batch."""
    rows = np.arange(max(_FED // batch, 1) * batch) % len(samples)
    return dict(next(iter(samples.take(rows).feeds(len(rows))())))


def _protocol(goal: Goal, fixed: int | None, feed: Mapping[str, Array]) -> TimingProtocol:
    from compressor.runtime.timing import feed_digest

    batch = fixed or goal.batch
    return TimingProtocol("cpu", goal.threads, batch, inputs=feed_digest(feed), seed=goal.seed)
