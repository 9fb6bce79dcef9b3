"""The group of all commands, and what they share: flags, types, where output goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

WIDTH = {"max_content_width": 80, "help_option_names": ["-h", "--help"]}
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
THERE = click.Path(exists=True, file_okay=False, path_type=Path)


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


def common(function: Callable[..., Any]) -> Callable[..., Any]:
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
@common
def cli() -> None:
    """Group of all commands."""


def command(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command of the group, with the flags that every command takes."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        return cli.command(*names, context_settings=WIDTH, **settings)(common(function))

    return wrap


def show(value: Any, text: str) -> None:
    """To stdout: ``value`` as JSON under --json, else ``text``."""
    click.echo(json.dumps(value, indent=1, sort_keys=True, default=str) if FLAGS.json else text)
