"""What a terminal shows after a command, at most 80 columns wide."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from compressor.core.results import GateRecord, RunResults
from compressor.core.types import Timing
from compressor.report import rows
from compressor.stats.bootstrap import Interval
from compressor.stats.ratios import ratio

WIDTH = 80


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _times(found: Interval | None) -> str:
    if found is None:
        return "-"
    if found.low == found.high:
        return f"{found.value:.2f}x"
    return f"{found.value:.2f}x [{found.low:.2f}, {found.high:.2f}]"


def text(results: RunResults) -> str:
    """Models with cost and gain, what stages said, and the verdicts."""
    found = rows.models(results)
    metric = next((r.quality for r in found if r.quality is not None), None)
    unit = metric.unit if metric is not None else ""
    wide = max([8, *(len(r.stage) for r in found)])
    lines = [
        "",
        f"{results.name}, {rows.setting(results)}",
        f"{'model':<{wide}} {'test ' + unit:>8} {'change':>7} {'bytes':>11} {'MACs':>6} "
        f"{'p50 ms':>7}  speed-up [95 %]",
    ]
    for row in found:
        value = row.quality.value if row.quality is not None else None
        lines.append(
            f"{row.stage:<{wide}} {_number(value, '.2f'):>8} {_number(row.change, '+.2f'):>7} "
            f"{_number(row.bytes, ',d'):>11} {rows.short(row.macs):>6} "
            f"{_number(row.p50, '.3f'):>7}  {_times(row.speedup)}"
        )
    lines += _reference(found)
    lines += [_wrap(f"{stage}: {note}") for stage, note in rows.notes(results)]
    return "\n".join([*lines, gates_text(results.gates)] if results.gates else lines)


def _reference(found: Sequence[rows.ModelRow]) -> list[str]:
    """The same ratio against the unpruned student, so that a fat teacher flatters nobody."""
    against = [r for r in found if r.speedup_reference is not None]
    if not against:
        return []
    words = ", ".join(f"{r.stage} {_times(r.speedup_reference)}" for r in against)
    return [_wrap(f"against the reference: {words}")]


def gates_text(gates: Sequence[GateRecord]) -> str:
    """One wrapped line per verdict."""
    return "\n".join(
        textwrap.fill(
            f"{g.verdict:<5} {g.gate}: {g.sentence}",
            WIDTH,
            subsequent_indent="      ",
            break_on_hyphens=False,
        )
        for g in gates
    )


def _wrap(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def timing_rows(timing: Timing) -> list[dict[str, Any]]:
    """``compressor bench`` as plain values; the first model is the baseline."""
    from compressor.runtime.timing import table

    base = next(iter(timing.rounds))
    found = []
    for name, row in table(timing, base).items():
        speedup = {"value": row.baseline.value, "low": row.baseline.low, "high": row.baseline.high}
        found.append(
            {
                "model": name,
                "p50_ms": row.p50,
                "p90_ms": row.p90,
                "p99_ms": row.p99,
                "calls": row.n,
                "throughput": row.throughput,
                "speedup": speedup,
                "unstable": timing.unstable,
                "note": timing.note,
            }
        )
    return found


def timing_text(timing: Timing) -> str:
    """``compressor bench`` as a table with the A/A control below."""
    found = timing_rows(timing)
    wide = max(len(r["model"]) for r in found)
    p = timing.protocol
    lines = [
        f"{p.provider}, {p.threads} thread{'s' * (p.threads != 1)}, batch {p.batch}, "
        f"{p.rounds} interleaved rounds",
        f"{'model':<{wide}} {'p50 ms':>9} {'p90 ms':>9} {'samples/s':>10}  speed-up [95 %]",
    ]
    for row in found:
        s = row["speedup"]
        lines.append(
            f"{row['model']:<{wide}} {row['p50_ms']:>9.4f} {_number(row['p90_ms'], '.4f'):>9} "
            f"{row['throughput']:>10,.0f}  {s['value']:.2f}x [{s['low']:.2f}, {s['high']:.2f}]"
        )
    control = ratio(timing.rounds[next(iter(timing.rounds))], timing.rounds["A/A"])
    lines.append(
        f"A/A control: {control.value:.3f} [{control.low:.3f}, {control.high:.3f}]"
        + (f"; UNSTABLE: {timing.note}" if timing.unstable else "")
    )
    return "\n".join(lines)


_FORMS = {"int4": "4 bits", "dynamic": "dynamic int8"}


def quantize_text(report: Any, out: object) -> str:
    """``compressor quantize``: where it went, how many layers, how close to float."""
    scheme = getattr(report, "scheme", "int8")
    part = f"{report.quantized} of {len(report.layers)} layers" if report.layers else "all of it"
    held = "held-out samples" if scheme == "int8" else "samples"
    close = ", ".join(f"{name} {db:.1f} dB" for name, db in report.sqnr.items())
    agreement = "" if report.agreement is None else f", top-1 agreement {report.agreement:.2f} %"
    lines = [
        *([report.verdict] if report.verdict else []),
        f"wrote {out}: {part} in {_FORMS.get(scheme, scheme)}",
        f"against fp32 on {report.held_out} {held}: SQNR {close}{agreement}",
        f"target {report.target.name}: {report.target.reason}",
        *(rung.line() for rung in getattr(report, "recovery", ())),
        *(f"warning: {line}" for line in report.warnings),
    ]
    return "\n".join(map(_wrap, lines))
