"""The latency gate: the run's model and the baseline's, measured side by side in this job.

Stored milliseconds of another job are never compared: hosted machines differ by more than any
limit that is worth setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.core.environment import cpu_name, instruction_set
from compressor.core.errors import ConfigError
from compressor.core.results import RunResults, StageRecord
from compressor.core.types import Timing, TimingProtocol
from compressor.gates import baseline as baselines
from compressor.gates import limits
from compressor.gates.baseline import Baseline
from compressor.gates.verdicts import FAIL, INCONCLUSIVE, Verdict
from compressor.runtime.timing import feed_digest, interleave

Measure = Callable[[Mapping[str, Path], TimingProtocol, Mapping[str, Any] | None], Timing]
BASE, CAND = "baseline", "candidate"


def protocol_of(results: RunResults, stage: StageRecord) -> TimingProtocol:
    """Provider, threads and batch at which the run itself timed the stage's model.

    That is the bench that a bundle was chosen by, else one that measured the stage, else the
    run's first; one CPU thread and batch 1 in a run without a bench.
    """
    plain = TimingProtocol()
    benches = [s for s in results.stages if s.uses == "bench"]
    named = {name for names in stage.inputs.values() for name in names}
    near = [b for b in benches if b.name in named]
    near += [b for b in benches if any(stage.name in names for names in b.inputs.values())]
    if not benches:
        return plain
    config = (near or benches)[0].config
    values: dict[str, Any] = {}
    for name in ("provider", "threads", "batch"):
        value = config.get(name, getattr(plain, name))
        values[name] = value[0] if isinstance(value, list | tuple) and value else value
    return replace(plain, **values)


def judge(
    held: Baseline,
    model: Path,
    limit: float,
    protocol: TimingProtocol,
    measure: Measure | None = None,
) -> Verdict:
    """Measure and decide; a FAIL must be seen twice.

    One interval knows the noise between its rounds and not that between measurements, so a FAIL
    is measured once more with fresh sessions in another order.

    Args:
        held: The baseline.
        model: The candidate's ONNX file.
        limit: Largest ratio of latencies.
        protocol: How to measure; its inputs are replaced by the baseline's.
        measure: Defaults to ``runtime.timing.interleave``.

    Raises:
        MissingError: The provider is not here.
    """
    feed = _feed(held, protocol.batch)
    protocol = replace(protocol, inputs=feed_digest(feed))
    models = {BASE: held.model, CAND: model}
    clock = measure or interleave
    try:
        first = clock(models, protocol, feed)
        verdict = limits.latency(first, BASE, CAND, limit)
        if verdict.state == FAIL:
            second = clock(models, replace(protocol, seed=protocol.seed + 1), feed)
            again = limits.latency(second, BASE, CAND, limit)
            if again.state != FAIL:
                verdict = Verdict(
                    INCONCLUSIVE, f"{verdict.sentence}, not confirmed: {again.sentence}"
                )
    except ConfigError as error:  # other inputs, a fixed batch: another kind of model
        return Verdict(INCONCLUSIVE, f"not comparable: {' '.join(str(error).split())}")
    return verdict.adding(_elsewhere(held))


def _feed(held: Baseline, batch: int) -> dict[str, Any]:
    """The baseline's samples, repeated until they fill a batch."""
    import numpy as np

    stored = baselines.inputs(held)
    return {
        name: array if len(array) >= batch else np.resize(array, (batch, *array.shape[1:]))
        for name, array in stored.items()
    }


def _elsewhere(held: Baseline) -> str:
    """A remark when the baseline was made on another CPU: int8 may ship otherwise there."""
    machine = held.results.machine
    cpu, kind = str(machine.get("cpu", "")), str(machine.get("instruction_set", ""))
    if cpu == cpu_name() and kind == instruction_set():
        return ""
    return (
        f"both measured here on {cpu_name()} ({instruction_set()}), "
        f"the baseline was made on {cpu} ({kind})"
    )
