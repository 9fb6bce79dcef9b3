"""From finished nodes to a run folder: results, models, predictions, bundle, the resolved file."""

from __future__ import annotations

import datetime
import errno
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.core import files, results, yaml
from compressor.core.environment import machine, version
from compressor.core.results import OutputRecord, RunResults, StageRecord
from compressor.core.tasks import TASKS
from compressor.core.types import BUNDLE, CHECKPOINT, ONNX, TABLE, TIMINGS, Metric
from compressor.pipeline import keys
from compressor.pipeline.execution import Done
from compressor.pipeline.graph import Pipeline
from compressor.pipeline.state import State

_QUALITY = {task.metric for task in TASKS.values()}

# Kind to folder of the run; what is not here stays in the store.
_FOLDERS = {
    ONNX: ("models", ".onnx"),
    CHECKPOINT: ("models", ""),
    TIMINGS: ("timings", ".json"),
    TABLE: ("tables", ".json"),
}


def summarize(pipeline: Pipeline, done: Sequence[Done], now: datetime.datetime) -> RunResults:
    """The record of a run, without gates."""
    stages = [d for d in done if not d.node.evaluates]
    evaluations = {(d.node.evaluates, d.node.split): d for d in done if d.node.evaluates}
    return RunResults(
        pipeline.name,
        now.isoformat(timespec="seconds"),
        version("compressor"),
        pipeline.seed,
        machine(),
        tuple(_stage(d, evaluations) for d in stages),
    )


def _stage(done: Done, evaluations: Mapping[tuple[str, str], Done]) -> StageRecord:
    node, entry = done.node, done.entry
    metrics: dict[str, Metric] = dict(entry.metrics)
    predictions = {}
    for split in ("val", "test"):
        judged = evaluations.get((node.name, split))
        if judged is None:
            continue
        predictions[split] = f"predictions/{node.name}.{split}.npz"
        for name, metric in judged.entry.metrics.items():
            if split == "test":
                metrics.setdefault(name, metric)
            elif name in _QUALITY:  # sizes do not depend on the split
                metrics.setdefault(f"val_{name}", metric)
    return StageRecord(
        name=node.name,
        uses=node.stage.name,
        key=entry.key,
        state="ran" if done.ran else "cached",
        seconds=round(entry.seconds, 3),
        config=keys.resolved(node.config) | {"seed": node.seed},
        inputs={n: tuple(r.node for r in refs) for n, refs in node.inputs.items()},
        outputs={
            name: OutputRecord(
                o.kind, o.digest, o.bytes, _file(node.name, name, o.kind, len(entry.outputs))
            )
            for name, o in entry.outputs.items()
        },
        metrics=metrics,
        predictions=predictions,
        note="; ".join(entry.notes),
    )


def _file(node: str, output: str, kind: str, count: int) -> str:
    """Where a stage's output goes below the run folder; empty if it does not."""
    if kind == BUNDLE:
        return "bundle" if "[" not in node else f"bundle-{node}"
    if kind not in _FOLDERS:
        return ""
    folder, suffix = _FOLDERS[kind]
    return f"{folder}/{node}{suffix}"


def write(
    root: Path,
    pipeline: Pipeline,
    state: State,
    record: RunResults,
    done: Sequence[Done],
    judge: Callable[[Path, RunResults], RunResults] = lambda folder, record: record,
) -> tuple[Path, RunResults]:
    """Build the run folder beside its place, rename it, and point ``latest`` to it.

    Args:
        root: Folder of all runs.
        pipeline: What ran.
        state: Where the artifacts are.
        record: The results without gates.
        done: The finished nodes.
        judge: Given the folder before it is published, returns the final record; it may add
            files (gates need predictions, reports need verdicts).

    Returns:
        ``root/NAME/STAMP`` and the final record.

    Raises:
        SystemFault: The disk refuses; nothing is left.
    """
    home = root / pipeline.name
    stamp = record.created.replace(":", "").replace("-", "").replace("+0000", "Z")
    with files.faults(home):
        home.mkdir(parents=True, exist_ok=True)
        _clean(home)
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=home))
        try:
            partial.chmod(0o755)
            _fill(partial, pipeline, state, record, done)
            record = judge(partial, record)
            results.save(record, partial / "results.json")
            files.sync_tree(partial)
            target = _rename(partial, home / stamp)
            _point(home / "latest", target.name)
        except BaseException:
            files.remove(partial)
            raise
    return target, record


_PARTIAL = ".partial-"


def _clean(home: Path, hours: float = 24.0) -> None:
    """Remove what killed runs left half-written."""
    for path in home.glob(f"{_PARTIAL}*"):
        if time.time() - path.stat().st_mtime > hours * 3600:
            files.remove(path)


def _rename(folder: Path, target: Path) -> Path:
    """Rename ``folder`` to ``target``, ``target-2`` ...: two runs may end in one second."""
    number, candidate = 1, target
    while True:
        try:
            os.rename(folder, candidate)  # refuses a folder that is not empty
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            number += 1
            candidate = target.with_name(f"{target.name}-{number}")
        else:
            files.sync_folder(target.parent)
            return candidate


def _fill(
    folder: Path, pipeline: Pipeline, state: State, record: RunResults, done: Sequence[Done]
) -> None:
    for stage in record.stages:
        for output in stage.outputs.values():
            if output.file:
                files.copy(state.store.object(output.digest), folder / output.file)
    for one in done:
        if one.node.evaluates:
            source = next(iter(state.artifacts[one.node.name].values())).path
            name = f"{one.node.evaluates}.{one.node.split}.npz"
            files.copy(source, folder / "predictions" / name)
    files.write_text(folder / "resolved.yaml", yaml.dump(resolved(pipeline)))


def resolved(pipeline: Pipeline) -> dict[str, Any]:
    """The pipeline file with overrides and every default spelled out; it runs again as it is."""
    stages: dict[str, Any] = {}
    raw = pipeline.document.value["stages"]
    stems = {node.name: node.stem for node in pipeline.nodes}
    for node in pipeline.nodes:
        if node.evaluates or node.stem in stages:
            continue
        written = raw[node.stem]
        guessed = {
            name: f"{stems[refs[0].node]}.{refs[0].output}"
            for name, refs in node.inputs.items()
            if not name.endswith(".val")
        }
        entry = {"uses": written["uses"], "in": {**guessed, **(written.get("in") or {})}}
        if "matrix" in written:  # a member's config is not the stage's
            entry |= {k: written[k] for k in ("with", "seed", "matrix") if k in written}
        else:
            entry |= {"with": keys.resolved(node.config), "seed": node.seed}
        stages[node.stem] = entry
    whole = {"name": pipeline.name, "seed": pipeline.seed, "stages": stages}
    return whole | {"gates": list(pipeline.gates)} if pipeline.gates else whole


def _point(link: Path, target: str) -> None:
    """Replace the link ``latest`` in one step."""
    beside = link.with_name(f".latest.{os.getpid()}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    os.replace(beside, link)
