"""Batch normalisation statistics for a network whose weights have changed."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from compressor.data.batches import batches
from compressor.data.dataset import Dataset
from compressor.training.tensors import to_tensors


def recalibrate_(
    model: nn.Module,
    data: Dataset,
    *,
    count: int = 100,
    batch_size: int = 128,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> int:
    """Measure running means and variances anew on training samples, without augmentation.

    After surgery the old statistics describe sums that no longer exist. They are reset, then
    averaged over ``count`` batches with equal weight (momentum None) instead of the usual moving
    average, which would remember the last ten. Weights do not change. Deterministic on the CPU.

    Args:
        model: Ends in evaluation mode on the CPU.
        data: ``train`` is read, in the order of ``seed``, once at most.
        count: Batches; 0 leaves the statistics as they are.
        batch_size: Samples per batch; at most the split's size.
        seed: Which samples.
        device: Where to run.

    Returns:
        Batches that were read; 0 where nothing has statistics.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    model.eval()
    split = data.split("train")
    if not norms or count == 0 or len(split) < 2:  # one sample has no variance
        return 0
    model.to(device)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    size = max(2, min(batch_size, len(split)))
    done = 0
    try:
        with torch.no_grad():
            # Incomplete batches would weigh as much as full ones.
            for batch in batches(split, data.inputs, size, seed=seed, shuffle=True, drop_last=True):
                model(*to_tensors(batch, data.inputs, torch.device(device)).inputs)
                done += 1
                if done == count:
                    break
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.to("cpu").eval()
    return done
