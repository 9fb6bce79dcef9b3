"""Verdicts: a PASS only where the data can support it.

``problems`` and ``parse`` read the list below ``gates`` of a pipeline file, ``evaluate`` judges a
run, ``judge`` a run against a committed baseline, which ``accept`` makes. Names are loaded on first
use: a plan checks gates and judges nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.gates.apply import evaluate, exit_code
    from compressor.gates.baseline import accept
    from compressor.gates.ci import judge
    from compressor.gates.config import Gate, parse, problems

__all__ = ["Gate", "accept", "evaluate", "exit_code", "judge", "parse", "problems"]

_FROM = {
    "Gate": "config",
    "accept": "baseline",
    "evaluate": "apply",
    "exit_code": "apply",
    "judge": "ci",
    "parse": "config",
    "problems": "config",
}


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'compressor.gates' has no attribute {name!r}")
    return getattr(importlib.import_module(f"compressor.gates.{_FROM[name]}"), name)
