"""The commands on ONNX files and bundles, with no pipeline around them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compressor.core.errors import ConfigError, suggestion
from compressor.core.types import Timing, TimingProtocol

if TYPE_CHECKING:
    from compressor.quantization.plain import QuantizeReport
    from compressor.quantization.quality import Labelled
    from compressor.quantization.schemes import SchemeReport

StrPath = str | os.PathLike[str]
Scheme = Literal["int8", "int4", "dynamic", "fp16"]

# Of samples on the command line, unpacked: a small zip can declare anything.
MAX_NPZ_BYTES = 8 << 30

_BUDGET_S = 180.0
_MIN_SQNR_DB = 25.0

# What each scheme but int8 has a use for, and why the rest is refused rather than ignored.
_ALWAYS = frozenset({"batch", "threads"})
_TAKES = {
    "int4": ({"exclude"}, "it rounds weights alone; nothing is calibrated or placed"),
    "dynamic": ({"exclude", "target", "weight_bits"}, "ranges are found at run time"),
    "fp16": (set[str](), "the whole model is converted, for CUDA"),
}
_FLAGS = {"labelled": "--eval"}


def bench(
    models: Sequence[StrPath],
    *,
    provider: str = "cpu",
    threads: int = 1,
    batch: int = 1,
    rounds: int = 30,
    inputs: StrPath | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> Timing:
    """Interleaved latency of any ONNX files; the first is the baseline.

    Args:
        models: At least one file; one alone is measured against itself (the A/A control).
        provider: ``cpu`` or ``cuda``.
        threads: Intra-op threads.
        batch: Samples per call.
        rounds: Interleaved rounds.
        inputs: ``.npz`` with one array per model input; None feeds random values.
        told: Told one line, ``NAME: why``, for each int8 model that CUDA would run in float.

    Raises:
        ConfigError: A file that is not there, or inputs that do not fit.
        IntegrityError: A file that is no ONNX model.
        MissingError: The provider is not there, or has no kernels for a model's integers.
    """
    from compressor.runtime.on_cuda import check_int8
    from compressor.runtime.timing import feed_digest, interleave, named

    files = named([Path(m) for m in models])
    for line in check_int8(files, provider):
        told(line)
    feed = None if inputs is None else _samples(Path(inputs))
    protocol = TimingProtocol(provider, threads, batch, rounds, inputs=feed_digest(feed))
    return interleave(files, protocol, feed)


def quantize(
    model: StrPath,
    out: StrPath,
    calibration: StrPath,
    *,
    scheme: Scheme = "int8",
    placement: Literal["measured", "none"] | None = None,
    budget: float | None = None,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    labelled: StrPath | None = None,
    device: str = "cpu",
    told: Callable[[float, str], None] = lambda spent, note: None,
    **options: Any,
) -> QuantizeReport | SchemeReport:
    """Make a small file of an ONNX model trained elsewhere.

    A measured placement leaves its state in ``OUT.tune`` when it is interrupted, with the best
    model so far as ``best.onnx``, and goes on from it when it is called again.

    Args:
        model: The fp32 file.
        out: Where the result goes, written atomically: int8 where it pays on this machine, or
            the fp32 model if int8 pays nowhere.
        calibration: ``.npz`` with one array per model input, first axis samples. Schemes that
            calibrate nothing are compared with fp32 on all of them.
        scheme: ``int8``; ``int4``: matrices in 4 bits; ``dynamic``: int8 matrices, activations at
            run time; ``fp16``: for CUDA. What follows is for int8 alone, but for ``device``.
        placement: ``measured``, or ``none`` for int8 throughout; None measures if ``target`` is
            this machine's.
        budget: Seconds for what is measured; 180 by default.
        min_sqnr: Least SQNR in dB of every output on the held-out samples; 25 by default.
        max_drop: Instead, the largest drop in accuracy on ``labelled``, in points.
        labelled: ``.npz`` with one array per model input and ``labels`` (classes).
        device: ``cuda`` compares an fp16 file with fp32 there.
        told: Told seconds spent and what is being done.
        options: Fields of :class:`compressor.quantization.plain.Options`; ``threads``, which are
            not those that latency is measured with, are all usable ones by default. ``int4``
            takes ``exclude`` of them, ``dynamic`` also ``target`` and ``weight_bits``.

    Raises:
        ConfigError: The files, an option that the scheme has no use for, or ``max_drop`` without
            labels or without a measured placement.
        MissingError: ``measured`` asked for a target that this machine is not.
    """
    from compressor.core.environment import usable_threads
    from compressor.quantization.plain import Options

    goal = {"placement": placement, "budget": budget, "min_sqnr": min_sqnr,
            "max_drop": max_drop, "labelled": labelled}  # fmt: skip
    _check_options(options, Options.__dataclass_fields__)
    _check_finite({"budget": budget, "min_sqnr": min_sqnr, "max_drop": max_drop})
    _check_scheme(scheme, {**goal, **options}, device)
    if max_drop is not None and labelled is None:
        raise ConfigError("--max-drop: needs --eval Y.npz with one array per input and `labels`")
    samples = _samples(Path(calibration))
    chosen = Options(**{"threads": usable_threads(), **options})
    if scheme != "int8":
        from compressor.quantization import schemes

        return schemes.quantize(scheme, Path(model), Path(out), samples, chosen, device=device)
    return _int8(Path(model), Path(out), Path(calibration), samples, goal, chosen, told)


def _int8(
    model: Path,
    out: Path,
    calibration: Path,
    samples: Mapping[str, Any],
    goal: Mapping[str, Any],
    options: Any,
    told: Callable[[float, str], None],
) -> QuantizeReport:
    """The measured or plain path, with its state beside ``out``."""
    from compressor.core import files
    from compressor.core.hashing import digest_file
    from compressor.core.store import Store
    from compressor.pipeline.timings import StoredTimings
    from compressor.quantization.goal import Goal
    from compressor.quantization.tune import foreign, place

    labelled = goal["labelled"]
    if goal["placement"] is None and (why := foreign(options.target)):
        idle = [k for k, v in goal.items() if v is not None]
        _refuse_idle(f"target {options.target}", idle, f"the placement is {why}")
    state = Path(f"{os.fspath(out)}.tune")
    given = [Path(p) for p in (calibration, labelled) if p is not None]
    wanted = Goal(
        _BUDGET_S if goal["budget"] is None else goal["budget"],
        _MIN_SQNR_DB if goal["min_sqnr"] is None else goal["min_sqnr"],
        goal["max_drop"],
    )
    report = place(
        model, out, samples, options, wanted, StoredTimings(Store(state)), state,
        placement=goal["placement"] or "measured", explicit=goal["placement"] is not None,
        labelled=None if labelled is None else _labelled(Path(labelled)),
        identity=" ".join(map(digest_file, given)), told=told,
    )  # fmt: skip
    files.remove(state)
    return report


def _check_options(options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in options:
        if name not in known:
            raise ConfigError(f"{name}: unknown option{suggestion(name, known)}")


def _check_finite(numbers: Mapping[str, float | None]) -> None:
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"--{name.replace('_', '-')}: got {value}; needs a finite number")


def _check_scheme(scheme: str, given: Mapping[str, Any], device: str) -> None:
    """Refuse options that would be ignored; None is not given.

    Raises:
        ConfigError: Naming each of them, and why.
    """
    if scheme != "int8" and scheme not in _TAKES:
        raise ConfigError(f"scheme: unknown {scheme!r}{suggestion(scheme, ['int8', *_TAKES])}")
    if device != "cpu" and scheme != "fp16":
        raise ConfigError(f"device: {device} is for scheme fp16; leave it out for {scheme}")
    if scheme == "int8":
        idle = [k for k in ("budget", "min_sqnr") if given.get(k) is not None]
        if given["placement"] == "none":
            _refuse_idle("--placement none", idle, "nothing is measured and no layer is chosen")
        return
    takes, why = _TAKES[scheme]
    idle = [k for k, v in given.items() if v is not None and k not in takes | _ALWAYS]
    _refuse_idle(f"scheme {scheme}", idle, why)


def _refuse_idle(what: str, idle: Sequence[str], why: str) -> None:
    if idle:
        words = ", ".join(_FLAGS.get(k, f"--{k.replace('_', '-')}") for k in idle)
        raise ConfigError(f"{what} has no use for {words}: {why}; leave {words} out")


def _samples(path: Path) -> dict[str, Any]:
    """One array per model input, all of one length. Raises ConfigError."""
    from compressor.data.arrays import read_npz

    arrays = read_npz(path, MAX_NPZ_BYTES)
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if len(set(lengths.values())) != 1:
        found = ", ".join(f"{name} {n}" for name, n in lengths.items()) or "no arrays"
        raise ConfigError(
            f"{path}: samples per array: {found}; give one array [n, ...] per model input, "
            "all of the same length"
        )
    return arrays


def _labelled(path: Path) -> Labelled:
    """Inputs and class labels of an ``.npz``. Raises ConfigError."""
    from compressor.core.tasks import CLASSIFICATION
    from compressor.data.arrays import read_npz
    from compressor.quantization.quality import Labelled
    from compressor.quantization.samples import Samples

    arrays = read_npz(path, MAX_NPZ_BYTES)
    labels = arrays.pop("labels", None)
    lengths = {name: len(a) if a.ndim else 0 for name, a in arrays.items()}
    if labels is None or labels.ndim != 1 or set(lengths.values()) != {len(labels)}:
        found = "no `labels`" if labels is None else f"labels of shape {list(labels.shape)}"
        counts = ", ".join(f"{n} samples of {name}" for name, n in lengths.items()) or "no samples"
        raise ConfigError(
            f"{path}: needs `labels` [n] and one array [n, ...] per model input; got {found} and "
            f"{counts}"
        )
    return Labelled(Samples(arrays), labels, CLASSIFICATION)


def verify(bundle: StrPath) -> Any:
    """Check a bundle's hashes and golden outputs with this package's own verifier."""
    from compressor.runtime import verify as room

    return room.verify(Path(bundle))
