"""The committed baseline of a CI gate: what it holds, and how a run becomes one."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.core import files, results
from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.hashing import digest_file
from compressor.core.results import RunResults, StageRecord
from compressor.core.types import BUNDLE, ONNX
from compressor.runtime.predict import npz_bytes

MODEL = "model.onnx"
PREDICTIONS = "predictions.npz"
BENCH_INPUTS = "bench_inputs.npz"
RESULTS = "results.json"
RESOLVED = "resolved.yaml"
_FILES = frozenset({MODEL, PREDICTIONS, BENCH_INPUTS, RESULTS, RESOLVED})
_SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Baseline:
    """A folder that :func:`accept` wrote.

    Attributes:
        folder: Where it is.
        results: The record of the run that became the baseline.
        shipped: The stage whose model it holds.
    """

    folder: Path
    results: RunResults
    shipped: StageRecord

    @property
    def model(self) -> Path:
        """Its ONNX file."""
        return self.folder / MODEL

    @property
    def predictions(self) -> Path:
        """Of its model on test."""
        return self.folder / PREDICTIONS


def load(folder: Path) -> Baseline:
    """Open a baseline.

    Raises:
        ConfigError: There is none in ``folder``.
        IntegrityError: A file of it is missing or malformed.
    """
    if not (folder / RESULTS).is_file():
        raise ConfigError(
            f"{folder}: no baseline here; `compressor baseline accept RUN {folder}` makes one"
        )
    missing = sorted(name for name in _FILES if not (folder / name).is_file())
    if missing:
        raise IntegrityError(
            f"{folder}: a baseline without {', '.join(missing)}; accept a run again"
        )
    record = results.load(folder / RESULTS)
    stage = shipped(record)
    if digest_file(folder / MODEL) != _model_digest(stage):
        raise IntegrityError(
            f"{folder / MODEL}: not the bytes that {RESULTS} records (a Git LFS pointer, or "
            "changed by hand?); accept a run again"
        )
    return Baseline(folder, record, stage)


def inputs(baseline: Baseline) -> Mapping[str, Any]:
    """Input name to its 16 stored samples. Raises IntegrityError."""
    return _arrays(baseline.folder / BENCH_INPUTS)


def shipped(record: RunResults) -> StageRecord:
    """The stage whose model a run ships: the last bundle, else the last that made an ONNX file.

    Raises:
        ConfigError: The run made no ONNX file.
    """
    makers = [s for s in record.stages if s.state != "failed" and model_output(s) is not None]
    bundles = [s for s in makers if any(o.kind == BUNDLE for o in s.outputs.values())]
    if not makers:
        raise ConfigError(f"run {record.name}: no stage made an ONNX file; nothing is shipped")
    return (bundles or makers)[-1]


def model_output(stage: StageRecord) -> str | None:
    """Name of the output that is the stage's ONNX file."""
    return next((name for name, out in stage.outputs.items() if out.kind == ONNX), None)


def _model_digest(stage: StageRecord) -> str:
    name = model_output(stage)
    return stage.outputs[name].digest if name is not None else ""


def model_file(run: Path, stage: StageRecord) -> Path:
    """The stage's ONNX file in the run folder. Raises IntegrityError if it is not there."""
    name = model_output(stage)
    file = stage.outputs[name].file if name is not None else ""
    return _inside(run, file, f"the .onnx of {stage.name}")


def predictions_file(run: Path, stage: StageRecord) -> Path:
    """Its predictions on test in the run folder. Raises IntegrityError if they are not there."""
    return _inside(run, stage.predictions.get("test", ""), f"the test predictions of {stage.name}")


def _inside(run: Path, file: str, what: str) -> Path:
    path = (run / file).resolve()
    if not file or not path.is_file():
        raise IntegrityError(f"{run}: {what} are not in the run folder; run the pipeline again")
    if not path.is_relative_to(run.resolve()):
        raise IntegrityError(f"{run}: results.json names a file outside the run folder: {file}")
    return path


def accept(run: Path, folder: Path) -> StageRecord:
    """Make a run's shipped model the baseline in ``folder``.

    Everything is written beside ``folder`` and renamed at the end, so that an older baseline is
    replaced by a complete one or not at all.

    Args:
        run: A run folder.
        folder: New, empty, or an older baseline.

    Returns:
        The stage whose model was taken.

    Raises:
        ConfigError: ``folder`` holds something else, or the run ships no model.
        IntegrityError: A file of the run is missing.
        SystemFault: The disk refuses.
    """
    record = results.load(run)
    stage = shipped(record)
    model = model_file(run, stage)
    sources = {
        MODEL: model,
        PREDICTIONS: predictions_file(run, stage),
        RESULTS: run / RESULTS,
        RESOLVED: _inside(run, RESOLVED, RESOLVED),
    }
    folder = folder.absolute()
    _check_replaceable(folder)
    if digest_file(model) != _model_digest(stage):
        raise IntegrityError(f"{model}: not the bytes that the run recorded; run it again")
    with files.faults(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
        try:
            beside.chmod(0o755)
            for name, source in sources.items():
                files.copy(source, beside / name)
            (beside / BENCH_INPUTS).write_bytes(npz_bytes(_bench_inputs(run, stage, model)))
            _replace(beside, folder)
        finally:
            files.remove(beside)
    return stage


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: a file; give a folder")
    held = {entry.name for entry in folder.iterdir()}
    if held - _FILES:
        raise ConfigError(
            f"{folder}: holds {sorted(held - _FILES)[0]!r}, which is no part of a baseline and "
            "would be lost; give a folder of its own"
        )


def _replace(new: Path, folder: Path) -> None:
    """Rename ``new`` to ``folder``; the older folder comes back if that fails."""
    files.sync_tree(new)
    old = new.with_name(new.name.replace(".new-", ".old-"))
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    files.sync_folder(folder.parent)
    files.remove(old)


def _bench_inputs(run: Path, stage: StageRecord, model: Path) -> dict[str, Any]:
    """Sixteen samples to feed: the bundle's golden inputs, else random ones of seed 0."""
    for output in stage.outputs.values():
        golden = run / output.file / "golden.npz"
        if output.kind == BUNDLE and output.file and golden.is_file():
            found = golden_inputs(golden)
            if found:
                return {n: np.resize(a, (_SAMPLES, *a.shape[1:])) for n, a in found.items()}
    return random_inputs(model)


def golden_inputs(file: Path) -> dict[str, Any]:
    """The inputs among a bundle's golden arrays, by input name."""
    prefix = "input."
    return {n[len(prefix) :]: a for n, a in _arrays(file).items() if n.startswith(prefix)}


def random_inputs(model: Path) -> dict[str, Any]:
    """Random samples of the model's own shapes, from its header alone.

    Raises:
        IntegrityError: Not an ONNX file, or a shape is open beyond the batch.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = onnx.load(str(model), load_external_data=False).graph
    except (DecodeError, ValueError) as error:
        raise IntegrityError(f"{model}: not an ONNX file, or a damaged one") from error
    constants = {tensor.name for tensor in graph.initializer}
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for value in graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value for d in kind.shape.dim][1:]
        if not all(size > 0 for size in shape):
            raise IntegrityError(f"{model}: input {value.name!r} has open dimensions {shape}")
        arrays[value.name] = _random(rng, (_SAMPLES, *shape), kind.elem_type)
    return arrays


def _random(rng: np.random.Generator, shape: tuple[int, ...], kind: int) -> Any:
    """In the range that images have; zeros and ones for integers."""
    from onnx.helper import tensor_dtype_to_np_dtype

    dtype = np.dtype(tensor_dtype_to_np_dtype(kind))
    if dtype.kind == "f":
        return rng.random(shape, dtype=np.float32).astype(dtype)
    top = 256 if dtype == np.uint8 else 2
    return rng.integers(0, top, shape).astype(dtype)


def _arrays(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise IntegrityError(f"{file}: not arrays: {error}") from error
