"""Predictions: a model's outputs per sample, and the file that keeps them."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compressor.core.errors import ConfigError, IntegrityError, StageError
from compressor.core.files import write_bytes

if TYPE_CHECKING:
    from compressor.core.tasks import Task

Array = NDArray[Any]
_FP16_MAX = 65504.0
# What NumPy and zipfile raise on files that are no .npz, or damaged, encrypted or packed by a
# method that this Python cannot unpack (RuntimeError). A plain .npy is a TypeError.
_UNREADABLE = (
    OSError, ValueError, EOFError, AttributeError, TypeError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, slots=True)
class Predictions:
    """One row per sample of a split, in the split's order.

    Attributes:
        ids: uint64 [n], unique; what two files are paired by.
        labels: [n], class index or target value.
        predicted: float64 [n], ``Task.predict`` of the fp32 outputs (not of the stored fp16).
        outputs: float16 [n, ...], clipped to its range; to look at, not to decide by.
        name: Of the model.
    """

    ids: NDArray[np.uint64]
    labels: Array
    predicted: NDArray[np.float64]
    outputs: NDArray[np.float16]
    name: str = ""

    def __len__(self) -> int:
        return len(self.ids)


def make(name: str, ids: Array, labels: Array, outputs: Array, task: Task) -> Predictions:
    """Predictions from fp32 ``outputs`` [n, ...].

    Raises:
        StageError: Some output is not finite.
    """
    bad = ~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
    if bad.any():
        raise StageError(
            f"{name}: the outputs of {int(bad.sum())} of {len(outputs)} samples are not finite "
            f"(first: sample {int(bad.argmax())}); fp16 overflow or a diverged model"
        )
    return Predictions(
        ids=np.asarray(ids, dtype=np.uint64),
        labels=np.asarray(labels),
        predicted=task.predict(np.asarray(outputs, dtype=np.float32)),
        outputs=np.clip(outputs, -_FP16_MAX, _FP16_MAX).astype(np.float16),
        name=name,
    )


def score(predictions: Predictions, task: Task) -> float:
    """The task's headline metric: accuracy in percent, or the mean absolute error."""
    rows = task.score(predictions.predicted, predictions.labels.astype(np.float64))
    return float(rows.mean() * task.scale)


def as_input(array: Array, kind: str) -> Array:
    """Stored samples as an exported model eats them.

    Args:
        array: As the dataset stores it; uint8 enters a float input divided by 255.
        kind: ONNX Runtime's type of the input, e.g. ``tensor(float)``.

    Raises:
        ConfigError: The input is of a type that cannot be fed.
    """
    if kind not in _DTYPES:
        raise ConfigError(f"cannot feed an input of type {kind}; known: {', '.join(_DTYPES)}")
    target = np.dtype(_DTYPES[kind])
    if array.dtype == np.uint8 and target.kind == "f":
        array = array.astype(np.float32) / np.float32(255.0)
    if target.kind in "iub" and array.dtype.kind == "f":
        raise ConfigError(f"the model takes {kind}, the samples are {array.dtype}")
    return np.ascontiguousarray(array, dtype=target)


def run(model: Any, feeds: Mapping[str, Array], batch: int = 64) -> NDArray[np.float32]:
    """The first output for every sample.

    Args:
        model: A session, or the path of an ONNX file (opened on one CPU thread).
        feeds: Input name to samples [n, ...], stored (uint8) or float; may be memory-mapped.
        batch: Samples per call, at least 1. A file with a fixed batch is run at that size.

    Returns:
        float32 [n, ...].

    Raises:
        ConfigError: Input names differ from the model's, or the arrays from each other in length.
    """
    from compressor.runtime.session import fixed_batch, open_session

    session = open_session(Path(model)) if isinstance(model, str | Path) else model
    kinds = {node.name: node.type for node in session.get_inputs()}
    if set(kinds) != set(feeds):
        raise ConfigError(f"the model's inputs are {sorted(kinds)}, the data gives {sorted(feeds)}")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ConfigError(f"inputs of {sorted(sizes)} samples; give one length above 0")
    total, fixed = sizes.pop(), fixed_batch(session)
    step = fixed or max(1, batch)
    output = session.get_outputs()[0].name
    parts = []
    for start in range(0, total, step):
        feed = {n: as_input(a[start : start + step], kinds[n]) for n, a in feeds.items()}
        rows = min(step, total - start)
        if fixed and rows < fixed:  # repeat the last sample, drop its rows again
            pad = fixed - rows
            feed = {n: np.concatenate([a, np.repeat(a[-1:], pad, axis=0)]) for n, a in feed.items()}
        parts.append(np.asarray(session.run([output], feed)[0], dtype=np.float32)[:rows])
    return np.concatenate(parts)


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """An uncompressed ``.npz`` whose bytes depend on the arrays alone (``numpy.savez`` dates it).

    Raises:
        ValueError: An object array (it would be pickled).
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            array = np.asarray(arrays[name])
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(name + ".npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, member.getvalue())
    return buffer.getvalue()


def save(path: Path, predictions: Predictions) -> None:
    """Write one ``.npz`` atomically; equal predictions are equal bytes."""
    write_bytes(path, npz_bytes({
        "ids": predictions.ids,
        "labels": predictions.labels,
        "predicted": predictions.predicted,
        "outputs": predictions.outputs,
        "name": np.frombuffer(predictions.name.encode(), dtype=np.uint8),
    }))  # fmt: skip


def load(path: Path) -> Predictions:
    """Read what :func:`save` wrote.

    Raises:
        IntegrityError: Missing, damaged, or not predictions; nothing is ever unpickled.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            a = {name: archive[name] for name in ("ids", "labels", "predicted", "outputs")}
            name = bytes(archive["name"]).decode()
    except (KeyError, *_UNREADABLE) as error:
        raise IntegrityError(f"{path}: not a predictions file: {error}") from error
    found = Predictions(a["ids"], a["labels"], a["predicted"], a["outputs"], name)
    lengths = {len(found.ids), len(found.labels), len(found.predicted), len(found.outputs)}
    types = [array.dtype.str for array in (found.ids, found.predicted, found.outputs)]
    if len(lengths) != 1 or types != ["<u8", "<f8", "<f2"]:
        raise IntegrityError(f"{path}: not a predictions file: lengths or types do not fit")
    if len(np.unique(found.ids)) != len(found.ids):
        raise IntegrityError(f"{path}: sample ids repeat; predictions cannot be paired")
    return found
