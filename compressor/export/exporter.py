"""PyTorch's ONNX exporter, made quiet, and its failures in one screen."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import nn

from compressor.core.errors import StageError

BATCH = "batch"


def trace(
    model: nn.Module, examples: tuple[torch.Tensor, ...], opset: int, name: str
) -> onnx.ModelProto:
    """Run PyTorch's Dynamo exporter.

    Args:
        model: In eval mode, on the CPU; its ``forward`` takes ``*inputs``.
        examples: One tensor ``[2, ...]`` per input; the exporter specialises on a batch of one.
        opset: Asked for; what came out must be checked.
        name: Of the network, for messages.

    Returns:
        The raw graph, first dimension of every input named ``batch``.

    Raises:
        StageError: PyTorch cannot export the network.
    """
    shapes = (tuple({0: BATCH} for _ in examples),)
    try:
        with _quiet(), torch.random.fork_rng(devices=[]):
            program: Any = torch.onnx.export(
                model,
                examples,
                None,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
        raw = onnx.ModelProto()
        raw.CopyFrom(program.model_proto)
        return raw
    except Exception as error:  # the exporter passes on whatever the network's forward raises
        raise _explain(name, error) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal; it reports failures by raising."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    sink = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _explain(name: str, error: Exception) -> StageError:
    """One screen: what is not supported, and what to do about it."""
    causes: list[BaseException] = [error]
    while (deeper := causes[-1].__cause__) is not None:
        causes.append(deeper)
    root = causes[-1]
    text = f"{type(root).__name__} {root}"
    if "No ONNX function found" in text or "DispatchError" in text:
        advice = "this operator has no ONNX form; replace it in the model by one that has"
    elif "Constraint" in text or "specialized" in text or "user-specified" in text:
        advice = (
            "the batch dimension must stay free: no fixed batch size in view or reshape, "
            "no Python int made of x.shape[0]; flatten with torch.flatten(x, 1)"
        )
    elif "data-dependent" in text or "Could not guard" in text or "unbacked" in text.lower():
        advice = "forward must not branch on tensor values; use torch.where or torch.cond"
    else:
        advice = "run it with --debug for the exporter's full report"
    return StageError(f"export: PyTorch cannot export {name}: {brief(root)}\n{advice}")


def brief(error: BaseException, limit: int = 600) -> str:
    """The message without blank lines and colours, cut to half a screen."""
    lines = [line.rstrip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: " + "\n".join(lines[:4])
    return text if len(text) <= limit else text[:limit] + " ..."
