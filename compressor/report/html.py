"""One self-contained page: no script, no network, a policy that would refuse both."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from compressor.core.results import RunResults, StageRecord
from compressor.core.types import Metric
from compressor.report import rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# dark blue and orange: apart for every common colour blindness (Okabe and Ito 2008)
_BLUE, _ORANGE = "#0072b2", "#d55e00"
_ROOM_FOR_LABELS = 1.35

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
.figures { display: flex; flex-wrap: wrap; gap: 1rem; } .figures svg { max-width: 100%;
           height: auto; }
code { background: #f3f3f3; padding: .05rem .3rem; }
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


def page(results: RunResults, folder: Path) -> str:
    """The report as HTML.

    Args:
        results: The run.
        folder: The run folder, for what is not in the record (sensitivity tables).
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
        notes=rows.notes(results),
        short=rows.short,
        sources=_sources,
        metrics=_metrics,
    )


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
        figures.append(_scatter(sized))
    if timed:
        figures.append(_bars(timed))
    return figures


def _svg(draw: Callable[[Axes], None], width: float = 5.4, height: float = 3.4) -> str:
    """Run ``draw(axes)`` on a fresh figure; the same data gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "compressor", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _label(name: str) -> str:
    """A name as matplotlib takes it: no mathematics, no control characters."""
    return "".join(c for c in name if c.isprintable()).replace("$", r"\$")


def _scatter(models: list[rows.ModelRow]) -> str:
    points = [(m, m.bytes / 1000, m.quality) for m in models if m.quality and m.bytes]

    def draw(axes: Axes) -> None:
        for model, kilobytes, metric in points:
            color = _ORANGE if model.uses == "quantize" else _BLUE
            axes.plot(kilobytes, metric.value, "o", color=color)
            place = (kilobytes, metric.value)
            axes.annotate(_label(model.stage), place, textcoords="offset points", xytext=(6, 4))
        axes.set_xscale("log")
        axes.set_xlabel("file size, kB (log)")
        axes.set_ylabel(f"test, {points[0][2].unit}")
        axes.margins(0.18)
        axes.set_title("Accuracy against size", loc="left")

    return _svg(draw)


def _bars(models: list[rows.ModelRow]) -> str:
    def draw(axes: Axes) -> None:
        names = [_label(m.stage) for m in reversed(models)]
        values = [m.p50 or 0.0 for m in reversed(models)]
        axes.barh(names, values, color=_BLUE, height=0.6)
        for index, m in enumerate(reversed(models)):
            label = f" {m.p50:.3f} ms" if m.p50 is not None else ""
            if m.speedup is not None:
                label += f", {m.speedup.value:.2f}x"
            axes.annotate(label, (m.p50 or 0.0, index), va="center")
        axes.set_xlim(0, max(values) * _ROOM_FOR_LABELS)
        axes.set_xlabel("p50 latency, ms")
        axes.set_title("Latency in the primary cell", loc="left")

    return _svg(draw)
