"""The bundle folder: what a device needs, what was promised, and how to check it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from compressor.core.environment import instruction_set, onnxruntime_packages, version
from compressor.core.errors import ConfigError
from compressor.core.files import copy, write_bytes, write_json, write_text
from compressor.core.hashing import digest_file
from compressor.core.types import InputSpec
from compressor.runtime import metadata, readme, verify
from compressor.runtime.choose import Candidate, Choice
from compressor.runtime.golden import Golden
from compressor.runtime.predict import as_input
from compressor.runtime.record import Record
from compressor.runtime.session import open_session, tensors

MODEL = "model.onnx"
_LAYOUTS = {3: "NCHW", 1: "NC"}


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that goes into a bundle.

    Attributes:
        name: Title of the model card.
        choice: What ships and why.
        candidates: All that could have, by name.
        files: Their ONNX files, by name.
        scores: The task's metric on val by name; the teacher's under its own name.
        teacher: Name of the teacher.
        max_drop: The limit that was asked for.
        metric: Name and unit of the task's metric.
        task: ``classification`` or ``regression``.
        classes: Class names in label order; empty for regression.
        inputs: Input name to spec.
        dataset: Name and fingerprint of the data.
        record: The timings.
        golden: The golden samples of the chosen file.
    """

    name: str
    choice: Choice
    candidates: Mapping[str, Candidate]
    files: Mapping[str, Path]
    scores: Mapping[str, float]
    teacher: str
    max_drop: float
    metric: tuple[str, str]
    task: str
    classes: Sequence[str]
    inputs: Mapping[str, InputSpec]
    dataset: tuple[str, str]
    record: Record
    golden: Golden


def write(folder: Path, contents: Contents) -> None:
    """Write the bundle into an empty folder; equal contents are equal bytes.

    Raises:
        ConfigError: A candidate keeps weights in a second file.
    """
    places = _places(contents)
    for name, place in places.items():
        _self_contained(contents.files[name], name)
        copy(contents.files[name], folder / place)
    write_json(folder / "labels.json", list(contents.classes))
    write_json(folder / "preprocessing.json", preprocessing(folder / MODEL, contents.inputs))
    write_bytes(folder / "golden.npz", contents.golden.npz())
    write_bytes(folder / "verify.py", Path(verify.__file__).read_bytes())
    manifest = _manifest(contents, places)
    write_text(folder / "README.md", readme.text(manifest))
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    manifest["files"] = {
        n: {"sha256": digest_file(folder / n), "bytes": (folder / n).stat().st_size} for n in names
    }
    write_json(folder / verify.MANIFEST, manifest)


def _places(contents: Contents) -> dict[str, str]:
    """Candidate name to path in the bundle; names of matrix members lose their brackets."""
    places: dict[str, str] = {}
    for name in contents.files:
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "variant"
        place, number = f"variants/{base}.onnx", 2
        while place in places.values():
            place, number = f"variants/{base}-{number}.onnx", number + 1
        places[name] = MODEL if name == contents.choice.name else place
    return places


def _self_contained(path: Path, name: str) -> None:
    model = onnx.load(str(path), load_external_data=False)
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in tensors(model)):
        raise ConfigError(f"{name}: its weights lie in a second file; a bundle ships single files")


def preprocessing(model: Path, inputs: Mapping[str, InputSpec]) -> dict[str, Any]:
    """How to make the model's inputs: a spec that a program can follow.

    Mean and standard deviation are inside the graph; all that is left is a division by 255.
    """
    kinds = {node.name: node.type for node in open_session(model).get_inputs()}
    rows = {}
    for name, spec in inputs.items():
        scaled = spec.dtype == "uint8" and kinds[name] != "tensor(uint8)"
        rows[name] = {
            "shape": ["batch", *spec.shape],
            "layout": _LAYOUTS.get(len(spec.shape), "N" + "D" * len(spec.shape)),
            "dtype": str(as_input(_one(spec), kinds[name]).dtype),
            "range": [0, 1] if scaled else [0, 255] if spec.dtype == "uint8" else None,
            "from": spec.dtype,
            "divide_by": 255 if scaled else 1,
        }
    return {"inputs": rows, "normalisation": "inside the graph"}


def _one(spec: InputSpec) -> Any:
    return np.zeros((1, *spec.shape), spec.dtype)


def _manifest(contents: Contents, places: Mapping[str, str]) -> dict[str, Any]:
    record, chosen = contents.record, contents.choice.name
    main = record.main
    golden = contents.golden
    props = metadata.read(contents.files[chosen])
    return {
        "schema": verify.SCHEMA,
        "name": contents.name,
        "task": contents.task,
        "classes": len(contents.classes),
        "dataset": {"name": contents.dataset[0], "fingerprint": contents.dataset[1]},
        "model": {"name": chosen, "file": MODEL,
                  "precision": contents.candidates[chosen].precision},
        "variants": {
            n: _variant(contents, n, place) for n, place in places.items() if n != chosen
        },
        "target": {
            "provider": main.provider,
            "threads": main.threads,
            "batch": main.batch,
            "instruction_set": instruction_set(),
            "made_for": props.get(metadata.TARGET, ""),
        },
        "claims": {**_variant(contents, chosen, MODEL), **_claims(contents)},
        "within": contents.choice.within,
        "max_drop": contents.max_drop,
        "reasons": list(contents.choice.reasons),
        "machine": dict(record.machine),
        "timings": {"digest": main.digest, "unstable": main.unstable, "note": main.note,
                    "protocol": asdict(main.protocol)},
        "golden": {
            "file": "golden.npz",
            "samples": len(golden.outputs),
            "tolerance": golden.noise,
            "margin": golden.margin if math.isfinite(golden.margin) else None,
            "clear": golden.clear,
        },
        "versions": {
            "compressor": version("compressor"),
            "onnx": version("onnx"),
            **{name: version(name) for name in onnxruntime_packages()},
        },
    }  # fmt: skip


def _variant(contents: Contents, name: str, place: str) -> dict[str, Any]:
    candidate = contents.candidates[name]
    return {
        "file": place,
        "precision": candidate.precision,
        "within": candidate.drop <= contents.max_drop,
        "drop_val": candidate.drop,
        "drop_val_bound": candidate.bound,
        "score_val": contents.scores[name],
        "bytes": candidate.bytes,
        "p50_ms": contents.record.main.models[name].p50,
        "speedup": asdict(contents.record.main.speedup[name]),
    }


def _claims(contents: Contents) -> dict[str, Any]:
    record = contents.record
    metric, unit = contents.metric
    size = record.size.get(contents.choice.name)
    return {
        "metric": metric,
        "unit": unit,
        "teacher": {"name": contents.teacher, "score_val": contents.scores[contents.teacher]},
        "baseline": record.baseline,
        "reference": record.reference,
        "size": asdict(size) if size else None,
    }
