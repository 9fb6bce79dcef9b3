"""LeNet-5 as in Caffe, which Deep Compression (Han et al. 2016) prunes: LeCun et al. 1998."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.core.errors import ConfigError
from compressor.models.layers import initialise_
from compressor.models.options import LeNet5Options


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each with 2x2 max pooling; two linear layers."""

    def __init__(
        self, num_classes: int, input_shape: tuple[int, int, int], options: LeNet5Options
    ) -> None:
        super().__init__()
        channels, height, width = input_shape
        first, second = options.widths
        self.conv1 = nn.Conv2d(channels, first, 5, padding=options.padding)
        self.conv2 = nn.Conv2d(first, second, 5, padding=options.padding)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU()
        lost = 4 - 2 * options.padding  # pixels that a 5x5 convolution takes away
        sides = [((side - lost) // 2 - lost) // 2 for side in (height, width)]
        if min(sides) < 1:
            raise ConfigError(
                f"lenet5: images of {height}x{width} pixels are too small with padding "
                f"{options.padding}; give padding: 2, or images of at least 16x16"
            )
        self.fc1 = nn.Linear(second * sides[0] * sides[1], options.hidden)
        self.fc2 = nn.Linear(options.hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: normalised images [batch, channels, h, w]. Returns logits [batch, classes]."""
        x = self.pool(self.conv1(x))
        x = self.pool(self.conv2(x))
        x = self.relu(self.fc1(torch.flatten(x, 1)))
        return cast(Tensor, self.fc2(x))


def lenet5(num_classes: int, input_shape: tuple[int, int, int], **options: Any) -> LeNet5:
    """LeNet-5; ``options`` are the fields of :class:`LeNet5Options`."""
    model = LeNet5(num_classes, input_shape, LeNet5Options(**options))
    initialise_(model)
    return model
