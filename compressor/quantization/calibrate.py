"""Streaming calibration: activation ranges in bounded memory, from the caller's data alone.

The first pass adds ReduceMin, ReduceMax and ReduceSum to the graph, so that three numbers per
sample and tensor leave the runtime, which keeps the tensors alive until it has reduced them.
Methods with histograms make a second pass that fetches whole tensors. Either takes as many samples
at a time, and the second as many tensors at a time, as fit a fixed budget.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from compressor.core.errors import ConfigError, StageError
from compressor.quantization.graph import Graph, opset
from compressor.quantization.observers import (
    HISTOGRAM_METHODS,
    Extremes,
    Histogram,
    Method,
    Range,
    has_bins,
)
from compressor.quantization.watch import Feed, Watch

Feeds = Callable[[], Iterable[Feed]]
_BUDGET = 256 << 20  # bytes of activations that may be alive at once
_MARK = "__calibration__"


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the data said.

    Attributes:
        ranges: Tensor name to range; a tensor that held NaN or Inf has none.
        samples: How many samples were read.
        warnings: One sentence each, naming the tensor or the input.
        broken: Tensors that held NaN or Inf.
        sizes: Tensor name to the most elements that one sample of it had.
    """

    ranges: Mapping[str, Range]
    samples: int
    warnings: tuple[str, ...]
    broken: frozenset[str]
    sizes: Mapping[str, int] = field(default_factory=dict, repr=False)


def calibrate(
    graph: Graph,
    tensors: Sequence[str],
    feeds: Feeds,
    *,
    method: Method = "minmax",
    percentile: float = 99.99,
    threads: int = 1,
    budget: int = _BUDGET,
    progress: Callable[[int], None] = lambda samples: None,
) -> Calibration:
    """Find the range of each tensor.

    Args:
        graph: Prepared float model.
        tensors: Names of activations or graph inputs.
        feeds: Called once per pass; gives the same batches each time, of any sizes: input name
            to array ``[b, ...]``.
        method: ``minmax``; ``moving``, the mean of the samples' extremes; ``percentile``;
            ``entropy``, least KL divergence; ``mse``, least squared error.
        percentile: Share of the values that ``percentile`` keeps, in percent.
        threads: Of the runtime.
        budget: Bytes of those tensors that may be alive at once, if one sample of one fits.
        progress: Told how many samples the running pass has read.

    Raises:
        ConfigError: No samples, or samples with NaN or Inf.
    """
    return calibrations(graph, tensors, feeds, (method,), percentile=percentile, threads=threads,
                        budget=budget, progress=progress)[method]  # fmt: skip


def calibrations(
    graph: Graph,
    tensors: Sequence[str],
    feeds: Feeds,
    methods: Collection[Method],
    *,
    percentile: float = 99.99,
    threads: int = 1,
    budget: int = _BUDGET,
    progress: Callable[[int], None] = lambda samples: None,
) -> dict[Method, Calibration]:
    """:func:`calibrate` by several methods, in the passes of the dearest of them."""
    watch = Watch()
    wanted = list(dict.fromkeys(tensors))
    extremes, sizes = _first_pass(graph, wanted, feeds, threads, budget, watch, progress)
    if watch.samples == 0:
        raise ConfigError("calibration: 0 samples; give at least 1 (16 or more are sensible)")
    good = {name: extremes[name] for name in wanted if extremes[name].finite}
    seen: dict[str, Histogram] = {}
    if HISTOGRAM_METHODS.intersection(methods):
        seen = {n: Histogram(e.range()) for n, e in good.items() if has_bins(e.range())}
        _second_pass(graph, seen, sizes, feeds, threads, budget, progress)

    def ranges(method: Method) -> dict[str, Range]:
        if method == "moving":
            return {name: e.average() for name, e in good.items()}
        found = {name: e.range() for name, e in good.items()}
        if method in HISTOGRAM_METHODS:
            found.update({n: h.range(method, percentile) for n, h in seen.items()})
        return found

    warnings = (*watch.warnings(), *_warnings(extremes))
    broken = frozenset({*wanted} - {*good})
    return {m: Calibration(ranges(m), watch.samples, warnings, broken, sizes) for m in methods}


def _warnings(extremes: Mapping[str, Extremes]) -> Iterator[str]:
    for name, seen in extremes.items():
        if not seen.finite:
            yield f"{name}: holds NaN or Inf; layers that touch it stay float"
        elif seen.low == seen.high == 0:
            yield f"{name}: never active (0 for every sample)"
        elif seen.low == seen.high:
            yield f"{name}: constant ({seen.low:g} for every sample)"


def _first_pass(
    graph: Graph,
    tensors: Sequence[str],
    feeds: Feeds,
    threads: int,
    budget: int,
    watch: Watch,
    progress: Callable[[int], None],
) -> tuple[dict[str, Extremes], dict[str, int]]:
    """Extremes of every tensor, and the most elements that one sample of it has."""
    extremes = {name: Extremes() for name in tensors}
    sizes = dict.fromkeys(tensors, 0)
    wanted = [f"{_MARK}{k}_{i}" for i in range(len(tensors)) for k in "lhsn"]
    whole = _fixed_batch(graph) is not None
    with _Runner(_with_reductions(graph, tensors), threads) as run:
        for feed in feeds():
            count, start = watch.look(feed), 0
            while start < count:
                # One sample first: it says how many fit.
                held = 4 * sum(sizes.values())
                rows = count if whole else max(1, budget // held) if held else 1
                part = {k: a[start : start + rows] for k, a in feed.items()}
                _take_(extremes, sizes, run(wanted, part), min(rows, count - start))
                start += rows
            if count:
                progress(watch.samples)
    return extremes, sizes


def _take_(
    extremes: Mapping[str, Extremes], sizes: dict[str, int], got: list[NDArray[Any]], count: int
) -> None:
    """Add the reductions of ``count`` samples to what is known of each tensor."""
    for i, (name, seen) in enumerate(extremes.items()):
        low, high, total, size = got[4 * i : 4 * i + 4]
        seen.update(low.reshape(-1), high.reshape(-1), total.reshape(-1))
        sizes[name] = max(sizes[name], -(-int(size) // count))


def _second_pass(
    graph: Graph,
    seen: Mapping[str, Histogram],
    sizes: Mapping[str, int],
    feeds: Feeds,
    threads: int,
    budget: int,
    progress: Callable[[int], None],
) -> None:
    for chunk, rows in chunks({n: sizes[n] for n in seen}, budget, _fixed_batch(graph)):
        with _Runner(_with_outputs(graph, chunk), threads) as run:
            done = 0
            for feed in feeds():
                count = len(next(iter(feed.values())))
                for start in range(0, count, rows or max(1, count)):
                    stop = start + (rows or count)
                    part = {k: a[start:stop] for k, a in feed.items()}
                    for name, values in zip(chunk, run(chunk, part), strict=True):
                        seen[name].update(values)
                done += count
                progress(done)


def chunks(
    sizes: Mapping[str, int], budget: int, fixed: int | None
) -> Iterator[tuple[list[str], int]]:
    """Split tensors so that ``rows`` samples of each chunk fit ``budget`` bytes of float32.

    Fewer samples at a time come first, as they cost nothing; more passes only when one sample
    (or the model's fixed batch) of all tensors is too large. ``rows`` 0: the feed's own batch.
    """
    least = fixed or 1
    chunk: list[str] = []
    held = 0
    for name, size in sizes.items():
        if chunk and (held + size) * 4 * least > budget:
            yield chunk, 0 if fixed else max(1, budget // max(1, held * 4))
            chunk, held = [], 0
        chunk.append(name)
        held += size
    if chunk:
        yield chunk, 0 if fixed else max(1, budget // max(1, held * 4))


def _fixed_batch(graph: Graph) -> int | None:
    fixed = [s[0] for s in map(graph.shape, graph.inputs) if s and s[0]]
    return fixed[0] if fixed else None


def _with_outputs(graph: Graph, names: Sequence[str]) -> ModelProto:
    """A shallow copy whose outputs are float activations ``names``."""
    model = ModelProto()
    model.CopyFrom(graph.model)
    have = set(graph.inputs)
    del model.graph.output[:]
    for name in names:
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        if name in have:  # an output must be made by a node
            alias = f"{_MARK}{name}"
            model.graph.node.append(helper.make_node("Identity", [name], [alias]))
            info.name = alias
        model.graph.output.append(info)
    return model


def _with_reductions(graph: Graph, names: Sequence[str]) -> ModelProto:
    """Outputs per tensor: minimum, maximum and sum of each sample, and the count of elements."""
    model = _with_outputs(graph, ())
    proto, version = model.graph, opset(model)
    for i, name in enumerate(names):
        rank = len(graph.shape(name) or ())
        axes = list(range(1, rank))
        for letter, op in zip("lhs", ("ReduceMin", "ReduceMax", "ReduceSum"), strict=True):
            inputs: list[str] = [name]
            attributes: dict[str, Any] = {"keepdims": 0}
            if axes and (version >= 18 or op == "ReduceSum"):
                tensor = numpy_helper.from_array(np.array(axes, np.int64), f"{_MARK}{letter}a{i}")
                proto.initializer.append(tensor)
                inputs.append(tensor.name)
            elif axes:
                attributes["axes"] = axes
            output = f"{_MARK}{letter}_{i}"
            proto.node.append(helper.make_node(op, inputs, [output], **attributes))
            proto.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
        output = f"{_MARK}n_{i}"
        proto.node.append(helper.make_node("Size", [name], [output]))
        proto.output.append(helper.make_tensor_value_info(output, TensorProto.INT64, []))
    return model


class _Runner:
    """A session of a model that is not on disk, for the duration of a with block."""

    def __init__(self, model: ModelProto, threads: int) -> None:
        self._model, self._threads = model, threads

    def __enter__(self) -> _Runner:
        from compressor.runtime.session import open_session

        with tempfile.TemporaryDirectory(prefix="compressor-") as folder:
            path = Path(folder, "calibration.onnx")
            onnx.save(self._model, path)
            self._session = open_session(path, threads=self._threads)
        self._known = {o.name for o in self._session.get_outputs()}
        return self

    def __exit__(self, *_: object) -> None:
        del self._session

    def __call__(self, names: Sequence[str], feed: Feed) -> list[NDArray[Any]]:
        wanted = [n if n in self._known else f"{_MARK}{n}" for n in names]
        try:
            return list(self._session.run(wanted, dict(feed)))
        except Exception as error:  # the runtime's errors share no ancestor with ours
            shapes = {k: (str(a.dtype), a.shape) for k, a in feed.items()}
            line = (str(error).strip().splitlines() or [""])[0][:300]
            raise StageError(f"calibration: the model failed on {shapes}: {line}") from error
