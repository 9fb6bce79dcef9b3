"""How close a candidate is to its float model, by running both with the real kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.core.tasks import Task
from compressor.quantization.graph import Array
from compressor.quantization.samples import Samples

_KEEP = 256 << 20  # bytes of float outputs that are kept instead of computed again
_BATCH = 16


@dataclass(frozen=True, slots=True)
class Labelled:
    """Samples with labels, to judge by accuracy.

    Attributes:
        samples: As the model takes them.
        labels: One per sample.
        task: Says what a prediction and its score are.
    """

    samples: Samples
    labels: Array
    task: Task


@dataclass(frozen=True, slots=True)
class Quality:
    """What one candidate lost.

    Attributes:
        sqnr: Float output to signal-to-noise ratio in dB.
        agreement: Percent of samples with the same largest output; None if the first output is
            not ``[n, classes >= 2]``.
        drop: Of the task's metric, in points (its unit for regression), above 0 is worse; None
            without labels.
    """

    sqnr: Mapping[str, float]
    agreement: float | None = None
    drop: float | None = None

    @property
    def worst(self) -> float:
        """The least SQNR of all outputs."""
        return min(self.sqnr.values(), default=200.0)


class Judge:
    """Compares candidates with one float model, whose outputs it keeps."""

    def __init__(
        self, reference: Path, samples: Samples, *, fixed: int | None = None, threads: int = 1,
        labelled: Labelled | None = None,
    ) -> None:  # fmt: skip
        """Judge by ``samples``, or by those with labels if there are any.

        Args:
            reference: The float model.
            samples: Without labels, as the model takes them.
            fixed: The model's own batch; what is over a multiple of it is not looked at.
            threads: Of the runtime.
            labelled: Samples with labels.
        """
        self._labelled = labelled
        chosen = samples if labelled is None else labelled.samples
        self._batch = fixed or _BATCH
        whole = len(chosen) // self._batch * self._batch if fixed else len(chosen)
        self._samples = chosen.take(np.arange(whole))
        self._reference, self._threads = reference, threads
        self._outputs: list[list[NDArray[np.float32]]] = []
        self._held = 0

    def __len__(self) -> int:
        return len(self._samples)

    def look(self, candidate: Path, count: int | None = None) -> Quality:
        """Run ``candidate`` on the first ``count`` samples (all), rounded up to whole batches."""
        count = min(count or len(self), len(self))
        sums = _Sums()
        scores = np.zeros(2)
        at = 0
        for exact, found in self._pairs(candidate, count):
            sums.add(exact, found)
            if self._labelled is not None and exact:
                labels = self._labelled.labels[at : at + len(exact[0])]
                scores += [self._score(rows[0], labels) for rows in (exact, found)]
            at += len(exact[0]) if exact else 0
        return Quality(sums.sqnr(self._names), sums.agreement(), self._drop(scores, at))

    def _pairs(self, candidate: Path, count: int) -> Iterator[tuple[list[Any], list[Any]]]:
        from compressor.runtime.session import open_session

        session = open_session(candidate, threads=self._threads)
        exact = None
        self._names = [o.name for o in session.get_outputs() if o.type == "tensor(float)"]
        steps = -(-count // self._batch)
        for step, feed in zip(range(steps), self._samples.feeds(self._batch)(), strict=False):
            if step < len(self._outputs):
                first = self._outputs[step]
            else:
                exact = exact or open_session(self._reference, threads=self._threads)
                first = exact.run(self._names, dict(feed))
                if step == len(self._outputs) and self._held < _KEEP:
                    self._outputs.append(first)
                    self._held += sum(a.nbytes for a in first)
            yield first, session.run(self._names, dict(feed))

    def _score(self, outputs: NDArray[np.float32], labels: Array) -> float:
        assert self._labelled is not None
        task = self._labelled.task
        return float(task.score(task.predict(outputs), labels.astype(np.float64)).sum())

    def _drop(self, scores: NDArray[np.float64], count: int) -> float | None:
        if self._labelled is None or not count:
            return None
        task = self._labelled.task
        lost = scores[0] - scores[1] if task.better == "higher" else scores[1] - scores[0]
        # One division of integers: a drop of exactly max_drop must compare equal to it.
        return float(task.scale * lost / count)


class _Sums:
    """Signal, noise and agreement over batches."""

    def __init__(self) -> None:
        self._signal: dict[int, float] = {}
        self._noise: dict[int, float] = {}
        self._same = self._total = 0
        self._classes = True

    def add(self, exact: list[Any], found: list[Any]) -> None:
        for i, (a, b) in enumerate(zip(exact, found, strict=True)):
            wide = a.astype(np.float64)
            self._signal[i] = self._signal.get(i, 0.0) + float((wide**2).sum())
            self._noise[i] = self._noise.get(i, 0.0) + float(((wide - b) ** 2).sum())
        fits = bool(exact) and exact[0].ndim == 2 and exact[0].shape[1] > 1
        self._classes = self._classes and fits
        if self._classes:
            self._same += int((exact[0].argmax(axis=1) == found[0].argmax(axis=1)).sum())
            self._total += len(exact[0])

    def sqnr(self, names: list[str]) -> dict[str, float]:
        return {n: decibel(self._signal[i], self._noise[i]) for i, n in enumerate(names)}

    def agreement(self) -> float | None:
        return 100.0 * self._same / self._total if self._classes and self._total else None


def compare(
    reference: Path,
    candidate: Path,
    samples: Samples,
    batch: int,
    threads: int = 1,
    provider: str = "cpu",
) -> tuple[dict[str, float], float | None]:
    """SQNR in dB per float output, and top-1 agreement in percent, with real kernels."""
    from compressor.runtime.session import open_session

    files = (reference, candidate)
    sessions = [open_session(p, provider=provider, threads=threads) for p in files]
    names = [o.name for o in sessions[0].get_outputs() if o.type == "tensor(float)"]
    sums = _Sums()
    for feed in samples.feeds(batch)():
        one, two = (s.run(names, dict(feed)) for s in sessions)
        sums.add(one, two)
    return sums.sqnr(names), sums.agreement()


def decibel(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``, between -200 and 200; not-a-number counts as -200."""
    if not np.isfinite(signal) or not np.isfinite(noise):
        return -200.0
    if noise == 0.0:
        return 200.0
    return float(np.clip(10 * np.log10(max(signal, 1e-300) / noise), -200.0, 200.0))
