"""Run folders and baselines made by hand, small enough to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, save_model

from compressor.core import results, yaml
from compressor.core.environment import cpu_name, instruction_set
from compressor.core.hashing import digest_file
from compressor.core.results import OutputRecord, RunResults, StageRecord
from compressor.core.types import Metric, Timing, TimingProtocol
from compressor.runtime import predict

HERE = {"cpu": cpu_name(), "instruction_set": instruction_set()}
N = 1797


def metric(value: float, unit: str = "count", samples: Sequence[float] = ()) -> Metric:
    return Metric(value, unit, "lower", tuple(samples))


def onnx_file(path: Path, scale: float = 1.0, name: str = "image", size: int = 4) -> Path:
    """A model of one multiplication: image [batch, size] -> logits [batch, size]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [helper.make_node("Mul", [name, "scale"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], [scale])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    save_model(model, str(path))
    return path


def right_wrong(new_errors: int, fixed: int, n: int = N, wrong: int = 50) -> tuple[Any, Any]:
    """Predictions [n] of a base and a new model for labels of zeros: ``wrong`` base errors."""
    base = np.zeros(n)
    base[:wrong] = 1
    new = base.copy()
    new[:fixed] = 0
    new[wrong : wrong + new_errors] = 1
    return base, new


def write_predictions(path: Path, predicted: Any, labels: Any = None, first_id: int = 0) -> None:
    n = len(predicted)
    ids = np.arange(first_id, first_id + n, dtype=np.uint64)
    truth = np.zeros(n, np.int64) if labels is None else np.asarray(labels)
    outputs = np.zeros((n, 1), np.float16)
    values = np.asarray(predicted, np.float64)
    predict.save(path, predict.Predictions(ids, truth, values, outputs))


class Run:
    """Grows a run folder stage by stage."""

    def __init__(self, folder: Path, machine: Mapping[str, Any] = HERE) -> None:
        self.folder = folder
        self.machine = machine
        self.stages: list[StageRecord] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        name: str,
        uses: str = "export",
        predicted: Any = None,
        labels: Any = None,
        metrics: Mapping[str, Metric] | None = None,
        scale: float | None = None,
        first_id: int = 0,
        score: str = "accuracy",
        **more: Any,
    ) -> Run:
        found = dict(metrics or {})
        outputs, predictions = {}, {}
        if predicted is not None:
            file = f"predictions/{name}.test.npz"
            write_predictions(self.folder / file, predicted, labels, first_id)
            predictions = {"test": file}
            found.setdefault(score, metric(0.0, "%"))
        if scale is not None:
            path = onnx_file(self.folder / "models" / f"{name}.onnx", scale)
            outputs["model"] = OutputRecord(
                "onnx", digest_file(path), path.stat().st_size, f"models/{name}.onnx"
            )
        if uses == "bundle":
            outputs = {"bundle": OutputRecord("bundle", "b", 1, "bundle"), **outputs}
        state = more.pop("state", "ran")
        fields = {"outputs": outputs, "metrics": found, "predictions": predictions, **more}
        self.stages.append(StageRecord(name, uses, "key", state, 1.0, **fields))
        return self

    def done(self, gates: Sequence[Mapping[str, Any]] = ()) -> RunResults:
        record = RunResults("r", "2026-01-01", "1", 0, self.machine, tuple(self.stages))
        results.save(record, self.folder / "results.json")
        resolved = {"name": "r", "stages": {}} | ({"gates": list(gates)} if gates else {})
        (self.folder / "resolved.yaml").write_text(yaml.dump(resolved))
        return record


def shipped(folder: Path, predicted: Any, scale: float = 1.0, **metrics: float) -> Run:
    """A run of a teacher and one exported model with 58 000 bytes and 1 000 MACs."""
    values = {"bytes": 58_000.0, "macs": 1000.0} | metrics
    rows = {k: metric(v, "bytes" if k == "bytes" else "count") for k, v in values.items()}
    rows["parity_max"] = metric(3e-6, "x")
    return Run(folder).add("fp32", predicted=predicted, scale=scale, metrics=rows)


class Clock:
    """A measure that answers with chosen ratios candidate / baseline, one per call."""

    def __init__(self, *ratios: float, control: float = 1.0, unstable: bool = False) -> None:
        self.ratios = list(ratios)
        self.control = control
        self.unstable = unstable
        self.protocols: list[TimingProtocol] = []
        self.feeds: list[Any] = []

    def __call__(
        self, models: Mapping[str, Path], protocol: TimingProtocol, feed: Any = None
    ) -> Timing:
        self.protocols.append(protocol)
        self.feeds.append(feed)
        slower = self.ratios.pop(0) if len(self.ratios) > 1 else self.ratios[0]
        base, cand = models
        noise = np.random.default_rng(len(self.protocols)).lognormal(0, 0.02, (3, 30))
        rounds = {
            base: tuple(noise[0]),
            cand: tuple(noise[1] * slower),
            "A/A": tuple(noise[2] * self.control),
        }
        return Timing("m", protocol, rounds, rounds, self.unstable)
