"""Everything that compressor raises on purpose; each branch is one exit code.

* CompressorError                 1  our bug, or nothing more precise is known
  x ConfigError                   2  the pipeline file, an option or an argument is wrong
  x GateFailed                    3  everything ran; the numbers are not good enough
  x GateInconclusive              4  the data cannot support a verdict, under --strict
  x IntegrityError                5  bytes, hashes or outputs are not what was recorded
    + ParityError                 5  two forms of one network disagree
  x MissingError                  6  an extra, a device or an execution provider is not there
  x SystemFault                   7  disk full, read-only folder, out of memory
  x StageError                    8  a stage ran and cannot give what was asked
    + DivergedError               8  the loss stopped being finite
    + TargetError                 8  a requested size or speed is out of reach

An interrupted run ends with 130 (SIGINT) or 143 (SIGTERM); see ``cli``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class CompressorError(Exception):
    """Root of the tree. The message says where, what it got and what would work."""

    exit_code = 1


class ConfigError(CompressorError):
    """The caller's file, option or argument is wrong; nothing ran."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        """Take one or more problems; all of them are shown, one per line."""
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = problems


class GateFailed(CompressorError):
    """Everything ran; at least one gate is on the wrong side of its limit."""

    exit_code = 3


class GateInconclusive(CompressorError):
    """Under ``--strict``: the data can support neither PASS nor FAIL."""

    exit_code = 4


class IntegrityError(CompressorError):
    """Stored bytes, a manifest or golden outputs differ from what was recorded."""

    exit_code = 5


class ParityError(IntegrityError):
    """Two forms of one network (torch, ONNX, reloaded) give different outputs."""


class MissingError(CompressorError):
    """An optional dependency, a device or an execution provider is not available."""

    exit_code = 6


class SystemFault(CompressorError):
    """The environment failed: disk full, read-only folder, no memory."""

    exit_code = 7


class StageError(CompressorError):
    """A stage ran and cannot deliver."""

    exit_code = 8


class DivergedError(StageError):
    """Training met a loss that is not finite."""


class TargetError(StageError):
    """A requested size, ratio or speed cannot be reached; the message names the nearest."""


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the nearest known word, else the list of known words.

    Returns a tail for an error message, or an empty string when nothing is known.
    """
    words = sorted(str(k) for k in known)
    near = get_close_matches(word, words, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(words)}" if words else ""
