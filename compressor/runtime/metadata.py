"""What an ONNX file of ours says about itself: ``compressor.*`` entries of its metadata.

Plain strings and JSON in ``ModelProto.metadata_props``, which survive quantization and reach a
deployed session as ``get_modelmeta().custom_metadata_map``. They inform; nothing is imported or
configured by what they say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from pydantic import TypeAdapter, ValidationError

from compressor.core.errors import IntegrityError
from compressor.core.types import InputSpec, ModelSpec

VERSION = "compressor.version"  # of compressor, when the file was exported
CLASSES = "compressor.classes"  # JSON list in label order; [] for regression
TASK = "compressor.task"
INPUTS = "compressor.inputs"  # JSON: name -> {shape, dtype, mean, std}, in the model's order
SOURCE = "compressor.source"  # digest of the checkpoint
DATASET = "compressor.dataset"  # fingerprint of the data that the labels belong to
PRECISION = "compressor.precision"  # fp32 | fp16 | int8 | int4
TARGET = "compressor.target"  # instruction set or provider that the file was made for
PLACEMENT = "compressor.placement"  # how it was decided which layers are int8, in words

_INPUTS = TypeAdapter(dict[str, InputSpec])


def of_spec(spec: ModelSpec) -> dict[str, str]:
    """The entries that follow from a model's spec: classes, task and inputs."""
    inputs = {name: asdict(i) for name, i in spec.inputs.items()}
    return {
        CLASSES: json.dumps(list(spec.classes), ensure_ascii=False),
        TASK: spec.task,
        INPUTS: json.dumps(inputs),
    }


def read(model: Path | onnx.ModelProto) -> dict[str, str]:
    """All metadata of a model, other tools' entries included.

    Raises:
        IntegrityError: The path is not an ONNX file.
    """
    if isinstance(model, Path):
        path = model
        try:
            model = onnx.load(str(path), load_external_data=False)
        except (OSError, DecodeError, ValueError) as error:
            raise IntegrityError(f"{path}: not a readable ONNX file") from error
        if not model.HasField("graph"):
            raise IntegrityError(f"{path}: not an ONNX file (no graph)")
    return {entry.key: entry.value for entry in model.metadata_props}


def write_(model: onnx.ModelProto, props: Mapping[str, str]) -> None:
    """Set entries, keeping the others; sorted by key, so that equal entries are equal bytes."""
    merged = {**read(model), **props}
    del model.metadata_props[:]
    for key in sorted(merged):
        model.metadata_props.add(key=key, value=merged[key])


def labels(model: Path | onnx.ModelProto) -> tuple[str, ...]:
    """Class names in label order; empty for regression and for files made elsewhere.

    Raises:
        IntegrityError: Not an ONNX file, or the entry is not a JSON list of strings.
    """
    found = _json(model, CLASSES, "[]")
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise IntegrityError(f"{_where(model)}: metadata {CLASSES} is not a list of names")
    return tuple(found)


def inputs(model: Path | onnx.ModelProto) -> dict[str, InputSpec]:
    """Input name to spec, in the model's order; empty for files made elsewhere.

    Raises:
        IntegrityError: Not an ONNX file, or the entry is not what :func:`of_spec` writes.
    """
    try:
        return _INPUTS.validate_python(_json(model, INPUTS, "{}"))
    except ValidationError as error:
        raise IntegrityError(f"{_where(model)}: metadata {INPUTS} is malformed") from error


def _json(model: Path | onnx.ModelProto, key: str, default: str) -> Any:
    try:
        return json.loads(read(model).get(key, default))
    except ValueError as error:
        raise IntegrityError(f"{_where(model)}: metadata {key} is not JSON") from error


def _where(model: Path | onnx.ModelProto) -> str:
    return "model" if isinstance(model, onnx.ModelProto) else str(model)
