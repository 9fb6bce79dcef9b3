"""Verdicts: a PASS only where the data can support it.

``problems`` and ``parse`` read the list below ``gates`` of a pipeline file, ``evaluate`` judges a
run, ``judge`` a run against a committed baseline, which ``accept`` makes.
"""

from compressor.gates.apply import evaluate, exit_code
from compressor.gates.baseline import accept
from compressor.gates.ci import judge
from compressor.gates.config import Gate, parse, problems

__all__ = ["Gate", "accept", "evaluate", "exit_code", "judge", "parse", "problems"]
