"""The command line: click commands, thin; each imports what it needs when it runs."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

WIDTH = {"max_content_width": 80, "help_option_names": ["-h", "--help"]}
_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_THERE = click.Path(exists=True, file_okay=False, path_type=Path)


class _Seconds(click.ParamType[float]):
    """``90``, ``90s``, ``3m`` or ``1h``."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        from compressor.core.config import seconds

        found = seconds(f"{value}s" if str(value).replace(".", "", 1).isdigit() else value)
        if not isinstance(found, float) or found <= 0:
            self.fail(f"{value!r} is not a time above 0 such as 90s or 3m", param, ctx)
        return found


def _spent(seconds: float, note: str) -> None:
    """Progress of a search, on stderr."""
    if not (FLAGS.quiet or FLAGS.json):
        click.echo(f"{seconds:5.0f} s  {note}", err=True)


class Flags:
    """What --quiet, --debug and --json said, before or behind the command."""

    def __init__(self) -> None:
        self.quiet = self.debug = self.json = False

    def note(self, name: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
        """A click callback that records the flag."""

        def callback(_: click.Context, __: click.Parameter, value: bool) -> bool:
            if value:
                setattr(self, name, True)
            return value

        return callback


FLAGS = Flags()


def _common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the global flags to a command, so that they may stand at its end."""
    words = {
        "quiet": "No progress.",
        "debug": "Show a traceback with an error.",
        "json": "Machine-readable output.",
    }
    for name, text in reversed(words.items()):
        option = click.option(
            f"--{name}", is_flag=True, expose_value=False, callback=FLAGS.note(name), help=text
        )
        function = option(function)
    return function


_ABOUT = """Make a network small and fast, prove it, and keep it that way.

\b
compressor run pipelines/digits.yaml     the whole chain
compressor plan FILE                     what would run, and why
compressor bench A.onnx B.onnx           which is faster here, honestly
"""


@click.group(context_settings=WIDTH, help=_ABOUT)
@click.version_option(package_name="compressor", prog_name="compressor")
@_common
def cli() -> None:
    """Group of all commands."""


def _command(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    def wrap(function: Callable[..., Any]) -> click.Command:
        return cli.command(*names, context_settings=WIDTH, **settings)(_common(function))

    return wrap


def _print(value: Any, text: str) -> None:
    """To stdout: ``value`` as JSON under --json, else ``text``."""
    click.echo(json.dumps(value, indent=1, sort_keys=True, default=str) if FLAGS.json else text)


_PIPELINE = [
    click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a value."),
    click.option("--only", multiple=True, metavar="STAGE", help="This stage and what it needs."),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all usable."),
    click.option("--store", type=_FOLDER, help="Store folder [.compressor or COMPRESSOR_STORE]."),
    click.option("--rebench", is_flag=True, help="Measure latency again."),
]


def _pipeline_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_PIPELINE):
        function = option(function)
    return function


@_command()
@click.argument("folder", type=_FOLDER)
def init(folder: Path) -> None:
    """Write a starter project with your own model and data to fill in."""
    from compressor import api

    api.initialize(folder)
    _print(
        {"folder": str(folder)},
        f"Wrote {folder}: pipeline.yaml, nets.py, dataset.py, README.md\n"
        f"next: cd {folder} && compressor plan pipeline.yaml",
    )


@_command()
@click.argument("file", type=_FILE)
@_pipeline_options
def plan(file: Path, **options: Any) -> None:
    """Show wiring and cache state with reasons; run nothing."""
    from compressor import api
    from compressor.pipeline import present

    steps = api.plan(file, **options)
    _print(present.plan_rows(steps), present.plan_text(steps, str(file)))


@_command()
@click.argument("file", type=_FILE)
@_pipeline_options
@click.option("--runs", type=_FOLDER, default="runs", show_default=True, help="For run folders.")
@click.option("--strict", is_flag=True, help="An inconclusive gate exits 4.")
@click.option("--accept-code", multiple=True, metavar="STAGE", help="An edit did not matter.")
def run(file: Path, **options: Any) -> None:
    """Run what is stale, then the gates."""
    from compressor import api
    from compressor.pipeline import progress
    from compressor.report import table

    reporter = progress.reporter(FLAGS.quiet or FLAGS.json)
    try:
        outcome = api.run(file, reporter=reporter, **options)
    finally:
        if isinstance(reporter, progress.Live):
            reporter.close()
    if outcome.folder is None:
        _print({"computed": outcome.computed}, f"up to date: {', '.join(options['only'])}")
        return
    latest = outcome.folder.parent / "latest"
    text = (
        f"{table.text(outcome.results)}\n"
        f"report: {latest / 'report.html'}\n"
        f"next: compressor verify {latest / 'bundle'}"
        if (outcome.folder / "bundle").exists()
        else f"{table.text(outcome.results)}\nreport: {latest / 'report.html'}"
    )
    _print(
        {
            "folder": str(outcome.folder),
            "exit_code": outcome.exit_code,
            "computed": outcome.computed,
            "gates": [
                {"gate": g.gate, "verdict": g.verdict, "sentence": g.sentence}
                for g in outcome.results.gates
            ],
        },
        text,
    )
    sys.exit(outcome.exit_code)


@_command()
@click.argument("models", nargs=-1, required=True, type=_FILE)
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=30, show_default=True)
@click.option("--inputs", type=_FILE, help=".npz with one array per model input.")
def bench(models: Sequence[Path], **options: Any) -> None:
    """Interleaved latency of ONNX files; the first is the baseline."""
    from compressor import api
    from compressor.report import table

    timing = api.bench(models, **options)
    _print(table.timing_rows(timing), table.timing_text(timing))


@_command()
@click.argument("model", type=_FILE)
@click.option("--calibration", type=_FILE, required=True, help=".npz, one array per input.")
@click.option("-o", "--out", type=_FILE, required=True, help="Where the int8 file goes.")
@click.option(
    "--target",
    type=click.Choice(["portable", "x86-vnni", "arm64", "host"]),
    default="portable",
    show_default=True,
)
@click.option(
    "--method",
    type=click.Choice(["minmax", "moving", "percentile", "entropy", "mse"]),
    default="minmax",
    show_default=True,
    help="Calibration method.",
)
@click.option("--exclude", multiple=True, metavar="NODE", help="Keep a node or op type float.")
@click.option(
    "--placement",
    type=click.Choice(["measured", "none"]),
    help="Where int8 pays, by measurement [default], or everywhere.",
)
@click.option("--budget", type=_Seconds(), default="3m", show_default=True, help="For measuring.")
@click.option("--min-sqnr", type=float, default=25.0, show_default=True, help="Least dB kept.")
@click.option("--max-drop", type=click.FloatRange(min=0), help="Points, instead; needs --eval.")
@click.option("--eval", "labelled", type=_FILE, help=".npz: the inputs and `labels`.")
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def quantize(model: Path, calibration: Path, out: Path, force: bool, **options: Any) -> None:
    """Make an int8 file of an ONNX model trained elsewhere.

    It is never slower than the float one on this machine: layers that lose stay float, and the
    float model is written if int8 pays nowhere. Interrupted, it goes on from OUT.tune.
    """
    from compressor import api
    from compressor.core.errors import ConfigError
    from compressor.report import table

    if out.exists() and not force:
        raise ConfigError(f"-o {out}: exists; give another name or --force")
    if options["max_drop"] is not None and options["labelled"] is None:
        raise ConfigError("--max-drop: needs --eval Y.npz with one array per input and `labels`")
    report = api.quantize(model, out, calibration, told=_spent, **options)
    _print(report.table(), table.quantize_text(report, out))


@_command()
@click.argument("run", type=_THERE)
@click.option("--baseline", type=_FOLDER, required=True, help="Folder of `baseline accept`.")
@click.option("--strict", is_flag=True, help="An inconclusive gate exits 4.")
@click.option("--junit", type=_FILE, help="Write JUnit XML here.")
@click.option("--summary", type=_FILE, help="Append Markdown here ($GITHUB_STEP_SUMMARY).")
def gate(run: Path, baseline: Path, strict: bool, junit: Path | None, summary: Path | None) -> None:
    """Judge RUN against a committed baseline: exit 0, 3 or 4."""
    from compressor import api
    from compressor.core import files
    from compressor.report import junit as xml
    from compressor.report import markdown, table

    verdicts, code = api.gate(run, baseline, strict=strict)
    if junit is not None:
        files.write_text(junit, xml.document(verdicts))
    if summary is not None:
        before = summary.read_text() if summary.exists() else ""
        files.write_text(summary, before + markdown.gates(verdicts))
    rows = [{"gate": g.gate, "verdict": g.verdict, "sentence": g.sentence} for g in verdicts]
    _print({"exit_code": code, "gates": rows}, table.gates_text(verdicts))
    sys.exit(code)


@cli.group(context_settings=WIDTH)
def baseline() -> None:
    """The folder that a gate judges against."""


@baseline.command("accept", context_settings=WIDTH)
@click.argument("run", type=_THERE)
@click.argument("folder", type=_FOLDER)
@_common
def accept(run: Path, folder: Path) -> None:
    """Make RUN the baseline in FOLDER; commit FOLDER."""
    from compressor import api

    api.accept(run, folder)
    _print({"baseline": str(folder)}, f"{folder} holds the baseline now; commit it")


@_command()
@click.argument("run", type=_THERE)
def report(run: Path) -> None:
    """Print a run's table; write its Markdown, HTML and JUnit again."""
    from compressor import api
    from compressor.core import results
    from compressor.report import table

    page = api.write_report(run)
    found = results.load(run)
    _print({"html": str(page)}, f"{table.text(found)}\nreport: {page}")


@cli.command(context_settings=WIDTH)
@click.argument("bundle", type=_THERE)
@click.option("--choose", is_flag=True, help="Re-bench the variants on this device.")
@click.option("--json", "report_file", metavar="FILE", help="Write the findings here (- : stdout).")
def verify(bundle: Path, choose: bool, report_file: str | None) -> None:
    """Check a bundle: hashes, golden outputs, latency here."""
    from compressor.core.environment import check_onnxruntime
    from compressor.runtime import verify as room

    check_onnxruntime()
    arguments = [str(bundle), *(["--choose"] if choose else [])]
    sys.exit(room.main([*arguments, *(["--json", report_file] if report_file else [])]))


@cli.group(context_settings=WIDTH)
def cache() -> None:
    """The content-addressed store."""


def _store_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--store", type=_FOLDER, help="Default: .compressor")(_common(function))


@cache.command("ls", context_settings=WIDTH)
@_store_option
def cache_ls(store: Path | None) -> None:
    """List what is stored."""
    from compressor.pipeline import present

    rows, text = present.store_listing(store)
    _print(rows, text)


@cache.command("verify", context_settings=WIDTH)
@_store_option
def cache_verify(store: Path | None) -> None:
    """Hash every stored object."""
    from compressor import api
    from compressor.core.errors import IntegrityError
    from compressor.core.store import Store

    damaged = Store(api.store_path(store)).damaged()
    if damaged:
        raise IntegrityError(
            f"{len(damaged)} damaged objects: {', '.join(d[:12] for d in damaged[:5])}; "
            "they count as missing and are computed again"
        )
    _print({"damaged": []}, "every stored object matches its digest")


@cache.command("gc", context_settings=WIDTH)
@click.option("--all", "everything", is_flag=True, help="Empty the store.")
@_store_option
def cache_gc(store: Path | None, everything: bool) -> None:
    """Drop results that no pipeline's last run refers to."""
    from compressor.pipeline import present

    removed, freed = present.collect(store, everything)
    _print({"removed": removed, "bytes": freed}, f"removed {removed} objects, {freed:,} bytes")


@_command()
def doctor() -> None:
    """Versions, providers, CPU features, threads and quota."""
    from compressor.pipeline import present

    rows, text, code = present.doctor()
    _print(rows, text)
    sys.exit(code)


def _fail(error: BaseException, code: int) -> NoReturn:
    """One screen on stderr, or JSON on stdout, then the exit code."""
    from compressor.core.errors import ConfigError

    if FLAGS.debug:
        import traceback

        traceback.print_exception(error)
    if FLAGS.json:
        click.echo(json.dumps({"error": str(error), "exit_code": code}))
    elif isinstance(error, ConfigError) and len(error.problems) > 1:
        click.echo(f"error: {len(error.problems)} problems\n{error}", err=True)
    else:
        click.echo(f"error: {error}", err=True)
    sys.exit(code)


def _misused(error: click.ClickException, words: Sequence[str]) -> NoReturn:
    """A wrong command line; the flags may not have been read yet."""
    if FLAGS.json or ("--json" in words and "verify" not in words):
        click.echo(json.dumps({"error": error.format_message(), "exit_code": 2}))
    else:
        error.show()
    sys.exit(2)


def _interrupted(signum: int, frame: object) -> None:
    sys.exit(128 + signum)


_STOPPED = {130: "interrupted", 143: "terminated"}


def _stopped(code: int, words: Sequence[str]) -> NoReturn:
    """One line, and for a run what becomes of it."""
    more = "; what is finished is stored, run again to go on" if "run" in words else ""
    click.echo(_STOPPED[code] + more, err=True)
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: run a command and turn what it raises into an exit code.

    Args:
        arguments: Instead of the process's own.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    FLAGS.quiet = FLAGS.debug = FLAGS.json = False
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupted)
    try:
        code = cli.main(words, prog_name="compressor", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except SystemExit as stop:
        if stop.code in _STOPPED:
            _stopped(int(stop.code or 0), words)
        raise
    except click.ClickException as error:
        _misused(error, words)
    except (click.Abort, KeyboardInterrupt):
        _stopped(130, words)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        from compressor.core.errors import CompressorError

        if isinstance(error, CompressorError):
            _fail(error, error.exit_code)
        _fail(*_unexpected(error))


def _unexpected(error: Exception) -> tuple[BaseException, int]:
    """A bug, or the environment: say which, and where."""
    import traceback

    from compressor.core.files import fault_of

    fault = fault_of(error, Path.cwd())
    if fault is not None:
        return fault.with_traceback(error.__traceback__), fault.exit_code
    if isinstance(error, MemoryError):
        words = "out of memory; use a smaller batch or model"
        return MemoryError(words).with_traceback(error.__traceback__), 7
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = (
        f"{type(error).__name__}: {error} ({Path(frame.filename).name}:{frame.lineno})\n"
        "Not an error we foresaw; --debug shows the traceback."
    )
    return RuntimeError(text).with_traceback(error.__traceback__), 1


if __name__ == "__main__":
    main()
