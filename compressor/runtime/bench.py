"""What the stage ``bench`` does besides timing: protocols, feeds, memory and sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.core.locks import MACHINE
from compressor.core.types import TimingProtocol
from compressor.runtime import cost, memory
from compressor.runtime.record import MemoryRow, Record, SizeRow

LEAST_ROUNDS = 10
_FEED_BATCHES = 16


def rounds_within(rounds: int, budget_s: float | None, models: int, min_cell_ms: float) -> int:
    """As many rounds as fit into a budget, at least 10, at most ``rounds``.

    A function of the protocol alone, so that the same pipeline does the same on every machine.
    Models that take longer than ``min_cell_ms`` a call, and warming up, come on top.

    Args:
        rounds: Asked for.
        budget_s: Seconds per cell; None for no limit.
        models: Number of models without the A/A control.
        min_cell_ms: As in the protocol.
    """
    if budget_s is None or min_cell_ms <= 0:
        return rounds
    fitting = int(budget_s * 1e3 / ((models + 1) * min_cell_ms))
    return min(rounds, max(LEAST_ROUNDS, fitting))


def protocols(
    base: TimingProtocol, threads: Sequence[int], batches: Sequence[int]
) -> list[TimingProtocol]:
    """One protocol per combination; the first of both lists is the primary cell."""
    return [replace(base, threads=t, batch=b) for t in threads for b in batches]


def feed(stored: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
    """At most 16 batches of stored samples; a batch larger than the split repeats samples."""
    taken = {}
    for name, array in stored.items():
        total = len(array)
        rows = min(max(total // batch, 1), _FEED_BATCHES) * batch
        taken[name] = np.ascontiguousarray(array[np.arange(rows) % total])
    return taken


def memories(
    models: Mapping[str, Path], protocol: TimingProtocol, repeats: int
) -> tuple[dict[str, MemoryRow], str]:
    """Load time and memory of each model in fresh processes; empty without repeats.

    The second value says who else used the machine meanwhile, or is empty.
    """
    if repeats == 0:
        return {}, ""
    rows = {}
    with MACHINE.alone() as holder:
        for name, path in models.items():
            found = memory.measure(
                path, protocol.provider, protocol.threads, protocol.batch, repeats
            )
            rows[name] = MemoryRow(found.load_ms, found.peak_mb, found.first_run_ms, found.base_mb)
    return rows, holder


def sizes(models: Mapping[str, Path]) -> dict[str, SizeRow]:
    """Parameters, MACs and bytes of each model."""
    rows = {}
    for name, path in models.items():
        found = cost.graph_cost(path)
        rows[name] = SizeRow(found.bytes, found.zstd_bytes, found.parameters, found.macs)
    return rows


def lines(record: Record) -> list[str]:
    """The verdict of the primary cell, one line per model, and why not to believe it."""
    main = record.main
    found = []
    for name, row in main.models.items():
        gain = main.speedup[name].baseline
        speed = f", {gain.value:.2f}x [{gain.low:.2f}, {gain.high:.2f}] of {record.baseline}"
        found.append(f"{name}: p50 {row.p50:.4g} ms{'' if name == record.baseline else speed}")
    again = "stored as it is; --rebench measures again"
    found += [f"unstable: {one.note}; {again}" for one in record.cells if one.unstable]
    if record.memory_note:
        found.append(f"load times are not to be trusted: {record.memory_note}; {again}")
    return found
