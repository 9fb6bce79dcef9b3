"""The arguments of our own networks, with their ranges and defaults; torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.core.config import Config

Channels = Annotated[int, Field(ge=1, le=65536)]
Stride = Literal[1, 2]
Stem = Literal["full", "pool", "stride"]
Activation = Literal["relu", "relu6", "hardswish"]


class Options(Config):
    """Base of the arguments of one of our own networks."""

    def concrete(self) -> Options:
        """The same options with every default that depends on another option written out.

        Raises:
            ValueError: The options contradict each other.
        """
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Options:
        self.concrete()
        return self


class ResNetOptions(Options):
    """CIFAR-style residual network of He et al. 2015: ``depth = 2 * sum(blocks) + 2``.

    Attributes:
        depth: 6n + 2 with three stages; default 20.
        width: Channels of the first stage, doubled in each further one; default 16.
        widths: Channels per stage, instead of ``width``.
        blocks: Basic blocks per stage, instead of ``depth``.
        strides: Stride of the first block of each stage; default 1, 2, 2 ...
        stem: ``full`` = 3x3 convolution; ``pool`` = the same and 2x2 max pooling; ``stride`` =
            3x3 convolution with stride 2.
        zero_init: The last BatchNorm of each block starts at zero (Goyal et al. 2017).
    """

    depth: Annotated[int, Field(ge=4, le=2000)] | None = None
    width: Channels | None = None
    widths: tuple[Channels, ...] | None = None
    blocks: tuple[Annotated[int, Field(ge=1, le=200)], ...] | None = None
    strides: tuple[Stride, ...] | None = None
    stem: Stem = "full"
    zero_init: bool = False

    def concrete(self) -> ResNetOptions:
        """Every field filled in."""
        given = [len(x) for x in (self.widths, self.blocks, self.strides) if x is not None]
        stages = given[0] if given else 3
        if stages < 1 or any(n != stages for n in given):
            raise ValueError(f"widths, blocks and strides must be equally long, got {given}")
        widths = self.widths or tuple((self.width or 16) * 2**i for i in range(stages))
        if self.width not in (None, widths[0]):
            raise ValueError(f"width {self.width} contradicts widths {list(widths)}; give one")
        depth = self.depth or (2 * sum(self.blocks) + 2 if self.blocks else 6 * stages + 2)
        if (depth - 2) % (2 * stages) and not self.blocks:
            nearest = max(1, round((depth - 2) / (2 * stages))) * 2 * stages + 2
            raise ValueError(
                f"depth {depth}: {stages} stages of two-layer blocks need depth = "
                f"{2 * stages} n + 2; nearest {nearest}"
            )
        blocks = self.blocks or ((depth - 2) // (2 * stages),) * stages
        if depth != 2 * sum(blocks) + 2:
            raise ValueError(f"depth {depth} contradicts blocks {list(blocks)}; give one")
        halving: list[Stride] = [2 for _ in range(stages - 1)]
        strides: tuple[Stride, ...] = self.strides or (1, *halving)
        return self.model_copy(
            update={
                "depth": depth,
                "width": widths[0],
                "widths": widths,
                "blocks": blocks,
                "strides": strides,
            }
        )


class MobileNetOptions(Options):
    """Inverted residuals (Sandler et al. 2018) at the scale of 28- to 96-pixel images.

    Attributes:
        width: Multiplies every channel count; the product is rounded to ``round_to``.
        widths: Output channels per stage at width 1.
        blocks: Blocks per stage.
        strides: Stride of the first block of each stage.
        expansion: Hidden channels of a block = expansion x its input; the first stage has 1.
        head: Channels of the last 1x1 convolution at width 1; 0 leaves it out.
        activation: ``relu6`` and ``relu`` fuse into int8 convolutions, ``hardswish`` does not.
        stem: As in :class:`ResNetOptions`.
        round_to: Channel counts are multiples of this.
    """

    width: Annotated[float, Field(gt=0, le=16)] = 1.0
    widths: tuple[Channels, ...] = (16, 24, 40, 80)
    blocks: tuple[Annotated[int, Field(ge=1, le=200)], ...] = (1, 2, 2, 2)
    strides: tuple[Stride, ...] = (1, 2, 2, 1)
    expansion: Annotated[int, Field(ge=1, le=32)] = 6
    head: Annotated[int, Field(ge=0, le=65536)] = 240
    activation: Activation = "relu6"
    stem: Stem = "full"
    round_to: Channels = 8

    def concrete(self) -> MobileNetOptions:
        """Checks the lengths."""
        lengths = [len(self.widths), len(self.blocks), len(self.strides)]
        if len(set(lengths)) != 1 or lengths[0] < 1:
            raise ValueError(f"widths, blocks and strides must be equally long, got {lengths}")
        return self


class LeNet5Options(Options):
    """The LeNet-5 of Caffe and of Deep Compression: 431k parameters on 1x28x28.

    Attributes:
        widths: Channels of the two convolutions.
        hidden: Units of the hidden linear layer.
        padding: Of both 5x5 convolutions; 2 makes inputs below 16 pixels possible.
    """

    widths: Annotated[tuple[Channels, ...], Field(min_length=2, max_length=2)] = (20, 50)
    hidden: Channels = 500
    padding: Annotated[int, Field(ge=0, le=2)] = 0


class LeNet300Options(Options):
    """LeNet-300-100 has no options; ``mlp`` has."""


class MLPOptions(Options):
    """Linear layers with ReLU between them, on the flattened input.

    Attributes:
        hidden: Units of the hidden layers; empty is a linear classifier.
        dropout: Probability after each hidden layer.
    """

    hidden: tuple[Channels, ...] = (256, 128)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


OPTIONS: dict[str, type[Options]] = {
    "resnet": ResNetOptions,
    "mobilenet": MobileNetOptions,
    "lenet5": LeNet5Options,
    "lenet_300_100": LeNet300Options,
    "mlp": MLPOptions,
}
