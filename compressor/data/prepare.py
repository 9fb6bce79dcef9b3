"""From what a dataset function returns to a dataset folder: check, split, measure, write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.core.errors import ConfigError
from compressor.core.types import InputSpec
from compressor.data import splits as cut
from compressor.data.checks import check
from compressor.data.dataset import Array, Dataset, RawDataset, Split, save

_BLOCK = 4096  # samples


def prepare(
    raw: RawDataset,
    folder: Path,
    *,
    seed: int,
    val: float,
    test: float,
    calibration: int,
    limit: int | None = None,
    train_limit: int | None = None,
) -> Dataset:
    """Write the dataset that every later stage reads.

    Args:
        raw: From a dataset function.
        folder: Where to write, inside a stage's workdir.
        seed: Root of all choices; equal arguments give equal bytes.
        val: Fraction of train that becomes val, where the dataset has no val of its own.
        test: Fraction that becomes test, where the dataset has no test of its own.
        calibration: Samples of train that are copied for calibration, classes mixed: whoever
            reads only the first of them still sees every class.
        limit: At most this many samples in each of train, val and test.
        train_limit: As ``limit``, for train alone.

    Raises:
        ConfigError: The data or the numbers do not fit; see :mod:`compressor.data.checks`.
    """
    raw = check(raw)
    parts = _three(raw, seed, val, test)
    for name, most, stream in (
        ("train", limit if train_limit is None else train_limit, cut.LIMIT_TRAIN),
        ("val", limit, cut.LIMIT_VAL),
        ("test", limit, cut.LIMIT_TEST),
    ):
        if most is not None and len(parts[name]) > most:
            chosen = cut.pick(_strata(raw, parts[name]), most, seed, stream)
            parts[name] = parts[name].take(chosen)
    _check_train(raw, parts["train"], calibration)
    hashes = {name: cut.content_hashes(s.inputs, len(s)) for name, s in parts.items()}
    parts = {name: replace(s, ids=cut.unique_ids(hashes[name])) for name, s in parts.items()}
    train = parts["train"]
    sample = train.take(cut.pick(_strata(raw, train), calibration, seed, cut.CALIBRATION))
    sample = sample.take(cut.blend(_strata(raw, sample), seed, cut.CALIBRATION_ORDER))
    seen = np.concatenate([hashes["train"], hashes["val"]])
    return save(
        folder,
        name=raw.name,
        task=raw.task,
        classes=raw.classes,
        inputs={name: _measured(spec, train.inputs[name]) for name, spec in raw.inputs.items()},
        splits={**parts, "calibration": sample},
        duplicates={
            "train_test": int(np.isin(hashes["test"], seen).sum()),
            "within_train": int((cut.repeats(hashes["train"]) > 0).sum()),
        },
        source=raw.source,
    )


def _strata(raw: RawDataset, split: Split) -> NDArray[np.int64]:
    """Classes; one stratum for regression."""
    return split.labels if raw.classes else np.zeros(len(split), dtype=np.int64)


def _three(raw: RawDataset, seed: int, val: float, test: float) -> dict[str, Split]:
    """Train, val and test, those that are missing cut out of train."""
    train = raw.splits["all"] if "all" in raw.splits else raw.splits["train"]
    parts: dict[str, Split] = {}
    for name, fraction, stream in (("test", test, cut.TEST), ("val", val, cut.VAL)):
        if name in raw.splits:
            parts[name] = raw.splits[name]
            continue
        size = cut.part(len(train), fraction)
        chosen = cut.pick(_strata(raw, train), size, seed, stream)
        parts[name] = train.take(chosen)
        train = train.take(cut.rest(len(train), chosen))
    return {"train": train, "val": parts["val"], "test": parts["test"]}


def _check_train(raw: RawDataset, train: Split, calibration: int) -> None:
    where = f"dataset {raw.name}"
    sizes = np.bincount(_strata(raw, train), minlength=len(raw.classes))
    missing = [raw.classes[c] for c in np.flatnonzero(sizes == 0)] if raw.classes else []
    if missing or not len(train):
        raise ConfigError(
            f"{where}: no samples are left in train ({len(train)} in all) for "
            f"{', '.join(map(repr, missing[:5])) or 'anything'}; give more samples per class, "
            "smaller fractions test and val, or a larger limit"
        )
    if not 1 <= calibration <= len(train):
        raise ConfigError(
            f"{where}: calibration: {calibration} samples; give 1 to {len(train)}, which is all "
            "of train"
        )


def _measured(spec: InputSpec, x: Array) -> InputSpec:
    """The spec with mean and std per channel of ``x`` ``[n, *shape]``, unless it brings its own.

    A channel that never changes gets std 1. Rounded to 7 significant digits, about what float32
    holds, so that the record does not depend on how this machine's NumPy orders its sums.
    """
    if spec.dtype == "int64" or spec.mean:
        return spec
    channels = spec.shape[0]
    moments = [_moments(x[:, c], spec.dtype) for c in range(channels)]
    mean, std = zip(*moments, strict=True)
    return replace(
        spec,
        mean=tuple(float(f"{m:.7g}") for m in mean),
        std=tuple(float(f"{s:.7g}") if s > 0 else 1.0 for s in std),
    )


def _moments(x: Array, dtype: str) -> tuple[float, float]:
    """Mean and population standard deviation; exact integers for uint8."""
    if dtype != "uint8":
        wide = x.astype(np.float64)
        mean = float(wide.mean())
        return mean, float(np.sqrt(np.square(wide - mean).mean()))
    histogram = np.zeros(256, dtype=np.int64)
    for i in range(0, len(x), _BLOCK):  # bincount widens to 8 bytes per pixel
        histogram += np.bincount(x[i : i + _BLOCK].ravel(), minlength=256)
    counts = histogram.tolist()
    n = sum(counts)
    total = sum(v * k for v, k in enumerate(counts))
    squares = sum(v * v * k for v, k in enumerate(counts))
    variance = (squares * n - total * total) / (n * n)  # of whole numbers: no cancellation
    return total / n / 255, variance**0.5 / 255


def summary(data: Dataset) -> Mapping[str, int]:
    """Counts that describe a dataset: one per split, classes, duplicates."""
    return {
        **data.counts,
        "classes": len(data.classes),
        "duplicates_train_test": data.duplicates["train_test"],
        "duplicates_within_train": data.duplicates["within_train"],
    }
