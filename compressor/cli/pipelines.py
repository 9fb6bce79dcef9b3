"""Commands on pipelines, runs and baselines."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compressor.cli.group import FILE, FLAGS, FOLDER, THERE, WIDTH, cli, command, common, show

_PIPELINE = [
    click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a value."),
    click.option("--only", multiple=True, metavar="STAGE", help="This stage and what it needs."),
    click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads; default: all usable."),
    click.option("--store", type=FOLDER, help="Store folder [.compressor or COMPRESSOR_STORE]."),
    click.option("--rebench", is_flag=True, help="Measure latency again."),
]


def _pipeline_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_PIPELINE):
        function = option(function)
    return function


@command()
@click.argument("folder", type=FOLDER)
def init(folder: Path) -> None:
    """Write a starter project with your own model and data to fill in."""
    from compressor import api

    api.initialize(folder)
    show(
        {"folder": str(folder)},
        f"Wrote {folder}: pipeline.yaml, nets.py, dataset.py, README.md\n"
        f"next: cd {folder} && compressor plan pipeline.yaml",
    )


@command()
@click.argument("file", type=FILE)
@_pipeline_options
def plan(file: Path, **options: Any) -> None:
    """Show wiring and cache state with reasons; run nothing.

    Exits 6 if this machine lacks what a stage needs that would run.
    """
    from compressor import api
    from compressor.core.errors import MissingError
    from compressor.pipeline import present

    steps = api.plan(file, **options)
    show(present.plan_rows(steps), present.plan_text(steps, str(file)))
    if any(step.problem for step in steps):
        sys.exit(MissingError.exit_code)


@command()
@click.argument("file", type=FILE)
@_pipeline_options
@click.option("--runs", type=FOLDER, default="runs", show_default=True, help="For run folders.")
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
        show({"computed": outcome.computed}, f"up to date: {', '.join(options['only'])}")
        return
    latest = outcome.folder.parent / "latest"
    lines = [table.text(outcome.results), f"report: {latest / 'report.html'}"]
    if (outcome.folder / "bundle").exists():
        lines.append(f"next: compressor verify {latest / 'bundle'}")
    show(
        {
            "folder": str(outcome.folder),
            "exit_code": outcome.exit_code,
            "computed": outcome.computed,
            "gates": [
                {"gate": g.gate, "verdict": g.verdict, "sentence": g.sentence}
                for g in outcome.results.gates
            ],
        },
        "\n".join(lines),
    )
    sys.exit(outcome.exit_code)


@command()
@click.argument("run", type=THERE)
@click.option("--baseline", type=FOLDER, required=True, help="Folder of `baseline accept`.")
@click.option("--strict", is_flag=True, help="An inconclusive gate exits 4.")
@click.option("--junit", type=FILE, help="Write JUnit XML here.")
@click.option("--summary", type=FILE, help="Append Markdown here ($GITHUB_STEP_SUMMARY).")
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
    show({"exit_code": code, "gates": rows}, table.gates_text(verdicts))
    sys.exit(code)


@cli.group(context_settings=WIDTH)
def baseline() -> None:
    """The folder that a gate judges against."""


@baseline.command("accept", context_settings=WIDTH)
@click.argument("run", type=THERE)
@click.argument("folder", type=FOLDER)
@common
def accept(run: Path, folder: Path) -> None:
    """Make RUN the baseline in FOLDER; commit FOLDER."""
    from compressor import api

    api.accept(run, folder)
    show({"baseline": str(folder)}, f"{folder} holds the baseline now; commit it")


@command()
@click.argument("run", type=THERE)
def report(run: Path) -> None:
    """Print a run's table; write its Markdown, HTML and JUnit again."""
    from compressor import api
    from compressor.core import results
    from compressor.report import table

    page = api.write_report(run)
    found = results.load(run)
    show({"html": str(page)}, f"{table.text(found)}\nreport: {page}")
