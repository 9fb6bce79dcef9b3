"""From NumPy batches to tensors on the device, and seeds for what torch draws itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.data.batches import Batch

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """One batch on the device.

    Attributes:
        inputs: In the order in which ``forward`` takes them, normalised, [b, ...] each.
        labels: [b], int64 classes or float32 values.
        mixed: With mixup, second labels [b] and the weight of the first label [b] in 0..1.
    """

    inputs: tuple[Tensor, ...]
    labels: Tensor
    mixed: tuple[Tensor, Tensor] | None = None


def to_tensors(
    batch: Batch, names: Iterable[str], device: torch.device, channels_last: bool = False
) -> TensorBatch:
    """Share the arrays' memory on the CPU, copy them to CUDA; images may become NHWC in memory."""
    inputs = tuple(torch.from_numpy(batch.inputs[name]).to(device) for name in names)
    if channels_last:
        inputs = tuple(
            x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs
        )
    labels = torch.from_numpy(batch.labels).to(device)
    if batch.mixed is None:
        return TensorBatch(inputs, labels)
    second, weight = batch.mixed
    mixed = (
        torch.from_numpy(second).to(device),
        torch.from_numpy(weight).to(device, torch.float32),
    )
    return TensorBatch(inputs, labels, mixed)


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A 32-bit seed for one step of one process; neighbours are unrelated.

    Torch's CPU generator reads the low 32 bits only, so the parts are mixed (splitmix64) instead
    of being placed side by side.
    """
    word = 0
    for part in (seed, step, rank):
        word = (word + part + 0x9E3779B97F4A7C15) & _MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
        word ^= word >> 31
    return word >> 32


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's global generators inside, and give the caller's state back afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(step_seed(seed, 0))
        yield


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` CPU threads inside; sums are split by it, so it decides bytes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
