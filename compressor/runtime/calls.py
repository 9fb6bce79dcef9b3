"""One timed call of a model: the session, its inputs in place, nothing else inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.core.errors import ConfigError
from compressor.core.types import TimingProtocol
from compressor.runtime.predict import as_input
from compressor.runtime.session import input_shapes, open_session

Call = Callable[[], object]
_FEED_BATCHES = 16


def open_call(path: Path, protocol: TimingProtocol, feed: Mapping[str, Any] | None) -> Call:
    """A function of no arguments that runs the model once on the next batch of the feed.

    On CPU it is ``session.run`` on NumPy arrays, what a Python program pays; on CUDA inputs and
    outputs stay on the device and the call ends when the outputs are there. TF32 is as ONNX
    Runtime deploys it (on), so that an fp32 baseline is not slowed down.
    """
    session = open_session(path, provider=protocol.provider, threads=protocol.threads, tf32=True)
    batches = _batches(session, path, protocol, feed)
    state = iter(_cycle(len(batches)))
    if protocol.provider == "cpu":
        return lambda: session.run(None, batches[next(state)])
    bindings = [_bind(session, batch, protocol.provider) for batch in batches]

    def call() -> None:
        binding = bindings[next(state)]
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call


def first_batch(
    path: Path, protocol: TimingProtocol, feed: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The first batch that :func:`open_call` would run."""
    session = open_session(path, provider=protocol.provider, threads=protocol.threads)
    return _batches(session, path, protocol, feed)[0]


def _cycle(n: int) -> Iterator[int]:
    while True:
        yield from range(n)


def _bind(session: Any, batch: Mapping[str, Any], device: str) -> Any:
    import onnxruntime

    binding = session.io_binding()
    for name, array in batch.items():
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
        binding.bind_ortvalue_input(name, value)
    for node in session.get_outputs():
        binding.bind_output(node.name, device, 0)
    return binding


def _batches(
    session: Any, path: Path, protocol: TimingProtocol, feed: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """At most 16 distinct batches in the model's own types."""
    shapes = input_shapes(session, protocol.batch, str(path))
    kinds = {node.name: node.type for node in session.get_inputs()}
    if feed is None:
        rng = np.random.default_rng(protocol.seed)
        return [
            {n: as_input(_random(rng, s, kinds[n]), kinds[n]) for n, s in shapes.items()}
            for _ in range(_FEED_BATCHES)
        ]
    if set(feed) != set(shapes):
        raise ConfigError(f"{path}: inputs are {sorted(shapes)}, the feed gives {sorted(feed)}")
    count = min(_FEED_BATCHES, *(len(a) // protocol.batch for a in feed.values()))
    batches = []
    for i in range(count):
        rows = slice(i * protocol.batch, (i + 1) * protocol.batch)
        batches.append({n: as_input(np.asarray(a[rows]), kinds[n]) for n, a in feed.items()})
    wrong = {n: a.shape for n, a in batches[0].items() if a.shape != shapes[n]}
    if wrong:
        raise ConfigError(f"{path}: the feed's shapes are {wrong}, the model takes {shapes}")
    return batches


def _random(rng: np.random.Generator, shape: tuple[int, ...], kind: str) -> Any:
    """Values in the range that images have, or zeros and ones for integer inputs."""
    if kind == "tensor(uint8)":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if "int" in kind or "bool" in kind:
        return rng.integers(0, 2, shape, dtype=np.int64)
    return rng.random(shape, dtype=np.float32)
