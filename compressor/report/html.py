"""One self-contained page: no script, no network, a policy that would refuse both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jinja2
from markupsafe import Markup

from compressor.core.results import RunResults, StageRecord
from compressor.core.types import Metric
from compressor.report import plots, quantized, rows, tables

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_MOST_LINES = 1000
_OPEN = 16  # lines: a longer table is folded away

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ r.name }}: compressor report</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 74rem; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2.2rem; }
.dim { color: #595959; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
th { border-bottom: 2px solid #999; font-weight: 600; }
.text { text-align: left; } .wrap { white-space: normal; }
.best { background: #eef6fb; font-weight: 600; }
.PASS { color: #1a6b2d; } .FAIL { color: #b00020; } .INCONCLUSIVE { color: #8a5a00; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin: .8rem 0;
           align-items: flex-start; }
.figures svg { max-width: 100%; height: auto; }
code { background: #f3f3f3; padding: .05rem .3rem; }
h1, h2, h3, p, li, summary { overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; } summary { cursor: pointer; margin: .6rem 0; }
.name { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
caption { text-align: left; color: #595959; } .group { text-align: center; }
.inside { padding-left: 1.6rem; } .whole { color: #595959; }
.float { color: #0072b2; } .int8 { color: #b34700; }
</style>
</head>
<body>
<h1>{{ r.name }}</h1>
<p class="dim">{{ setting }}<br>compressor {{ r.version }}, {{ r.created }}, seed {{ r.seed }}</p>
{% if r.gates %}
<h2>Verdicts</h2>
<div class="scroll"><table><tr><th class="text">verdict</th><th class="text">gate</th>
<th class="text">numbers</th></tr>
{% for g in r.gates %}<tr><td class="text {{ g.verdict }}"><b>{{ g.verdict }}</b></td>
<td class="text wrap">{{ g.gate }}</td><td class="text wrap">{{ g.sentence }}</td></tr>
{% endfor %}</table></div>
{% endif %}
<h2>Models</h2>
<div class="scroll"><table>
<tr><th class="text">model</th><th class="text">made by</th><th>test{{ unit }}</th><th>change</th>
<th>bytes</th><th>zstd</th><th>parameters</th><th>MACs</th><th>p50 ms</th>
<th>against baseline</th><th>against reference</th></tr>
{% for m in models %}<tr{% if m.uses == "bundle" %} class="best"{% endif %}>
<td class="text">{{ m.stage }}</td><td class="text">{{ m.uses }}</td>
<td>{{ "%.2f"|format(m.quality.value) if m.quality else "–" }}</td>
<td>{{ "%+.2f"|format(m.change) if m.change is not none else "–" }}</td>
<td>{{ "{:,}".format(m.bytes) if m.bytes is not none else "–" }}</td>
<td>{{ "{:,}".format(m.zstd_bytes) if m.zstd_bytes is not none else "–" }}</td>
<td>{{ short(m.parameters) }}</td><td>{{ short(m.macs) }}</td>
<td>{{ "%.3f"|format(m.p50) if m.p50 is not none else "–" }}</td>
{% for s in (m.speedup, m.speedup_reference) %}<td>{% if s %}{{ "%.2f"|format(s.value) }}×
<span class="dim">{{ "%.2f"|format(s.low) }}–{{ "%.2f"|format(s.high) }}</span>{% else %}–\
{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="dim">Change: to the first model. Ratios: medians of interleaved rounds in one process with
95 % intervals; baseline is the teacher's file, reference the unpruned student's.</p>
<div class="figures">{% for figure in figures %}{{ figure }}{% endfor %}</div>
{{ sections }}
{% if notes %}<h2>What the stages said</h2>
<ul>{% for stage, note in notes %}<li><code>{{ stage }}</code> {{ note }}</li>{% endfor %}</ul>
{% endif %}
<h2>Stages</h2>
<div class="scroll"><table><tr><th class="text">stage</th><th class="text">uses</th>
<th class="text">from</th><th>state</th><th>seconds</th><th class="text">metrics</th></tr>
{% for s in r.stages %}<tr><td class="text">{{ s.name }}</td><td class="text">{{ s.uses }}</td>
<td class="text wrap">{{ sources(s) }}</td><td>{{ s.state }}</td><td>{{ "%.1f"|format(s.seconds) }}
</td><td class="text wrap">{{ metrics(s) }}</td></tr>
{% endfor %}</table></div>
<h2>Machine</h2>
<div class="scroll"><table>{% for key, value in r.machine.items() %}<tr><td class="text">{{ key }}
</td><td class="text wrap">{{ value|join(", ") if value is sequence and value is not string
else value }}</td></tr>{% endfor %}</table></div>
</body>
</html>
"""

_QUANTIZED = """\
{% macro number(value, form) %}{{ form|format(value) if value is not none else "–" }}{% endmacro %}
{% macro quality(row, labelled) %}{% for q in (row.alone_int8, row.alone_float) %}
<td>{{ number(q.worst if q else none, "%.1f") }}</td>{% endfor %}
{% for q in (row.alone_int8, row.alone_float) %}
<td>{{ number(effect(q, labelled), "%+.2f" if labelled else "%.2f") }}</td>{% endfor %}
{% endmacro %}
<h3>{{ s.stage }}</h3>
{% if t.verdict %}<p><b>{{ t.verdict }}</b></p>{% endif %}
<p class="dim">{% for fact in facts %}{{ fact }}{{ "" if loop.last else "; " }}{% endfor %}.</p>
{% if t.recovery %}<div class="scroll"><table><caption>Accuracy recovery</caption>
<tr><th class="text">step</th><th>before</th><th>after</th><th class="text">unit</th>
<th class="text">kept</th><th>seconds</th><th class="text">note</th></tr>
{% for one in t.recovery %}<tr{% if one.kept %} class="best"{% endif %}>
<td class="name">{{ one.name }}</td>
<td>{{ number(one.before, "%.2f") }}</td><td>{{ number(one.after, "%.2f") }}</td>
<td class="text">{{ one.unit }}</td>
<td class="text">{{ "–" if one.kept is none else "yes" if one.kept else "no" }}</td>
<td>{{ number(one.seconds, "%.1f") }}</td><td class="name">{{ one.note }}</td></tr>
{% endfor %}</table></div>{% endif %}
<div class="figures">{% for figure in figures %}{{ figure }}{% endfor %}</div>
{% if lines %}<details{% if lines|length <= open %} open{% endif %}>
<summary>{{ t.looked|length }} layers</summary>
<div class="scroll"><table><tr><th class="text" rowspan="2">layer</th>
<th class="text" rowspan="2">form</th>
<th class="group" colspan="2">SQNR, dB, alone</th>
<th class="group" colspan="2">
{{ "drop, points, alone" if t.labelled else "agreement, %, alone" }}</th>
<th class="group" colspan="2">time, µs</th><th class="text" rowspan="2">why float</th></tr>
<tr>{% for _ in range(3) %}<th>int8</th><th>float</th>{% endfor %}</tr>
{% for line in lines[:most] %}{% set row = line.row %}
<tr{% if line.whole %} class="whole"{% endif %}>
<td class="name{% if line.inside %} inside{% endif %}">{{ line.title }}
{% if row.op %}<span class="dim">{{ row.op }}</span>{% endif %}</td>
<td class="text {{ "float" if row.form == "float" else "int8" }}">{{ row.form }}</td>
{{ quality(row, t.labelled) }}
<td>{{ number(row.int8_us, "%.1f") }}</td><td>{{ number(row.float_us, "%.1f") }}</td>
<td class="name">{{ row.reason }}</td></tr>
{% endfor %}</table></div>
{% if lines|length > most %}<p class="dim">{{ lines|length - most }} more in {{ s.file }}.</p>
{% endif %}
<p class="dim">Alone int8: the layer in an otherwise float network; alone float: the other way
round. A layer takes its activation along; – was not looked at.</p></details>
{% elif t.layers %}<details{% if t.layers|length <= open %} open{% endif %}>
<summary>{{ t.layers|length }} operators</summary>
<div class="scroll"><table><tr><th class="text">operator</th><th class="text">form</th>
<th>weight bits</th><th>least</th><th>greatest</th><th class="text">why float</th></tr>
{% for row in t.layers[:most] %}<tr><td class="name">{{ row.name }}
{% if row.op %}<span class="dim">{{ row.op }}</span>{% endif %}</td>
<td class="text {{ "float" if row.form == "float" else "int8" }}">{{ row.form }}</td>
<td>{{ number(row.weight_bits, "%d") }}</td><td>{{ number(row.low, "%.4g") }}</td>
<td>{{ number(row.high, "%.4g") }}</td><td class="name">{{ row.reason }}</td></tr>
{% endfor %}</table></div>
{% if t.layers|length > most %}<p class="dim">{{ t.layers|length - most }} more in {{ s.file }}.</p>
{% endif %}</details>{% endif %}
{% if tried %}<details{% if tried|length <= open %} open{% endif %}>
<summary>{{ tried|length }} placements tried</summary>
<div class="scroll"><table><tr><th>against fp32</th><th>95 % interval</th><th>regions in int8</th>
<th class="text">left float</th></tr>
{% for one, ships in tried %}<tr{% if ships %} class="best"{% endif %}>
<td>{{ "%.2f"|format(one.value) }}×</td>
<td>{{ "%.2f"|format(one.low) }}–{{ "%.2f"|format(one.high) }}</td>
<td>{{ t.regions|length - one.floats|length }} of {{ t.regions|length }}</td>
<td class="name">{{ shortened(one.floats) or "nothing" }}{{ " (ships)" if ships }}</td></tr>
{% endfor %}</table></div></details>{% endif %}
"""

_PLAIN = """\
<h3>{{ s.stage }}</h3>
{% if s.problem %}<p class="dim">{{ s.file }} {{ s.problem }}.</p>{% endif %}
{% for t in s.plain %}<details{% if t.rows|length <= open %} open{% endif %}>
<summary>{{ t.title or s.file }}</summary>
<div class="scroll"><table>{% if t.columns %}<tr>{% for column in t.columns %}<th class="text">
{{ column }}</th>{% endfor %}</tr>{% endif %}
{% for row in t.rows %}<tr>{% for word in row %}<td class="name">{{ word }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if t.left_out %}<p class="dim">{{ t.left_out }} more in {{ s.file }}.</p>{% endif %}</details>
{% endfor %}
"""


def page(results: RunResults, folder: Path) -> str:
    """The report as HTML.

    Args:
        results: The run.
        folder: The run folder, for what is not in the record: the tables of stages.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    models = rows.models(results)
    metric = next((m.quality for m in models if m.quality is not None), None)
    return environment.from_string(_TEMPLATE).render(
        r=results,
        policy=_POLICY,
        setting=rows.setting(results),
        unit="" if metric is None else f" {metric.unit}",
        models=models,
        figures=[Markup(f) for f in _figures(models)],
        sections=Markup("\n".join(_sections(environment, tables.sections(results, folder)))),
        notes=rows.notes(results),
        short=rows.short,
        sources=_sources,
        metrics=_metrics,
    )


def _sections(environment: jinja2.Environment, found: list[tables.Section]) -> Iterator[str]:
    """The tables of the run: quantization first, then those of other stages."""
    for title, kind, draw in (
        ("Quantization", True, _quantized),
        ("Tables", False, _plain),
    ):
        chosen = [s for s in found if (s.quantized is not None) == kind]
        if chosen:
            yield f"<h2>{title}</h2>"
            yield from (draw(environment, section) for section in chosen)


def _quantized(environment: jinja2.Environment, section: tables.Section) -> str:
    table = section.quantized
    assert table is not None
    worst, slowest = table.worst, table.slowest
    figures = [
        *([plots.noise(worst)] if worst else []),
        *([plots.times(slowest)] if slowest else []),
    ]
    return environment.from_string(_QUANTIZED).render(
        s=section,
        t=table,
        facts=quantized.facts(table),
        figures=[Markup(f) for f in figures],
        lines=quantized.lines(table),
        tried=table.tried(),
        effect=quantized.effect,
        shortened=quantized.shortened,
        most=_MOST_LINES,
        open=_OPEN,
    )


def _plain(environment: jinja2.Environment, section: tables.Section) -> str:
    return environment.from_string(_PLAIN).render(s=section, open=_OPEN)


def _sources(stage: StageRecord) -> str:
    names = (n for need, ns in stage.inputs.items() if not need.endswith(".val") for n in ns)
    return ", ".join(dict.fromkeys(names))


def _metrics(stage: StageRecord) -> str:
    return ", ".join(_metric(name, m) for name, m in stage.metrics.items())


def _metric(name: str, metric: Metric) -> str:
    """``bytes 1,372,785``, ``accuracy 99.44 %``; a count says what it counts by its name."""
    words = name.replace("_", " ")
    if metric.unit in {"count", "bytes", "flag"}:
        return f"{words} {metric.value:,.0f}"
    return f"{words} {metric.value:.4g} {metric.unit}"


def _figures(models: list[rows.ModelRow]) -> list[str]:
    """Accuracy against size, and latency, as inline SVG with text as text."""
    # a checkpoint lies beside its exported file, so files alone are drawn
    files = [m for m in models if m.uses in {"export", "quantize"}]
    sized = [m for m in files if m.quality is not None and m.bytes]
    timed = [m for m in models if m.p50 is not None and m.uses != "bundle"]
    figures = []
    if len(sized) >= 2:
        figures.append(plots.scatter(sized))
    if timed:
        figures.append(plots.bars(timed))
    return figures
