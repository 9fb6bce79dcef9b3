"""A dataset as it lies on disk: one JSON record, and three kinds of plain ``.npy`` per split.

``dataset.json`` holds names, shapes, normalisation, counts and the fingerprint; ``SPLIT.INPUT.npy``
the samples (images as uint8 CHW), ``SPLIT.labels.npy`` int64 classes or float32 values, and
``SPLIT.ids.npy`` uint64 content ids. Arrays are memory-mapped, so opening a dataset costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from compressor.core.config import Config
from compressor.core.errors import IntegrityError
from compressor.core.files import write_json
from compressor.core.types import InputSpec

SCHEMA = 1
SPLITS = ("train", "val", "test", "calibration")
DTYPES = ("uint8", "float32", "int64")
RESERVED = frozenset({"labels", "ids"})  # they name files beside those of the inputs
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Array = NDArray[Any]


def _no_ids() -> Array:
    return np.empty(0, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Split:
    """Samples of one split, in a fixed order.

    Attributes:
        inputs: Input name to array ``[n, *shape]``.
        labels: ``[n]``, int64 class numbers or float32 values.
        ids: ``[n]`` uint64, unique in the split; empty in a :class:`RawDataset`.
    """

    inputs: Mapping[str, Array]
    labels: Array
    ids: Array = field(default_factory=_no_ids)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Array) -> Split:
        """The samples at ``index`` ``[k]``, copied."""
        ids = self.ids[index] if len(self.ids) else self.ids
        return Split({k: v[index] for k, v in self.inputs.items()}, self.labels[index], ids)


@dataclass(frozen=True, slots=True)
class RawDataset:
    """What a dataset function returns, before it is checked, split and normalised.

    Attributes:
        name: Shown in reports.
        task: ``classification`` or ``regression``.
        classes: Names in label order; empty for regression.
        inputs: Specs in the order in which ``forward`` takes them, usually without normalisation,
            which is then measured on train; ``{}`` takes names, shapes and types from the arrays.
        splits: Either ``{"all": ...}``, which is split by the stage, or ``train`` and perhaps
            ``test`` and ``val``; what is missing is cut out of ``train``.
        source: A word on where it comes from; part of the record.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    inputs: Mapping[str, InputSpec]
    splits: Mapping[str, Split]
    source: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset artifact that has been opened.

    Attributes:
        path: Its folder.
        name: As the dataset function called it.
        task: Name of the :class:`compressor.core.tasks.Task`.
        classes: Class names in label order; empty for regression.
        inputs: Input name to spec, with the normalisation measured on train.
        fingerprint: sha256 over specs, classes and all arrays.
        counts: Split name to number of samples.
        duplicates: ``train_test``: test samples that also occur in train or val;
            ``within_train``: train samples that repeat an earlier one.
        source: Where it comes from.
    """

    path: Path
    name: str
    task: str
    classes: tuple[str, ...]
    inputs: Mapping[str, InputSpec]
    fingerprint: str
    counts: Mapping[str, int]
    duplicates: Mapping[str, int]
    source: str = ""

    def split(self, name: str) -> Split:
        """Open ``train``, ``val``, ``test`` or ``calibration``, memory-mapped and read-only.

        Raises:
            IntegrityError: No such split, or its arrays are not what the record says.
        """
        if name not in self.counts:
            raise IntegrityError(f"{self.path}: no split {name!r}; it has {', '.join(self.counts)}")
        n = self.counts[name]
        label = "int64" if self.classes else "float32"
        inputs = {
            key: _open(self.path / f"{name}.{key}.npy", (n, *spec.shape), spec.dtype)
            for key, spec in self.inputs.items()
        }
        labels = _open(self.path / f"{name}.labels.npy", (n,), label)
        return Split(inputs, labels, _open(self.path / f"{name}.ids.npy", (n,), "uint64"))


class _Record(Config):
    """``dataset.json``."""

    version: Literal[1] = Field(alias="schema")
    name: str
    task: str
    classes: tuple[str, ...]
    inputs: dict[str, InputSpec] = Field(min_length=1)
    splits: dict[Literal["train", "val", "test", "calibration"], int]
    fingerprint: str
    duplicates: dict[str, int]
    source: str
    order: tuple[str, ...]  # of the inputs: JSON keys are sorted, forward's arguments are not


def _open(path: Path, shape: tuple[int, ...], dtype: str) -> Array:
    """Map one array and compare it with the record."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError as error:
        raise IntegrityError(f"{path}: missing from the dataset") from error
    except (ValueError, EOFError, OSError) as error:
        raise IntegrityError(f"{path}: not a readable .npy file ({error})") from error
    if array.shape != shape or array.dtype != np.dtype(dtype):
        raise IntegrityError(
            f"{path}: {array.dtype} {list(array.shape)}, dataset.json says {dtype} {list(shape)}"
        )
    return array


def load(path: Path) -> Dataset:
    """Open a dataset folder. Raises IntegrityError when the record is missing or malformed."""
    file = path / "dataset.json"
    try:
        record = _Record.model_validate_json(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IntegrityError(f"{file}: not there; {path} is not a dataset folder") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise IntegrityError(f"{file}: not a dataset record ({where}: {first['msg']})") from error
    bad = [k for k in record.inputs if not NAME.fullmatch(k)]
    if bad or sorted(record.order) != sorted(record.inputs):
        raise IntegrityError(f"{file}: inputs {list(record.inputs)} are not usable names")
    return Dataset(
        path=path,
        name=record.name,
        task=record.task,
        classes=record.classes,
        inputs={name: record.inputs[name] for name in record.order},
        fingerprint=record.fingerprint,
        counts={str(key): n for key, n in record.splits.items()},
        duplicates=record.duplicates,
        source=record.source,
    )


def save(
    folder: Path,
    *,
    name: str,
    task: str,
    classes: tuple[str, ...],
    inputs: Mapping[str, InputSpec],
    splits: Mapping[str, Split],
    duplicates: Mapping[str, int],
    source: str = "",
) -> Dataset:
    """Write a dataset below ``folder`` (inside a stage's workdir) and open it again.

    The same arguments give the same bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split_name, split in splits.items():
        for key, array in (*split.inputs.items(), ("labels", split.labels), ("ids", split.ids)):
            np.save(folder / f"{split_name}.{key}.npy", np.ascontiguousarray(array))
    record = {
        "schema": SCHEMA,
        "name": name,
        "task": task,
        "classes": list(classes),
        "inputs": {key: asdict(spec) for key, spec in inputs.items()},
        "order": list(inputs),
        "splits": {key: len(split) for key, split in splits.items()},
        "duplicates": dict(duplicates),
        "source": source,
    }
    record["fingerprint"] = _fingerprint(record, splits)
    write_json(folder / "dataset.json", record)
    return load(folder)


def _fingerprint(record: Mapping[str, Any], splits: Mapping[str, Split]) -> str:
    """sha256 over the record and the bytes of every array, in a fixed order."""
    hasher = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode())
    for _, split in sorted(splits.items()):
        for key in record["order"]:
            hasher.update(np.ascontiguousarray(split.inputs[key]).data)
        hasher.update(np.ascontiguousarray(split.labels).data)
    return hasher.hexdigest()


def as_float(array: Array, spec: InputSpec) -> Array:
    """What an exported ONNX eats: uint8 as float32 in 0..1, everything else unchanged.

    Args:
        array: ``[n, *spec.shape]`` as stored.
        spec: The input's spec.
    """
    if spec.dtype != "uint8":
        return array
    return np.divide(array, np.float32(255), dtype=np.float32)


def normalise(array_float: Array, spec: InputSpec) -> Array:
    """What a bare torch model eats: ``(x - mean) / std`` per channel (axis 0 of a sample).

    Args:
        array_float: ``[n, *spec.shape]`` from :func:`as_float`.
        spec: The input's spec; without a mean the array is returned unchanged.
    """
    if not spec.mean:
        return array_float
    tail = (1,) * (len(spec.shape) - 1)
    mean = np.asarray(spec.mean, dtype=np.float32).reshape(-1, *tail)
    std = np.asarray(spec.std, dtype=np.float32).reshape(-1, *tail)
    out = np.subtract(array_float, mean, dtype=np.float32)
    out /= std
    return out
