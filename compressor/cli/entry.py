"""From words to an exit code: what a command raises becomes one screen on stderr."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from compressor.cli.group import FLAGS, cli


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
    except Exception as error:  # the last net: a bug too must end as a sentence and an exit code
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
