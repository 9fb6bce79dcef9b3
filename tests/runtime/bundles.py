"""A dataset, three models, stored timings and a context, for tests of bench and bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compressor.core import environment
from compressor.core.hashing import digest_path
from compressor.core.tasks import CLASSIFICATION
from compressor.core.types import Artifact, Context, InputSpec, Timing, TimingProtocol
from compressor.data import dataset
from compressor.runtime import bench, metadata, predict, record
from compressor.runtime.timing import AA
from tests.runtime import nets

CLASSES = ("cat", "dog", "<img>|owl")


class Silent:
    """Progress that keeps what was said."""

    def __init__(self):
        self.lines = []

    def update(self, done, total, note=""):
        pass

    def say(self, line):
        self.lines.append(line)


class Stored:
    """Timings of fixed round times (ms by model name); remembers what was asked."""

    def __init__(self, times=None, unstable=False, n=12):
        self.times = times or {}
        self.unstable = unstable
        self.n = n
        self.asked = []

    def measure(self, models, protocol, feed=None):
        self.asked.append((dict(models), protocol, feed))
        rng = np.random.default_rng(0)
        names = [*models, AA]
        first = next(iter(models))
        rounds = {
            n: tuple(
                self.times.get(first if n == AA else n, 1.0) * float(f)
                for f in rng.uniform(0.99, 1.01, self.n)
            )
            for n in names
        }
        note = "busy" if self.unstable else ""
        return Timing("box", protocol, rounds, rounds, self.unstable, note, "d" * 64)


def context(folder: Path, timings=None) -> Context:
    workdir, resume = folder / "work", folder / "resume"
    for path in (workdir, resume):
        path.mkdir(parents=True, exist_ok=True)
    return Context(workdir, resume, 0, "cpu", 1, Silent(), timings or Stored())


def artifact(name, kind, path) -> Artifact:
    return Artifact(name, kind, path, digest_path(path))


def data(folder: Path, labeller: Path) -> Artifact:
    """200 random images per split, labelled by a model: that one is always right."""
    splits = {}
    for number, (name, n) in enumerate(
        {"train": 20, "val": 200, "test": 200, "calibration": 64}.items()
    ):
        x = np.random.default_rng(number).integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
        labels = predict.run(labeller, {"x": x}).argmax(1).astype(np.int64)
        ids = np.arange(n, dtype=np.uint64) + np.uint64(1000 * number)
        splits[name] = dataset.Split({"x": x}, labels, ids)
    dataset.save(
        folder, name="noise", task="classification", classes=CLASSES,
        inputs={"x": InputSpec((1, 8, 8), "uint8", (0.5,), (0.5,))}, splits=splits, duplicates={},
    )  # fmt: skip
    return artifact("data", "dataset", folder)


def props(precision):
    return {metadata.PRECISION: precision, metadata.SOURCE: "abc"}


def models(folder: Path) -> dict[str, Artifact]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "baseline": nets.convnet(folder / "base.onnx", width=32, seed=3, props=props("fp32")),
        "fp32": nets.convnet(folder / "fp32.onnx", width=8, props=props("fp32")),
        "int8": nets.qdq_convnet(folder / "int8.onnx", width=8, props=props("int8")),
    }
    return {name: artifact(name, "onnx", path) for name, path in made.items()}


def predictions(model: Artifact, source: Artifact, path: Path, wrong: int = 0) -> Artifact:
    """The model's own on val; ``wrong`` of them spoilt."""
    split = dataset.load(source.path).split("val")
    outputs = predict.run(model.path, dict(split.inputs))
    rows = np.arange(wrong)
    outputs[rows] = np.roll(outputs[rows], 1, axis=1)
    predict.save(path, predict.make(model.name, split.ids, split.labels, outputs, CLASSIFICATION))
    return artifact(f"{model.name}.val", "predictions", path)


def timings(folder: Path, found, times, unstable=False) -> Artifact:
    files = {n: a.path for n, a in found.items()}
    timing = Stored(times, unstable).measure(files, TimingProtocol())
    cell = record.cell(timing, "baseline", None, {n: a.digest for n, a in found.items()})
    made = record.Record(
        environment.machine(), "baseline", None, 0, (cell,), {}, bench.sizes(files)
    )
    record.save(folder / "timings.json", made)
    return artifact("bench", "timings", folder / "timings.json")


def inputs(folder: Path, times, *, unstable=False, wrong=0, teacher_wrong=0):
    """All inputs of the stage ``bundle``: the teacher is always right, int8 nearly."""
    found = models(folder / "models")
    source = data(folder / "data", found["fp32"].path)
    (folder / "teacher").mkdir()
    (folder / "teacher" / "checkpoint.json").write_text("{}")
    names = ("fp32", "int8")
    return {
        "data": source,
        "timings": timings(folder, found, times, unstable),
        "candidates": tuple(found[n] for n in names),
        "candidates.val": tuple(
            predictions(found[n], source, folder / f"{n}.npz", wrong) for n in names
        ),
        "teacher": artifact("teacher", "checkpoint", folder / "teacher"),
        "teacher.val": predictions(found["fp32"], source, folder / "t.npz", teacher_wrong),
    }
