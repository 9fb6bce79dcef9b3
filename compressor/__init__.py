"""compressor: from a PyTorch network to the smallest, fastest ONNX file that is still right.

    import compressor
    outcome = compressor.run("pipelines/digits.yaml")
    outcome.results.find("bundle.speedup")

Names are loaded on first use, so that ``import compressor`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_FROM = {
    "Artifact": "core.types",
    "CompressorError": "core.errors",
    "Config": "core.config",
    "ConfigError": "core.errors",
    "Context": "core.types",
    "Inputs": "core.types",
    "Metric": "core.types",
    "ModelSpec": "core.types",
    "Need": "core.types",
    "Outcome": "api",
    "RunResults": "core.results",
    "Stage": "core.types",
    "StageResult": "core.types",
    "accept": "api",
    "bench": "api",
    "gate": "api",
    "load": "api",
    "plan": "api",
    "quantize": "api",
    "run": "api",
    "verify": "api",
    "write_report": "api",
}

__all__ = sorted(_FROM)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    return getattr(importlib.import_module(f"compressor.{_FROM[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
