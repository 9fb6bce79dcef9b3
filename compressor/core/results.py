"""The record of a run: what ``results.json`` holds, read by gates and report.

The schema is versioned; a reader refuses a version it does not know instead of guessing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from compressor.core import records
from compressor.core.files import write_bytes
from compressor.core.types import Metric

SCHEMA = 1
_HINT = "give a run folder, e.g. runs/NAME/latest"


@dataclass(frozen=True, slots=True)
class OutputRecord:
    """One output of a stage.

    Attributes:
        kind: Artifact kind.
        digest: Content digest.
        bytes: Size of the file, or of all files of the folder.
        file: Path relative to the run folder, or empty if it was not copied there.
    """

    kind: str
    digest: str
    bytes: int
    file: str = ""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of a run.

    Attributes:
        name: As in the pipeline file (matrix members: ``student[seed=0]``).
        uses: The stage's implementation.
        key: Store key.
        state: ``cached``, ``ran`` or ``failed``.
        seconds: Wall time of the computation (of the original one, when cached).
        config: Resolved options.
        inputs: Input name to the stages wired to it.
        outputs: Output name to record.
        metrics: Metric name to value; for models also the engine's evaluation on test, and
            ``val_accuracy``.
        predictions: ``val`` and ``test`` to a file in the run folder; empty for non-models.
        note: What the stage said (a verdict, a reason), joined to one line, or empty.
    """

    name: str
    uses: str
    key: str
    state: str
    seconds: float
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: Mapping[str, OutputRecord] = field(default_factory=dict)
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    predictions: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True)
class GateRecord:
    """One verdict.

    Attributes:
        gate: The gate as text, e.g. ``int8.accuracy versus teacher.accuracy max_drop 1.0``.
        verdict: ``PASS``, ``FAIL``, ``INCONCLUSIVE`` or ``SKIPPED``.
        sentence: The numbers behind it, one line.
    """

    gate: str
    verdict: str
    sentence: str


@dataclass(frozen=True, slots=True)
class RunResults:
    """One run of a pipeline.

    Attributes:
        name: The pipeline's name.
        created: UTC, ISO 8601.
        version: Of compressor.
        seed: The pipeline's seed.
        machine: ``core.environment.machine()`` of the computing machine.
        stages: In order of execution.
        gates: Verdicts, empty until gates ran.
        schema: Version of this record.
    """

    name: str
    created: str
    version: str
    seed: int
    machine: Mapping[str, Any]
    stages: tuple[StageRecord, ...]
    gates: tuple[GateRecord, ...] = ()
    schema: int = SCHEMA

    def stage(self, name: str) -> StageRecord | None:
        """The record of that name, if there is one."""
        return next((s for s in self.stages if s.name == name), None)

    def members(self, name: str) -> tuple[StageRecord, ...]:
        """The stage of that name, or all members of the matrix stage of that name."""
        return tuple(s for s in self.stages if s.name == name or s.name.startswith(name + "["))

    def find(self, dotted: str) -> tuple[tuple[StageRecord, Metric], ...]:
        """Stages and metrics behind ``NAME.METRIC`` (metrics may hold dots), empty if none."""
        bracket = dotted.find("]")
        cut = dotted.find(".", bracket + 1)
        if cut < 0:
            return ()
        name, metric = dotted[:cut], dotted[cut + 1 :]
        return tuple((s, s.metrics[metric]) for s in self.members(name) if metric in s.metrics)


@cache
def _adapter() -> TypeAdapter[RunResults]:
    """Made on first use: it takes as long as the rest of a plan's imports."""
    return TypeAdapter(RunResults)


def save(results: RunResults, path: Path) -> None:
    """Write atomically as indented JSON."""
    write_bytes(path, _adapter().dump_json(results, indent=1) + b"\n")


def load(path: Path) -> RunResults:
    """Read a record.

    Args:
        path: ``results.json`` or the run folder that holds it.

    Raises:
        IntegrityError: Missing, malformed, or of another schema version.
    """
    file = path / "results.json" if path.is_dir() else path
    return records.read(_adapter(), file, "results", SCHEMA, _HINT)
