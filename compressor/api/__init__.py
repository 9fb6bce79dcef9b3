"""What ``import compressor`` gives: the commands as functions, typed, without exits or prints."""

from compressor.api.models import bench, quantize, verify
from compressor.api.pipelines import (
    Outcome,
    accept,
    gate,
    initialize,
    load,
    plan,
    run,
    store_path,
    write_report,
)

__all__ = [
    "Outcome",
    "accept",
    "bench",
    "gate",
    "initialize",
    "load",
    "plan",
    "quantize",
    "run",
    "store_path",
    "verify",
    "write_report",
]
