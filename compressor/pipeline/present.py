"""What plan, cache and doctor show, as rows for --json and as text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.core import environment
from compressor.core.errors import CompressorError
from compressor.core.store import Store
from compressor.pipeline.planning import CACHED, Step, problems

Rows = list[dict[str, Any]]


def plan_rows(steps: Sequence[Step]) -> Rows:
    """One mapping per node."""
    return [
        {
            "stage": s.node.name,
            "uses": s.node.stage.name,
            "state": s.state,
            "reason": s.reason,
            "seconds": s.seconds,
            "inputs": {n: [r.node for r in refs] for n, refs in s.node.inputs.items()},
            "code": list(s.code),
            "problem": s.problem,
        }
        for s in steps
    ]


def plan_text(steps: Sequence[Step], file: str) -> str:
    """Stages with state, last duration, inputs and reason; evaluations folded into one line."""
    lines = [f"{'stage':<22} {'uses':<9} {'state':<7} {'last':>8}  from"]
    for step in (s for s in steps if not s.node.evaluates):
        refs = (r.node for name, rs in step.node.inputs.items() if ".val" not in name for r in rs)
        sources = ", ".join(dict.fromkeys(refs))
        last = f"{step.seconds:.1f} s" if step.seconds is not None else "-"
        head = f"{step.node.name:<22} {step.node.stage.name:<9} {step.state:<7} {last:>8}  "
        lines.append((head + sources).rstrip())
        if step.reason and step.state != "waits":
            lines += textwrap.wrap(step.reason, 76, initial_indent="  ", subsequent_indent="  ")
        foreign = [c for c in step.code if not c.startswith("compressor.")]
        if foreign:
            lines.append(f"  imports {', '.join(foreign)}")
    judged = [s for s in steps if s.node.evaluates]
    ready = sum(s.state == CACHED for s in judged)
    if judged:
        lines.append(f"and {len(judged)} evaluations on val and test, {ready} cached")
    lacking = problems(steps)
    todo = [s for s in steps if s.state != CACHED]
    known = [s.seconds for s in todo if s.seconds is not None]
    if not todo:
        lines.append("everything is cached")
    elif len(known) == len(todo):
        lines.append(f"{len(todo)} to run, about {sum(known):.0f} s by their last times")
    else:
        lines.append(f"{len(todo)} to run" + ("" if lacking else f"; next: compressor run {file}"))
    for problem in lacking:
        lines += textwrap.wrap(f"cannot run here: {problem}", 80, subsequent_indent="  ",
                               break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def _store(path: Path | None) -> Store:
    from os import environ

    return Store(Path(path or environ.get("COMPRESSOR_STORE") or ".compressor"))


def store_listing(path: Path | None) -> tuple[Rows, str]:
    """Stored results: stage, size, seconds, key."""
    store = _store(path)
    rows = [
        {
            "key": e.key,
            "uses": e.uses,
            "bytes": sum(o.bytes for o in e.outputs.values()),
            "seconds": e.seconds,
            "outputs": {n: o.digest for n, o in e.outputs.items()},
        }
        for e in store.entries()
    ]
    lines = [f"{'uses':<10} {'bytes':>14} {'took':>9}  key"]
    lines += [
        f"{r['uses']:<10} {r['bytes']:>14,} {r['seconds']:>7.1f} s  {str(r['key'])[:16]}"
        for r in rows
    ]
    return rows, "\n".join([*lines, f"{len(rows)} results in {store.root}"])


def collect(path: Path | None, everything: bool) -> tuple[int, int]:
    """Remove results that are nobody's last; returns objects removed and bytes freed."""
    store = _store(path)
    keep = set() if everything else store.recent_keys()
    return store.collect(lambda entry: entry.key in keep)


def doctor() -> tuple[dict[str, Any], str, int]:
    """Facts, their text, and exit code 6 if something needed is missing or in conflict."""
    facts: dict[str, Any] = dict(environment.machine())
    packages = environment.onnxruntime_packages()
    facts["versions"] = {
        name: environment.version(name)
        for name in ("compressor", "numpy", "onnx", *packages, "torch", "torchvision",
                     "onnxscript", "torch-pruning", "scikit-learn")
    }  # fmt: skip
    problem = ""
    try:
        environment.check_onnxruntime()
        import onnxruntime

        facts["providers"] = onnxruntime.get_available_providers()
    except (CompressorError, ImportError, OSError) as error:  # OSError: a library it cannot load
        problem = str(error)
        facts["providers"] = []
    lines = [
        f"{key:<16} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in facts.items()
        if key != "versions"
    ]
    lines += [f"  {name:<14} {version}" for name, version in facts["versions"].items()]
    lines.append(f"problem: {problem}" if problem else "no problems found")
    return facts | {"problem": problem}, "\n".join(lines), 6 if problem else 0
