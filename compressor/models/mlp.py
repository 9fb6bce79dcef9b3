"""Fully connected networks on any flattened input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from compressor.models.options import MLPOptions


def mlp(num_classes: int, input_shape: Sequence[int], **options: Any) -> nn.Sequential:
    """Linear layers with ReLU; ``options`` are the fields of :class:`MLPOptions`.

    Takes [batch, *input_shape], returns logits [batch, classes].
    """
    plan = MLPOptions(**options)
    layers: list[nn.Module] = [nn.Flatten()]
    inside = math.prod(input_shape)
    for width in plan.hidden:
        linear = nn.Linear(inside, width)
        nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        if plan.dropout:
            layers.append(nn.Dropout(plan.dropout))
        inside = width
    return nn.Sequential(*layers, nn.Linear(inside, num_classes))


def lenet_300_100(num_classes: int, input_shape: Sequence[int]) -> nn.Sequential:
    """LeNet-300-100 (LeCun et al. 1998): 267k parameters on 1x28x28."""
    return mlp(num_classes, input_shape, hidden=(300, 100))
