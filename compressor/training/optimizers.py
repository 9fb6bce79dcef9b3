"""Optimizers, who is decayed, and the moving average of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compressor.core.errors import ConfigError
from compressor.training.options import TrainOptions

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights with decay, norms and biases without.

    Decaying a norm's scale or a bias moves the function and regularises nothing (Goyal 2017,
    arXiv 1706.02677). Whatever has fewer than two dimensions counts as one of them, so that
    norms and scales of a user's own are covered.
    """
    exempt = {
        id(p)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
        if isinstance(module, _NORMS) or name.endswith("bias") or p.ndim < 2
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if id(p) not in exempt]
    free = [p for p in trained if id(p) in exempt]
    groups = (
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0},
    )
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """The configured optimizer over ``decay_groups``.

    Raises:
        ConfigError: The model has no trainable parameter.
    """
    groups = decay_groups(model, options.weight_decay)
    if not groups:
        raise ConfigError(
            "train: the model has no parameter with requires_grad; unfreeze some or set epochs: 0"
        )
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.lr)
    return torch.optim.SGD(
        groups, lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0
    )


def set_lr_(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def slots(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's tensors (momentum, moments, step counts) as ``INDEX.SLOT``."""
    found: dict[str, Tensor] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        for name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{index}.{name}"] = value
    return found


def restore_slots_(optimizer: torch.optim.Optimizer, saved: Mapping[str, Tensor]) -> None:
    """Put tensors from :func:`slots` back, laid out in memory like their parameter."""
    parameters = _parameters(optimizer)
    for key, value in saved.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        # A scalar is AdamW's step count, which it keeps on the CPU.
        slot = torch.empty_like(parameter) if value.shape == parameter.shape else value.clone()
        optimizer.state[parameter][name] = slot.detach().copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class Average:
    """Exponential moving average of a state dict, norm statistics included.

    ``average = d * average + (1 - d) * value`` with ``d = min(decay, (1 + step) / (10 + step))``,
    so that the first steps, far from the goal, are forgotten soon. Integers are copied.
    """

    def __init__(self, live: Mapping[str, Tensor], decay: float) -> None:
        """Start at the present values of ``live``, whose tensors must change in place only."""
        self.tensors = {name: value.detach().clone() for name, value in live.items()}
        self._decay = decay
        floats = [n for n, v in live.items() if v.is_floating_point()]
        self._mine = [self.tensors[n] for n in floats]
        self._theirs = [live[n].detach() for n in floats]
        self._whole = [(self.tensors[n], v) for n, v in live.items() if n not in set(floats)]

    @torch.no_grad()
    def update_(self, step: int) -> None:
        """Take the present values in; ``step`` counts from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mine, self._theirs, 1.0 - decay)
        for mine, theirs in self._whole:
            mine.copy_(theirs)
