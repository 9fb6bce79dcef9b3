"""Latency, measured so that it can be believed.

All models are loaded into one process and visited in random order in every round, so that a
change of clock frequency or a busy neighbour hits all of them alike; the first model is measured
a second time (A/A), and what that says about the machine is kept with the numbers. Random
interleaving cut run-to-run variance by 40 % in google/benchmark (docs/random_interleaving.md);
the least sample sizes for a quantile are MLPerf LoadGen's (early_stopping.cc, one over-latency
query allowed, 99 % confidence): 64 for p90, 662 for p99.
"""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.core.environment import machine_fingerprint
from compressor.core.errors import ConfigError
from compressor.core.hashing import digest_bytes, digest_json
from compressor.core.locks import MACHINE, MachineLock
from compressor.core.types import AA as AA
from compressor.core.types import Timing, TimingProtocol

if TYPE_CHECKING:
    from compressor.stats.bootstrap import Interval

AA_LOW, AA_HIGH = 0.95, 1.05
ATTEMPTS = 3  # the first, and two more if the A/A control fails
N_P90, N_P99 = 64, 662
_CPUS = Path("/sys/devices/system/cpu")
_WARMUP_CALLS = 10
_WARMUP_FACTOR = 10  # a model that has not settled after ten times warmup_ms is measured anyway

Clock = Callable[[], int]
Call = Callable[[], object]
Opener = Callable[[Path, TimingProtocol, "Mapping[str, Any] | None"], Call]


@dataclass(frozen=True, slots=True)
class Row:
    """What a :class:`Timing` says about one model.

    Attributes:
        p50: Median of all calls in ms.
        p90: In ms; None below 64 calls.
        p99: In ms; None below 662 calls.
        n: Number of timed calls.
        throughput: Samples per second of busy time.
        rounds: Median call of each round in ms.
        baseline: Speed-up against the baseline (>1 is faster than it).
        reference: Speed-up against the reference, if there is one.
    """

    p50: float
    p90: float | None
    p99: float | None
    n: int
    throughput: float
    rounds: tuple[float, ...]
    baseline: Interval
    reference: Interval | None


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """A short, unique name for each file: its stem, then its folder's name too, then a number."""
    names: dict[str, Path] = {}
    stems = [path.stem for path in paths]
    for path in paths:
        base = path.stem
        if stems.count(base) > 1:
            base = f"{path.resolve().parent.name}/{base}"
        name, number = base, 2
        while name in names:
            name, number = f"{base}-{number}", number + 1
        names[name] = path
    return names


def feed_digest(feed: Mapping[str, Any] | None) -> str:
    """What ``TimingProtocol.inputs`` must be for this feed; ``""`` for None."""
    if feed is None:
        return ""
    rows = []
    for name in sorted(feed):
        array = np.ascontiguousarray(feed[name])
        rows.append((name, str(array.dtype), list(array.shape), digest_bytes(array.tobytes())))
    return digest_json(rows)


def interleave(
    models: Mapping[str, Path],
    protocol: TimingProtocol,
    feed: Mapping[str, Any] | None = None,
    clock: Clock = time.perf_counter_ns,
    *,
    opener: Opener | None = None,
    lock: MachineLock = MACHINE,
) -> Timing:
    """Measure ONNX files against each other.

    The garbage collector is off and the process pinned to ``threads`` CPUs meanwhile; both are
    restored. Waits for the machine-wide lock.

    Args:
        models: Name to file, at least one; the first is repeated as the A/A control.
        protocol: How.
        feed: Input name to stored or float samples [n, ...], n >= batch, cycled in batches; None
            feeds random values.
        clock: Nanoseconds.
        opener: Makes the call to time from a file; for tests.
        lock: The machine-wide lock.

    Raises:
        ConfigError: No models, a reserved name, a protocol that measures nothing, or a feed that
            does not fit.
        MissingError: The provider is not there.
    """
    _check(models, protocol, feed)
    make = opener or _open_call()
    files = {**models, AA: next(iter(models.values()))}
    with _quiet(protocol):
        # Opened first: a file that cannot be opened is refused before a wait for the machine.
        calls = {name: make(path, protocol, feed) for name, path in files.items()}
        with lock.alone() as holder:
            for attempt in range(ATTEMPTS):
                seed = protocol.seed + 1009 * attempt  # another order, a function of the seed
                samples = _measure(calls, replace(protocol, seed=seed), clock)
                ratio = aa_ratio(samples[next(iter(models))], samples[AA])
                if AA_LOW <= ratio <= AA_HIGH:
                    break
    note = holder
    if not AA_LOW <= ratio <= AA_HIGH:
        busy = f"the same model against itself: {ratio:.3f}x after {ATTEMPTS} attempts"
        note = "; ".join(filter(None, (holder, busy)))
    return _record(samples, protocol, note)


def _open_call() -> Opener:
    """Imported late, so that reading a stored Timing needs no ONNX Runtime."""
    from compressor.runtime.calls import open_call

    return open_call


def aa_ratio(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> float:
    """exp(median(log(first/second))) over rounds of calls."""
    logs = [np.log(median(a) / median(b)) for a, b in zip(first, second, strict=True)]
    return float(np.exp(median(logs)))


def _check(models: Mapping[str, Path], protocol: TimingProtocol, feed: Any) -> None:
    if not models or AA in models:
        raise ConfigError(f"models: give at least one, none of them named {AA!r}")
    least = {"rounds": protocol.rounds, "batch": protocol.batch, "threads": protocol.threads}
    for name, value in least.items():
        if value < 1:
            raise ConfigError(f"{name}: {value}; give at least 1")
    if protocol.min_cell_ms < 0 or protocol.warmup_ms < 0:
        raise ConfigError("min_cell_ms and warmup_ms: give 0 or more")
    if feed is not None:
        short = {n: len(a) for n, a in feed.items() if len(a) < protocol.batch}
        if short:
            raise ConfigError(f"feed: {short} samples; a batch needs {protocol.batch}")
        if not protocol.inputs:  # what was fed is part of what a measurement is stored under
            raise ConfigError("protocol.inputs: empty; give the feed's digest (feed_digest)")


@contextmanager
def _quiet(protocol: TimingProtocol) -> Iterator[None]:
    """No garbage collection, and on CPU no migration between cores."""
    collecting = gc.isenabled()
    mask = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    gc.collect()
    gc.disable()
    try:
        if mask and protocol.provider == "cpu" and len(mask) > protocol.threads:
            os.sched_setaffinity(0, choose_cpus(mask, protocol.threads))
        yield
    finally:
        if mask:
            os.sched_setaffinity(0, mask)
        if collecting:
            gc.enable()


def choose_cpus(mask: set[int], threads: int, root: Path = _CPUS) -> set[int]:
    """``threads`` of the allowed CPUs: one per physical core first, the highest numbers first.

    CPU 0 takes most interrupts, so it comes last.
    """
    cores: dict[str, list[int]] = {}
    for cpu in sorted(mask, reverse=True):
        try:
            core = (root / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            core = str(cpu)
        cores.setdefault(core, []).append(cpu)
    depth = max(len(cpus) for cpus in cores.values())
    order = [cpus[i] for i in range(depth) for cpus in cores.values() if i < len(cpus)]
    return set(order[:threads])


def _measure(
    calls: Mapping[str, Call], protocol: TimingProtocol, clock: Clock
) -> dict[str, list[list[float]]]:
    """Name to rounds of calls in ms."""
    for call in calls.values():
        _warm_up(call, protocol, clock)
    rng = random.Random(protocol.seed)
    samples: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(protocol.rounds):
        order = list(calls)
        rng.shuffle(order)
        for name in order:
            samples[name].append(_cell(calls[name], protocol.min_cell_ms, clock))
    return samples


def _warm_up(call: Call, protocol: TimingProtocol, clock: Clock) -> None:
    """At least 10 calls and ``warmup_ms``, then until the last 5 are within 5 % of the 5 before."""
    began = clock()
    recent: list[float] = []
    while True:
        start = clock()
        call()
        end = clock()
        recent.append((end - start) / 1e6)
        spent = (end - began) / 1e6
        if len(recent) < _WARMUP_CALLS or spent < protocol.warmup_ms:
            continue
        before, last = median(recent[-10:-5]), median(recent[-5:])
        if abs(last - before) <= 0.05 * before or spent >= _WARMUP_FACTOR * protocol.warmup_ms:
            return


def _cell(call: Call, min_cell_ms: float, clock: Clock) -> list[float]:
    """Timed calls in ms, until they have lasted ``min_cell_ms`` together."""
    times: list[float] = []
    total = 0.0
    call()  # what ran before has taken the caches; this is the price of a visit, not of the model
    while True:
        start = clock()
        call()
        times.append(max(clock() - start, 1) / 1e6)  # a ratio needs times above 0
        total += times[-1]
        if total >= min_cell_ms:
            return times


def _record(
    samples: Mapping[str, list[list[float]]], protocol: TimingProtocol, note: str
) -> Timing:
    calls = {n: tuple(t for cell in cells for t in cell) for n, cells in samples.items()}
    rounds = {n: tuple(median(cell) for cell in cells) for n, cells in samples.items()}
    timing = Timing(machine_fingerprint(), protocol, calls, rounds, bool(note), note)
    facts = {
        "machine": timing.machine,
        "protocol": asdict(protocol),
        "calls": calls,
        "rounds": rounds,
        "unstable": timing.unstable,
        "note": note,
    }
    return replace(timing, digest=digest_json(facts))


def table(timing: Timing, baseline: str, reference: str | None = None) -> dict[str, Row]:
    """Latencies, and speed-ups with 95 % intervals over rounds, of every model but the A/A.

    Raises:
        ConfigError: ``baseline`` or ``reference`` was not measured.
    """
    from compressor.stats.ratios import ratio

    for name in filter(None, (baseline, reference)):
        if name not in timing.rounds:
            raise ConfigError(f"{name} was not measured; measured: {', '.join(timing.rounds)}")
    rows = {}
    for name, calls in timing.calls.items():
        if name == AA:
            continue
        rounds = timing.rounds[name]
        rows[name] = Row(
            p50=float(np.quantile(calls, 0.5)),
            p90=float(np.quantile(calls, 0.9)) if len(calls) >= N_P90 else None,
            p99=float(np.quantile(calls, 0.99)) if len(calls) >= N_P99 else None,
            n=len(calls),
            throughput=1e3 * timing.protocol.batch * len(calls) / sum(calls),
            rounds=rounds,
            baseline=ratio(timing.rounds[baseline], rounds),
            reference=ratio(timing.rounds[reference], rounds) if reference else None,
        )
    return rows
