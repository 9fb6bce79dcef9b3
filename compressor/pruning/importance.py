"""How much a group's channels matter, comparable between groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressor.pruning.groups import NORMS, TRANSPOSED, Group


def l2(model: nn.Module, group: Group) -> NDArray[np.float64]:
    """Squared L2 norm per channel, averaged over the group's layers, divided by its own mean.

    The division is what makes a wide and a narrow layer comparable. A group whose weights are
    all zero scores 0 everywhere. Best or within noise of the best of 16 criteria in
    PruningBench (arXiv 2406.12315), without data or gradients.

    Returns:
        float64 [group.width], mean 1 (or 0), each entry at least 0.
    """
    parts = []
    for member in group.members:
        norms = _norms(model.get_submodule(member.layer), member.side)
        if norms is not None:
            parts.append(norms[member.where].sum(axis=1))
    total = np.mean(parts, axis=0)
    mean = total.mean()
    return np.asarray(total / mean if mean > 0 else np.zeros(group.width), dtype=np.float64)


def _norms(module: Any, side: str) -> NDArray[np.float64] | None:
    """float64 [channels on that axis]; None for layers that only pass channels on."""
    if isinstance(module, nn.PReLU) or module.weight is None:
        return None
    weight = module.weight.detach().to("cpu", torch.float64)
    if isinstance(module, NORMS):
        return np.asarray(weight.square().numpy())
    axis = 0 if (side == "out") != isinstance(module, TRANSPOSED) else 1
    return np.asarray(weight.transpose(0, axis).flatten(1).square().sum(1).numpy())


def uniform(group: Group, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random scores: the control that a criterion must beat."""
    return rng.random(group.width)


def scores(
    model: nn.Module, groups: Sequence[Group], importance: str, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Score of each channel of each group that may be cut; ``importance``: ``l2`` or ``random``."""
    rng = np.random.default_rng(seed)
    return {
        g.name: uniform(g, rng) if importance == "random" else l2(model, g)
        for g in groups
        if not g.whole
    }
