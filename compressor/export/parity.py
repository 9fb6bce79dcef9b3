"""Proof that an ONNX file computes what the PyTorch network computes, on real samples."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.core.errors import CompressorError, ConfigError, ParityError, StageError
from compressor.core.types import ModelSpec
from compressor.data.dataset import as_float, normalise
from compressor.runtime import predict
from compressor.runtime.session import open_session

LEAST_SAMPLES = 64
BATCHES = (1, 2, 7)
FP32 = 1e-4
# fp16 keeps 11 bits (5e-4 per operation), which add up over the layers. On a CPU the file runs
# emulated: fp32 arithmetic between casts, so this checks the rounding of weights and activations.
FP16 = 2e-2
MARGIN = 10.0
# Outputs that vary less than this, relative to their size, count as constant.
_CONSTANT = 1e-3
# Of the largest output: two orders of summing in fp32 are that far apart, however small the
# deviation is (a regression of 1000 +- 1).
_ROUNDING = 4 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True)
class ParityReport:
    """How far two forms of a network are apart.

    Attributes:
        max_difference: Largest over samples, outputs, batch sizes and both optimisation levels,
            in standard deviations of the network's own outputs (in hundredths of their size where
            they deviate by less than a thousandth of it).
        top1: Percent of samples with the same top-1 in all of these; 100 for regression.
        samples: How many.
        decisive: How many have a top-1 margin above ten tolerances, where top-1 must be equal.
        batches: The batch sizes run.
    """

    max_difference: float
    top1: float
    samples: int
    decisive: int
    batches: tuple[int, ...]


def check(
    model: nn.Module,
    path: Path,
    spec: ModelSpec,
    samples: Mapping[str, NDArray[Any]],
    *,
    tolerance: float = FP32,
    batches: Sequence[int] = BATCHES,
    threads: int = 1,
) -> ParityReport:
    """Compare an ONNX file with the network it came from, on the CPU.

    The network runs once over all samples; the file runs in each batch size, with all of ONNX
    Runtime's graph optimisations and with none, so that an export bug and an optimiser bug are
    told apart and mixing of samples within a batch is seen.

    Args:
        model: Eats normalised inputs; left unchanged.
        path: The ONNX file.
        spec: Inputs and task.
        samples: Input name to at least 64 real samples ``[n, *shape]`` as the dataset stores them.
        tolerance: Largest difference, in standard deviations of the network's outputs.
        batches: Batch sizes.
        threads: Of ONNX Runtime.

    Raises:
        ConfigError: Fewer than 64 samples.
        ParityError: A difference above ``tolerance`` and above rounding, another top-1 where the
            margin exceeds ten tolerances, or outputs of another shape.
        StageError: The network's own outputs are not finite.
    """
    n = min((len(array) for array in samples.values()), default=0)
    if n < LEAST_SAMPLES:
        raise ConfigError(f"parity: {n} samples; give at least {LEAST_SAMPLES}")
    expected = _reference(model, spec, samples)
    std = _spread(expected)
    decisive = _margin(expected, spec) > MARGIN * tolerance * std
    worst, same = 0.0, np.ones(n, dtype=bool)
    for optimize in ("all", "none"):
        session = open_session(path, threads=threads, optimize=optimize)
        for batch in batches:
            where = f"{path.name}, batch {batch}, graph optimisations: {optimize}"
            got = _run(session, samples, batch, where)
            _check_values(expected, got, where)
            if spec.task == "classification":
                equal = expected.argmax(axis=1) == got.argmax(axis=1)
                _check_top1(equal, decisive, where)
                same &= equal
            worst = max(worst, _difference(expected, got, std, tolerance, where))
    percent = 100.0 * float(same.mean())
    return ParityReport(worst, percent, n, int(decisive.sum()), tuple(batches))


def _reference(
    model: nn.Module, spec: ModelSpec, samples: Mapping[str, NDArray[Any]]
) -> NDArray[np.float32]:
    """The network's outputs ``[n, ...]`` on all samples at once."""
    twin = copy.deepcopy(model).to("cpu").eval()
    inputs = [
        torch.from_numpy(np.array(normalise(as_float(samples[name], s), s), copy=True))
        for name, s in spec.inputs.items()
    ]
    with torch.inference_mode():
        expected = np.asarray(twin(*inputs).float().numpy())
    if not np.isfinite(expected).all():
        raise StageError("parity: the PyTorch network's own outputs are not finite on real samples")
    return expected


def _spread(expected: NDArray[np.float32]) -> float:
    """Standard deviation of all outputs; of a nearly constant network, 1 % of their size.

    float32 rounds relative to the size, so a constant network has no deviation to compare with.
    """
    std, size = float(expected.std()), float(np.abs(expected).max())
    return std if std >= _CONSTANT * size and std > 0 else 0.01 * size or 1.0


def _run(
    session: Any, samples: Mapping[str, NDArray[Any]], batch: int, where: str
) -> NDArray[np.float32]:
    try:
        return predict.run(session, samples, batch)
    except CompressorError as error:
        raise ParityError(f"parity: {where}: {error}") from error
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        text = " ".join(str(error).split())[:300]
        raise ParityError(f"parity: {where}: the file does not run: {text}") from error


def _check_values(expected: NDArray[np.float32], got: NDArray[np.float32], where: str) -> None:
    if expected.shape != got.shape:
        raise ParityError(f"parity: {where}: outputs {list(got.shape)}, "
                          f"PyTorch gives {list(expected.shape)}")  # fmt: skip
    if not np.isfinite(got).all():
        raise ParityError(f"parity: {where}: some outputs are not finite; PyTorch's all are")


def _difference(
    expected: NDArray[np.float32], got: NDArray[np.float32], std: float, limit: float, where: str
) -> float:
    """Largest difference in standard deviations. Raises ParityError above ``limit``.

    What float32 cannot tell apart passes.
    """
    gap = np.abs(expected.astype(np.float64) - got.astype(np.float64))
    worst = float(gap.max()) / std
    if worst > limit and float(gap.max()) > _ROUNDING * float(np.abs(expected).max()):
        sample = int(gap.reshape(len(gap), -1).max(axis=1).argmax())
        raise ParityError(
            f"parity: {where}: the outputs differ from PyTorch's by {worst:.2g} of their standard "
            f"deviation (limit {limit:g}), most on sample {sample}; the file is not this network"
        )
    return worst


def _margin(expected: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """Top-1 minus top-2 logit per sample ``[n]``; 0 where there is no choice to compare."""
    if spec.task != "classification" or expected.ndim != 2 or expected.shape[1] < 2:
        return np.zeros(len(expected), dtype=np.float32)
    top = np.partition(expected, -2, axis=1)
    return np.asarray(top[:, -1] - top[:, -2])


def _check_top1(same: NDArray[np.bool_], decisive: NDArray[np.bool_], where: str) -> None:
    """Raise ParityError where a sample with a clear margin gets another class."""
    wrong = decisive & ~same
    if wrong.any():
        raise ParityError(
            f"parity: {where}: top-1 differs on {int(wrong.sum())} of {int(decisive.sum())} "
            f"samples with a clear margin (first: sample {int(wrong.argmax())})"
        )
