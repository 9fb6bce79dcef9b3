"""Residual networks for small images: He et al. 2015 (arXiv 1512.03385), section 4.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.models.layers import conv_bn, initialise_, stem_layers
from compressor.models.options import ResNetOptions, Stem


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (projected where the shape changes)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inside, outside, 3, stride)
        self.conv2, self.bn2 = conv_bn(outside, outside, 3)
        self.relu = nn.ReLU()
        same = inside == outside and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity() if same else nn.Sequential(*conv_bn(inside, outside, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, inside, h, w] -> [batch, outside, h / stride, w / stride]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return cast(Tensor, self.relu(y + self.shortcut(x)))


class ResNet(nn.Module):
    """Stem, stages of basic blocks, global average pooling, one linear layer."""

    def __init__(
        self,
        num_classes: int,
        channels: int,
        widths: Sequence[int],
        blocks: Sequence[int],
        strides: Sequence[int],
        stem: Stem,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(*stem_layers(channels, widths[0], stem, nn.ReLU))
        layers: list[nn.Module] = []
        inside = widths[0]
        for width, count, stride in zip(widths, blocks, strides, strict=True):
            for index in range(count):
                layers.append(BasicBlock(inside, width, stride if index == 0 else 1))
                inside = width
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inside, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: normalised images [batch, channels, h, w]. Returns logits [batch, classes]."""
        x = self.pool(self.blocks(self.stem(x)))
        return cast(Tensor, self.head(torch.flatten(x, 1)))


def resnet(num_classes: int, input_shape: tuple[int, int, int], **options: Any) -> ResNet:
    """A ResNet; ``options`` are the fields of :class:`ResNetOptions`."""
    plan = ResNetOptions(**options).concrete()
    widths, blocks, strides = plan.widths or (), plan.blocks or (), plan.strides or ()
    model = ResNet(num_classes, input_shape[0], widths, blocks, strides, plan.stem)
    initialise_(model)
    if plan.zero_init:
        for block in model.blocks:
            nn.init.zeros_(cast(BasicBlock, block).bn2.weight)
    return model
