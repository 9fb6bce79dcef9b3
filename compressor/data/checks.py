"""What must hold for any dataset, whoever wrote the function that returned it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from compressor.core.errors import ConfigError
from compressor.core.tasks import CLASSIFICATION
from compressor.core.tasks import task as find_task
from compressor.core.types import InputSpec
from compressor.data.dataset import DTYPES, NAME, RESERVED, Array, RawDataset, Split

_ALONE = {"all"}
_NAMED = {"train", "val", "test"}


def check(raw: RawDataset) -> RawDataset:
    """The same dataset with canonical types: int64 or float32 labels, arrays of known dtypes.

    Raises:
        ConfigError: Everything that is wrong with it, all at once.
    """
    where = f"dataset {raw.name}"
    find_task(raw.task)
    keys = set(raw.splits)
    if keys != _ALONE and not ("train" in keys and keys <= _NAMED):
        raise ConfigError(
            f"{where}: splits {sorted(keys)}; give 'all', or 'train' with or without 'val', 'test'"
        )
    problems = _class_problems(raw)
    splits = {}
    for name, split in raw.splits.items():
        found, splits[name] = _split(raw, split, f"{where}, split {name}")
        problems += found
    problems = [p if p.startswith(where) else f"{where}: {p}" for p in problems]
    if not problems:
        problems = _differences(where, splits) + _empty_classes(where, raw, splits)
    if problems:
        raise ConfigError(*problems)
    first = next(iter(splits.values()))
    return replace(raw, splits=splits, inputs=_specs(where, raw.inputs, first))


def _class_problems(raw: RawDataset) -> list[str]:
    classes = raw.classes
    if raw.task != CLASSIFICATION.name:
        return [f"{len(classes)} classes in a {raw.task} task; give none"] if classes else []
    if len(classes) < 2:
        return [f"{len(classes)} class ({', '.join(classes)}); classification needs at least 2"]
    twice = sorted({c for c in classes if classes.count(c) > 1})
    return [f"class names occur twice: {', '.join(twice)}"] if twice else []


def _split(raw: RawDataset, split: Split, where: str) -> tuple[list[str], Split]:
    problems: list[str] = []
    if not split.inputs:
        problems.append(f"{where}: no inputs")
    labels = np.asarray(split.labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    found, labels = _labels(raw, labels, where)
    problems += found
    inputs = {}
    for name, array in split.inputs.items():
        found, inputs[name] = _input(name, np.asarray(array), len(labels), f"{where}, input {name}")
        problems += found
    return problems, Split(inputs, labels)


def _labels(raw: RawDataset, labels: Array, where: str) -> tuple[list[str], Array]:
    if labels.ndim != 1:
        shape = list(labels.shape)
        return [f"{where}: labels of shape {shape}; give one number per sample"], labels.ravel()
    if len(labels) == 0:
        return [f"{where}: no samples"], labels
    if raw.task != CLASSIFICATION.name:
        if labels.dtype.kind not in "iuf":
            return [f"{where}: labels are {labels.dtype}; give numbers"], labels
        values = _narrow(labels)
        return _not_finite(values, f"{where}, labels"), values
    if labels.dtype.kind not in "iu":
        return [
            f"{where}: labels are {labels.dtype} (first: {labels[0]!r}); give class numbers as "
            "integers, or task: regression"
        ], labels
    outside = np.flatnonzero((labels < 0) | (labels >= len(raw.classes)))
    if len(outside):
        return [
            f"{where}: {len(outside)} labels are outside 0..{len(raw.classes) - 1} (the "
            f"{len(raw.classes)} classes), first {labels[outside[0]]} at sample {outside[0]}"
        ], labels
    return [], labels.astype(np.int64)


def _input(name: str, array: Array, n: int, where: str) -> tuple[list[str], Array]:
    if not NAME.fullmatch(name) or name in RESERVED:
        words = " and ".join(sorted(RESERVED))
        return [f"{where}: not a usable name; letters, digits and _, but not {words}"], array
    if array.ndim == 0 or len(array) != n:
        got = len(array) if array.ndim else "no axis of"
        return [f"{where}: {got} samples and {n} labels; give one label per sample"], array
    if array.ndim == 1:
        array = array[:, None]
    if 0 in array.shape[1:]:
        return [f"{where}: shape {list(array.shape)} holds no numbers"], array
    kind = array.dtype.kind
    if array.dtype == np.uint8:
        return [], array
    if kind == "f":
        values = _narrow(array)
        return _not_finite(values, where), values
    if kind in "iu":
        return [], array.astype(np.int64)
    return [f"{where}: dtype {array.dtype}; give uint8 images, floats or integers"], array


def _narrow(array: Array) -> Array:
    with np.errstate(over="ignore"):  # what overflows becomes infinite and is reported as such
        return array.astype(np.float32)


def _not_finite(array: Array, where: str) -> list[str]:
    if np.isfinite(array).all():
        return []
    bad = np.argwhere(~np.isfinite(array))
    return [
        f"{where}: {len(bad)} values are NaN, infinite or beyond float32, the first in sample "
        f"{bad[0][0]} at {bad[0][1:].tolist()}; drop or repair those samples"
    ]


def _differences(where: str, splits: Mapping[str, Split]) -> list[str]:
    """Inputs that are not alike in all splits."""
    looks = {
        name: {k: (v.shape[1:], v.dtype) for k, v in split.inputs.items()}
        for name, split in splits.items()
    }
    (first, want), *others = looks.items()
    return [
        f"{where}: {first} has {_words(want)}, {name} has {_words(got)}; make them alike"
        for name, got in others
        if got != want
    ]


def _words(look: Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]) -> str:
    return ", ".join(f"{k} {dtype} {list(shape)}" for k, (shape, dtype) in look.items())


def _empty_classes(where: str, raw: RawDataset, splits: Mapping[str, Split]) -> list[str]:
    pool = "all" if "all" in splits else "train"
    if not raw.classes:
        return []
    sizes = np.bincount(splits[pool].labels, minlength=len(raw.classes))
    return [
        f"{where}: class {raw.classes[c]!r} (number {c}) has no samples in {pool}; add some or "
        "take it out of the classes"
        for c in np.flatnonzero(sizes == 0)
    ]


def _specs(where: str, given: Mapping[str, InputSpec], split: Split) -> dict[str, InputSpec]:
    """Specs from the arrays, compared with what the dataset function said."""
    found = {
        name: InputSpec(array.shape[1:], str(array.dtype)) for name, array in split.inputs.items()
    }
    if not given:
        return found
    if set(given) != set(found):
        raise ConfigError(f"{where}: specs for {sorted(given)}, arrays for {sorted(found)}")
    problems = []
    for name, spec in given.items():
        array = found[name]
        if (spec.shape, spec.dtype) != (array.shape, array.dtype) or spec.dtype not in DTYPES:
            problems.append(
                f"{where}: input {name} is said to be {spec.dtype} {list(spec.shape)} and is "
                f"{array.dtype} {list(array.shape)}"
            )
        if spec.mean and not len(spec.mean) == len(spec.std) == spec.shape[0]:
            problems.append(f"{where}: input {name}: mean and std need {spec.shape[0]} entries")
        if any(s <= 0 for s in spec.std):
            problems.append(f"{where}: input {name}: every std must be above 0, got {spec.std}")
    if problems:
        raise ConfigError(*problems)
    return dict(given)
