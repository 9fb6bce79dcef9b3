"""A run as table, Markdown, HTML and JUnit; everything is derived from the run folder."""

from __future__ import annotations

from pathlib import Path

from compressor.core import files
from compressor.core.results import RunResults


def write(folder: Path, results: RunResults) -> Path:
    """Write summary.md, report.html and junit.xml into a run folder; returns the HTML's path."""
    from compressor.report import html, junit, markdown

    files.write_text(folder / "summary.md", markdown.summary(results, folder))
    files.write_text(folder / "junit.xml", junit.document(results.gates, results.name))
    page = folder / "report.html"
    files.write_text(page, html.page(results, folder))
    return page
