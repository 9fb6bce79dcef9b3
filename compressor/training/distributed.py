"""Several processes under ``torchrun``: torch.distributed, and nothing of our own.

Every process runs the same program; each takes its share of every batch (data.batches shards
without state), gradients are averaged, and process 0 validates and saves. Started without
``torchrun``, everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compressor.core.errors import ConfigError, MissingError


@dataclass(frozen=True, slots=True)
class World:
    """This process among ``size``; ``rank`` 0 is the one that saves."""

    device: torch.device
    rank: int = 0
    size: int = 1

    def share(self, batch_size: int) -> int:
        """Samples per step of one process. Raises ConfigError unless it divides evenly."""
        if batch_size % self.size:
            raise ConfigError(
                f"train.batch_size: {batch_size} cannot be shared evenly by {self.size} processes; "
                f"use {max(1, batch_size // self.size) * self.size}"
            )
        return batch_size // self.size


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the process group that ``torchrun`` announced, or be alone.

    Args:
        device: ``cpu`` (gloo) or ``cuda`` (nccl, one GPU per process).

    Raises:
        MissingError: ``cuda`` without a CUDA device.
    """
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise MissingError("device cuda: torch sees no CUDA device; use --device cpu")
    if not (dist.is_available() and (dist.is_initialized() or dist.is_torchelastic_launched())):
        yield World(torch.device(device))
        return
    ours = not dist.is_initialized()
    here = torch.device(device)
    if here.type == "cuda":
        here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(here)
    if ours:
        dist.init_process_group("nccl" if here.type == "cuda" else "gloo")
    try:
        yield World(here, dist.get_rank(), dist.get_world_size())
    finally:
        if ours:
            dist.destroy_process_group()


def averaging(model: nn.Module, world: World) -> nn.Module:
    """The model, wrapped so that ``backward`` averages gradients over all processes."""
    if world.size == 1:
        return model
    return DistributedDataParallel(
        model, device_ids=[world.device] if world.device.type == "cuda" else None
    )


def spread_(tensors: Mapping[str, Tensor], world: World) -> None:
    """Overwrite every tensor by process 0's."""
    if world.size > 1:
        for value in tensors.values():
            whole = value.detach().contiguous()
            dist.broadcast(whole, 0)
            if whole.data_ptr() != value.data_ptr():
                value.detach().copy_(whole)


def agree(number: float, world: World) -> float:
    """Process 0's number."""
    if world.size == 1:
        return number
    value = torch.tensor(number, dtype=torch.float64, device=world.device)
    dist.broadcast(value, 0)
    return value.item()
