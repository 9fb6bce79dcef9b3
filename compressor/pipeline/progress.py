"""What a person sees while a pipeline runs: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from compressor.pipeline.execution import Done
    from compressor.pipeline.graph import Node

INTERVAL_S = 10.0


def _took(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min"


def _verdict(done: Done) -> str:
    """One line for a finished node: state, time, the metric that matters."""
    state = f"ran in {_took(done.entry.seconds)}" if done.ran else "cached"
    metrics = done.entry.metrics
    shown = [
        f"{name} {m.value:.2f} {m.unit}".rstrip()
        for name, m in metrics.items()
        if name in {"accuracy", "mae", "sqnr", "speedup", "drop_val", "macs_kept"}
    ]
    return f"{done.node.name:<16} {state:<16} {', '.join(shown)}".rstrip()


class Quiet:
    """Says nothing but what a stage insists on, and that only on request."""

    def start(self, node: Node) -> None:
        """Nothing."""

    def finish(self, done: Done) -> None:
        """Nothing."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Plain:
    """One line per finished node, and one every ten seconds while a node runs."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._name = ""
        self._began = self._last = clock()

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def start(self, node: Node) -> None:
        """Remember who is running."""
        self._name = node.name
        self._began = self._last = self._clock()

    def finish(self, done: Done) -> None:
        """Print the node's line."""
        self._line(_verdict(done))

    def update(self, done: int, total: int, note: str = "") -> None:
        """Print where the node is, at most every ten seconds."""
        now = self._clock()
        if now - self._last < INTERVAL_S:
            return
        self._last = now
        share = done / total if total else 0.0
        left = (now - self._began) / share * (1 - share) if share > 0 else 0.0
        eta = f", {_took(left)} left" if share > 0 else ""
        self._line(f"{self._name:<16} {share:4.0%}{eta}  {note}".rstrip())

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self._line(f"{self._name:<16} {line}" if self._name else line)


class Live:
    """A rich progress bar for the running node above the lines of the finished ones."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console  # not needed where nobody watches

        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._name = ""

    def start(self, node: Node) -> None:
        """Open a bar."""
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._close()
        self._name = node.name
        self._bar = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(bar_width=18),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=self._console,
            transient=True,
            refresh_per_second=4,
        )
        self._bar.add_task(node.name, total=None, note="")
        self._bar.start()

    def finish(self, done: Done) -> None:
        """Close the bar and print the node's line."""
        self._close()
        style = None if done.ran else "dim"
        self._console.print(_verdict(done), style=style, markup=False, highlight=False)

    def update(self, done: int, total: int, note: str = "") -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, note=note)

    def say(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        self._console.print(f"{self._name:<16} {line}", markup=False, highlight=False)

    def close(self) -> None:
        """Remove the bar, also after an error."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def reporter(quiet: bool) -> Quiet | Plain | Live:
    """The fitting one for this terminal."""
    if quiet:
        return Quiet()
    return Live() if sys.stderr.isatty() else Plain()
