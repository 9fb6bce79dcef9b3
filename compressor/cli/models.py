"""Commands on ONNX files and bundles."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from compressor.cli.group import FILE, FLAGS, THERE, WIDTH, cli, command, show


class _Seconds(click.ParamType[float]):
    """``90``, ``90s``, ``3m`` or ``1h``."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        from compressor.core.config import seconds

        try:
            return seconds(f"{value}s" if str(value).replace(".", "", 1).isdigit() else value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _spent(seconds: float, note: str) -> None:
    """Progress of a search, on stderr."""
    if not (FLAGS.quiet or FLAGS.json):
        click.echo(f"{seconds:5.0f} s  {note}", err=True)


@command()
@click.argument("models", nargs=-1, required=True, type=FILE)
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=30, show_default=True)
@click.option("--inputs", type=FILE, help=".npz with one array per model input.")
def bench(models: Sequence[Path], **options: Any) -> None:
    """Interleaved latency of ONNX files; the first is the baseline."""
    from compressor import api
    from compressor.report import table

    notes: list[str] = []
    timing = api.bench(models, told=notes.append, **options)
    rows = [
        {**row, "warnings": [n for n in notes if n.startswith(f"{row['model']}: ")]}
        for row in table.timing_rows(timing)
    ]
    show(rows, "\n".join([table.timing_text(timing), *map(_warning, notes)]))


def _warning(line: str) -> str:
    return textwrap.fill(f"warning: {line}", 80, subsequent_indent="  ", break_on_hyphens=False)


@command()
@click.argument("model", type=FILE)
@click.option("--calibration", type=FILE, required=True, help=".npz, one array per input.")
@click.option("-o", "--out", type=FILE, required=True, help="Where the file goes.")
@click.option(
    "--scheme",
    type=click.Choice(["int8", "int4", "dynamic", "fp16"]),
    default="int8",
    show_default=True,
    help="int4: matrices alone; dynamic: no calibration; fp16: for CUDA.",
)
@click.option(
    "--target",
    type=click.Choice(["portable", "x86-vnni", "arm64", "host"]),
    show_default="portable",
    help="CPUs on which it is exact.",
)
@click.option(
    "--method",
    type=click.Choice(["minmax", "moving", "percentile", "entropy", "mse"]),
    show_default="minmax",
    help="Calibration method.",
)
@click.option("--exclude", multiple=True, metavar="NODE", help="Keep a node or op type float.")
@click.option(
    "--placement",
    type=click.Choice(["measured", "none"]),
    help="Where int8 pays, by measurement [default], or everywhere.",
)
@click.option("--budget", type=_Seconds(), show_default="3m", help="For measuring.")
@click.option("--min-sqnr", type=float, show_default="25", help="Least dB kept.")
@click.option("--max-drop", type=click.FloatRange(min=0), help="Points, instead; needs --eval.")
@click.option("--eval", "labelled", type=FILE, help=".npz: the inputs and `labels`.")
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where fp16 is compared with fp32.",
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def quantize(model: Path, calibration: Path, out: Path, force: bool, **options: Any) -> None:
    """Make an int8 file of an ONNX model trained elsewhere.

    It is never slower than the float one on this machine: layers that lose stay float, and the
    float model is written if int8 pays nowhere. Interrupted, it goes on from OUT.tune. The other
    schemes measure no latency and take few of the options.
    """
    from compressor import api
    from compressor.core.errors import ConfigError
    from compressor.report import table

    if out.exists() and not force:
        raise ConfigError(f"-o {out}: exists; give another name or --force")
    given = {k: v for k, v in options.items() if v not in (None, ())}
    report = api.quantize(model, out, calibration, told=_spent, **given)
    show(report.table(), table.quantize_text(report, out))


@cli.command(context_settings=WIDTH)
@click.argument("bundle", type=THERE)
@click.option("--choose", is_flag=True, help="Re-bench the variants on this device.")
@click.option("--json", "report_file", metavar="FILE", help="Write the findings here (- : stdout).")
def verify(bundle: Path, choose: bool, report_file: str | None) -> None:
    """Check a bundle: hashes, golden outputs, latency here."""
    from compressor.core.environment import check_onnxruntime
    from compressor.runtime import verify as room

    check_onnxruntime()
    arguments = [str(bundle), *(["--choose"] if choose else [])]
    sys.exit(room.main([*arguments, *(["--json", report_file] if report_file else [])]))
