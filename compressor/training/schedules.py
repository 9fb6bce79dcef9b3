"""Learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math


def warmup_steps(total: int, per_epoch: int, warmup_epochs: float) -> int:
    """Steps of linear warm-up: as asked, but at most half of the run."""
    return min(round(warmup_epochs * per_epoch), total // 2)


def lr_factor(step: int, total: int, warmup: int, schedule: str = "cosine") -> float:
    """What the peak rate is multiplied by, in (0, 1].

    Rises linearly, is 1 at ``step == warmup``, then follows half a cosine that would reach 0 at
    ``step == total``; the last step is just above, so that no step is wasted.

    Args:
        step: Steps taken before this one, ``0 <= step < total``.
        total: Steps of the run, at least 1.
        warmup: Steps of warm-up, below ``total``.
        schedule: ``cosine``, or ``constant`` after the warm-up.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))
