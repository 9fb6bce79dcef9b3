"""Pieces that our own networks share. All of them export, prune and fuse in int8."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from compressor.models.options import Activation, Stem

ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
}


def conv_bn(
    inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution without bias that keeps the size (at stride 1), and its BatchNorm."""
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outside)


def stem_layers(
    channels: int, width: int, stem: Stem, activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    """3x3 convolution, BatchNorm, activation; halved by pooling or by stride where asked.

    A body at half resolution with more channels reaches more accuracy per CPU-second than a thin
    one at full resolution.
    """
    layers = [*conv_bn(channels, width, 3, 2 if stem == "stride" else 1), activation()]
    return [*layers, nn.MaxPool2d(2)] if stem == "pool" else layers


def initialise_(model: nn.Module) -> None:
    """He initialisation (fan out) of convolutions; BatchNorm 1 and 0. Uses torch's global RNG."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
