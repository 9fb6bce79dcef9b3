"""Inverted residuals for small images: MobileNetV2, Sandler et al. 2018 (arXiv 1801.04381)."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from compressor.models.layers import ACTIVATIONS, conv_bn, initialise_, stem_layers
from compressor.models.options import Activation, MobileNetOptions


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 (linear); a shortcut where the shape stays."""

    def __init__(
        self, inside: int, outside: int, stride: int, expansion: int, activation: Activation
    ) -> None:
        super().__init__()
        hidden, act = inside * expansion, ACTIVATIONS[activation]
        expand = [*conv_bn(inside, hidden, 1), act()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            act(),
            *conv_bn(hidden, outside, 1),
        )
        self.residual = inside == outside and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, inside, h, w] -> [batch, outside, h / stride, w / stride]."""
        y = cast(Tensor, self.layers(x))
        return x + y if self.residual else y


class MobileNet(nn.Module):
    """Stem, inverted residuals, a 1x1 convolution, global average pooling, one linear layer."""

    def __init__(self, num_classes: int, channels: int, options: MobileNetOptions) -> None:
        super().__init__()
        act = ACTIVATIONS[options.activation]
        inside = _rounded(options.widths[0] * options.width, options.round_to)
        self.stem = nn.Sequential(*stem_layers(channels, inside, options.stem, act))
        layers: list[nn.Module] = []
        rows = zip(options.widths, options.blocks, options.strides, strict=True)
        for stage, (base, count, first) in enumerate(rows):
            outside = _rounded(base * options.width, options.round_to)
            expansion = options.expansion if stage else 1
            for index in range(count):
                stride = first if index == 0 else 1
                layers.append(
                    InvertedResidual(inside, outside, stride, expansion, options.activation)
                )
                inside = outside
        self.blocks = nn.Sequential(*layers)
        self.last = nn.Sequential()
        if options.head:
            # As in the paper, the head is not made thinner than at width 1.
            head = _rounded(options.head * max(1.0, options.width), options.round_to)
            self.last = nn.Sequential(*conv_bn(inside, head, 1), act())
            inside = head
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inside, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """x: normalised images [batch, channels, h, w]. Returns logits [batch, classes]."""
        x = self.pool(self.last(self.blocks(self.stem(x))))
        return cast(Tensor, self.head(torch.flatten(x, 1)))


def _rounded(channels: float, multiple: int) -> int:
    """Nearest multiple, at least one, and not more than 10 % below ``channels``."""
    near = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return near + multiple if near < 0.9 * channels else near


def mobilenet(num_classes: int, input_shape: tuple[int, int, int], **options: Any) -> MobileNet:
    """A MobileNet; ``options`` are the fields of :class:`MobileNetOptions`."""
    model = MobileNet(num_classes, input_shape[0], MobileNetOptions(**options))
    initialise_(model)
    return model
