"""A run and its verdicts as GitHub Markdown: safe in a table, small enough for a job summary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.core.results import GateRecord, RunResults
from compressor.report import quantized, rows, tables
from compressor.stats.bootstrap import Interval

# GitHub aborts the upload of a step summary above 1024 KiB.
_LIMIT = 900_000
_WORST = 5  # layers
_MARKS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "❔", "SKIPPED": "➖"}


def escape(text: str) -> str:
    """Text that stays text: no table cell ends, no HTML, no workflow command, no line break."""
    for raw, safe in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("::", ":\u200b:")):
        text = text.replace(raw, safe)
    return " ".join(text.split())


def _cell(value: object) -> str:
    return "–" if value is None else escape(str(value))


def _times(found: Interval | None) -> str | None:
    return None if found is None else f"{found.value:.2f}x [{found.low:.2f}, {found.high:.2f}]"


def summary(results: RunResults, folder: Path | None = None) -> str:
    """Models, notes, the most sensitive layers, and verdicts.

    Args:
        results: The run.
        folder: The run folder, for the tables of its stages; None leaves them out.
    """
    lines = [
        f"## {escape(results.name)}",
        "",
        f"{escape(rows.setting(results))}; compressor {escape(results.version)}, "
        f"{escape(results.created)}",
        "",
        "| model | stage | test | change | bytes | parameters | MACs | p50 ms | vs baseline "
        "| vs reference |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows.models(results):
        q = row.quality
        cells = [
            row.stage,
            row.uses,
            None if q is None else f"{q.value:.2f} {q.unit}",
            None if row.change is None else f"{row.change:+.2f}",
            None if row.bytes is None else f"{row.bytes:,}",
            rows.short(row.parameters),
            rows.short(row.macs),
            None if row.p50 is None else f"{row.p50:.3f}",
            _times(row.speedup),
            _times(row.speedup_reference),
        ]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    lines += ["", *(f"- {escape(stage)}: {escape(note)}" for stage, note in rows.notes(results))]
    for section in tables.sections(results, folder):
        if section.quantized is not None:
            lines += _sensitive(section.stage, section.quantized)
    return _cut("\n".join(lines) + "\n\n" + gates(results.gates))


def _sensitive(stage: str, table: quantized.Quantized) -> list[str]:
    """The worst layers of a quantize stage, if any was looked at, and what recovery gave."""
    lines = ["", *(f"- {escape(stage)}: {_rung(rung)}" for rung in table.recovery)]
    worst = table.worst[:_WORST]
    if not worst:
        return lines
    effect = "drop, points" if table.labelled else "agreement, %"
    lines += [
        "",
        f"{escape(stage)}: the {len(worst)} most sensitive of {len(table.looked)} layers",
        "",
        f"| layer | form | SQNR alone int8, dB | {effect} | int8 µs | float µs |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in worst:
        lost = quantized.effect(row.alone_int8, table.labelled)
        numbers = ((row.sqnr, ".1f"), (lost, ".2f"), (row.int8_us, ".1f"), (row.float_us, ".1f"))
        cells = [row.name, row.form, *(None if v is None else format(v, f) for v, f in numbers)]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return lines


def _rung(rung: quantized.Rung) -> str:
    before, after = ("–" if v is None else f"{v:.2f}" for v in (rung.before, rung.after))
    kept = "" if rung.kept is None else ", kept" if rung.kept else ", not kept"
    note = f", {escape(rung.note)}" if rung.note else ""
    return f"{escape(rung.name)} {before} to {after} {escape(rung.unit)}{kept}{note}"


def gates(found: Sequence[GateRecord]) -> str:
    """The verdicts as a table, empty without any."""
    if not found:
        return ""
    lines = ["| verdict | gate | numbers |", "|---|---|---|"]
    lines += [
        f"| {_MARKS.get(g.verdict, '')} {_cell(g.verdict)} | {_cell(g.gate)} "
        f"| {_cell(g.sentence)} |"
        for g in found
    ]
    return _cut("\n".join(lines) + "\n")


def _cut(text: str) -> str:
    if len(text.encode()) <= _LIMIT:
        return text
    return text.encode()[:_LIMIT].decode(errors="ignore") + "\n\n(cut)\n"
