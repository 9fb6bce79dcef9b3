"""Figures as inline SVG with text as text; the same data gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from compressor.report import rows
from compressor.report.quantized import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# dark blue and orange: apart for every common colour blindness (Okabe and Ito 2008)
_BLUE, _ORANGE = "#0072b2", "#d55e00"
_ROOM_FOR_LABELS = 1.35
_MOST_BARS = 20
_MOST_LETTERS = 26
_BAR, _NARROW = 0.21, 4.8  # inches: per bar, and what a telephone still shows in a legible size


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
    """A name as matplotlib takes it: no mathematics, no control characters, not too long.

    Names of one network differ at their ends, so it is the beginning that is left out.
    """
    name = "".join(c for c in name if c.isprintable())
    short = name if len(name) <= _MOST_LETTERS else "…" + name[1 - _MOST_LETTERS :]
    return short.replace("$", r"\$")


def short(name: str) -> str:
    """A layer's name without what the next part of its path says again.

    ``/features/features.3/conv/conv.0/conv.0.0/Conv`` is ``features.3/conv.0.0/Conv``.
    """
    parts = [part for part in name.split("/") if part]
    after = [*parts, ""][1:]
    told = [a for a, b in zip(parts, after, strict=True) if a != b and not b.startswith(a + ".")]
    return "/".join(told) or name


def scatter(models: list[rows.ModelRow]) -> str:
    """Accuracy on test against file size."""
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


def bars(models: list[rows.ModelRow]) -> str:
    """Median latency in the primary cell."""

    def draw(axes: Axes) -> None:
        values = [m.p50 or 0.0 for m in reversed(models)]
        axes.barh(range(len(values)), values, color=_BLUE, height=0.6)
        axes.set_yticks(range(len(values)), [_label(m.stage) for m in reversed(models)])
        for index, m in enumerate(reversed(models)):
            label = f" {m.p50:.3f} ms" if m.p50 is not None else ""
            if m.speedup is not None:
                label += f", {m.speedup.value:.2f}x"
            axes.annotate(label, (m.p50 or 0.0, index), va="center")
        axes.set_xlim(0, max(values) * _ROOM_FOR_LABELS)
        axes.set_xlabel("p50 latency, ms")
        axes.set_title("Latency in the primary cell", loc="left")

    return _svg(draw)


def noise(worst: Sequence[Row]) -> str:
    """What each layer alone in int8 adds to the noise, as a share of the sum over all layers.

    Args:
        worst: Layers that were looked at, the noisiest first; one at least.
    """
    shown = list(reversed(worst[:_MOST_BARS]))
    whole = sum(row.noise for row in worst) or 1.0

    def draw(axes: Axes) -> None:
        shares = [100 * row.noise / whole for row in shown]
        colors = [_BLUE if row.form == "float" else _ORANGE for row in shown]
        axes.barh(range(len(shown)), shares, color=colors, height=0.7)
        for i, row in enumerate(shown):
            axes.annotate(f" {row.sqnr:.1f} dB", (shares[i], i), va="center")
        axes.set_xlim(0, max(max(shares), 1e-9) * _ROOM_FOR_LABELS)
        axes.set_xlabel("% of the noise of all layers; dB: SQNR")
        _names(axes, shown)
        _key(axes, {"int8": _ORANGE, "left float": _BLUE})
        axes.set_title(_of("Noise", len(shown), len(worst), "worst"), loc="left")

    return _svg(draw, _NARROW, _height(len(shown), 1))


def times(slowest: Sequence[Row]) -> str:
    """Time of each layer in float and in int8.

    Args:
        slowest: Layers with times, the slowest first; one at least.
    """
    shown = list(reversed(slowest[:_MOST_BARS]))

    def draw(axes: Axes) -> None:
        places = range(len(shown))
        for offset, color, values in (
            (0.2, _BLUE, [row.float_us or 0.0 for row in shown]),
            (-0.2, _ORANGE, [row.int8_us or 0.0 for row in shown]),
        ):
            axes.barh([i + offset for i in places], values, color=color, height=0.38)
        axes.set_xlabel("µs per call, from a profile of the whole network")
        _names(axes, shown)
        _key(axes, {"float": _BLUE, "int8": _ORANGE})
        axes.set_title(_of("Time", len(shown), len(slowest), "slowest"), loc="left")

    return _svg(draw, _NARROW, _height(len(shown), 1.5))


def _names(axes: Axes, shown: Sequence[Row]) -> None:
    axes.set_yticks(range(len(shown)), [_label(short(row.name)) for row in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)


def _key(axes: Axes, colors: dict[str, str]) -> None:
    """Below the axes, as bars may end anywhere inside them."""
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=word) for word, color in colors.items()]
    axes.figure.legend(
        handles=handles, loc="outside lower right", ncols=len(handles), frameon=False
    )


def _of(title: str, shown: int, all_of_them: int, which: str) -> str:
    if shown == all_of_them:
        return f"{title} per layer"
    return f"{title} of the {shown} {which} of {all_of_them} layers"


def _height(bars: int, thick: float) -> float:
    return 1.3 + thick * _BAR * bars
