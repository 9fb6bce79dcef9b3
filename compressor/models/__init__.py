"""Networks: our own, torchvision's and the user's; how they are built, counted and stored.

Importing this package loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from compressor.core.types import ModelSpec
from compressor.models.config import MODELS, ModelConfig, model_spec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MODELS", "ModelConfig", "build", "model_spec"]


def build(
    spec: ModelSpec,
    where: str = "model",
    *,
    seed: int | None = None,
    say: Callable[[str], None] | None = None,
) -> nn.Module:
    """A fresh network; see :func:`compressor.models.construct.build`."""
    from compressor.models.construct import build as construct

    return construct(spec, where, seed=seed, say=say)
