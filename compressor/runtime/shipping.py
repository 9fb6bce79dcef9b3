"""From a bundle's inputs to candidates, and from its choice to metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.tasks import Task
from compressor.core.types import Artifact, Metric
from compressor.runtime import metadata, predict
from compressor.runtime.choose import Candidate, Choice, drop
from compressor.runtime.record import Record


def check(record: Record, artifacts: Sequence[Artifact]) -> None:
    """The timings must be of these very files.

    Raises:
        ConfigError: No candidates, or one that was not measured.
        IntegrityError: Another file of that name was measured.
    """
    if not artifacts:
        raise ConfigError("candidates: none; give the ONNX files that may ship")
    for artifact in artifacts:
        row = record.main.models.get(artifact.name)
        if row is None:
            raise ConfigError(f"candidates: {artifact.name} is not in the timings "
                              f"({', '.join(record.main.models)}); bench it too")  # fmt: skip
        if row.digest != artifact.digest:
            raise IntegrityError(f"candidates: the timings are of another {artifact.name}")


def candidates(
    teacher: Artifact,
    teacher_val: Path,
    artifacts: Sequence[Artifact],
    vals: Sequence[Path],
    task: Task,
) -> tuple[list[Candidate], dict[str, float]]:
    """Candidates with their drops on val, and every score by name, the teacher's included.

    Raises:
        ConfigError: A file without a precision in its metadata.
        IntegrityError: Predictions of other samples.
    """
    best = predict.load(teacher_val)
    scores = {teacher.name: predict.score(best, task)}
    found = []
    for artifact, val in zip(artifacts, vals, strict=True):
        rows = predict.load(val)
        props = metadata.read(artifact.path)
        if metadata.PRECISION not in props:
            raise ConfigError(f"candidates: {artifact.name} has no {metadata.PRECISION} in its "
                              "metadata; give files of the stages export and quantize")  # fmt: skip
        value, bound = drop(best, rows, task)
        size = artifact.path.stat().st_size
        found.append(Candidate(artifact.name, props[metadata.PRECISION], value, size, bound))
        scores[artifact.name] = predict.score(rows, task)
    return found, scores


def original(
    chosen: str, candidates: Mapping[str, Candidate], files: Mapping[str, Path]
) -> Path | None:
    """The fp32 candidate that comes from the same checkpoint as the chosen file, if any."""
    source = metadata.read(files[chosen]).get(metadata.SOURCE)
    if source is None:
        return None
    floats = [n for n, c in candidates.items() if c.precision == "fp32" and n != chosen]
    same = (files[n] for n in floats if metadata.read(files[n]).get(metadata.SOURCE) == source)
    return next(same, None)


def verdict(choice: Choice, record: Record) -> str:
    """One line: what ships, and how much faster and smaller it is."""
    gain = record.main.speedup[choice.name].baseline
    line = (
        f"ships {choice.name}: {gain.value:.2f}x [{gain.low:.2f}, {gain.high:.2f}] "
        f"of {record.baseline}"
    )
    if record.main.unstable:
        line += f" (unstable: {record.main.note})"
    return line if choice.within else f"nothing is within max_drop; {line}"


def metrics(choice: Choice, chosen: Candidate, record: Record, task: Task) -> dict[str, Metric]:
    """The stage's metrics; ratios against the baseline and, if there is one, the reference."""
    main = record.main
    found = {
        "bytes": Metric(float(chosen.bytes), "bytes", "lower"),
        "drop_val": Metric(chosen.drop, "pp" if task.unit == "%" else task.unit, "lower"),
        "unstable": Metric(float(main.unstable), "flag", "lower"),
        "within": Metric(float(choice.within), "flag", "higher"),
    }
    mine = main.models[chosen.name].rounds
    for suffix, name in (("", record.baseline), ("_reference", record.reference)):
        if name is None:
            continue
        samples = tuple(b / m for b, m in zip(main.models[name].rounds, mine, strict=True))
        value = record.speedup(name, chosen.name).value
        found[f"speedup{suffix}"] = Metric(value, "x", "higher", samples)
        if name in record.size:
            ratio = record.size[name].bytes / chosen.bytes
            found[f"bytes_ratio{suffix}"] = Metric(ratio, "x", "higher")
    return found
