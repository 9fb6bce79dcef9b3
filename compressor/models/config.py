"""What a pipeline file may say about a network; importing this loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import ConfigDict, Field, ValidationError, model_validator

from compressor.core.config import Config
from compressor.core.errors import ConfigError, suggestion
from compressor.core.resolve import reference
from compressor.core.types import InputSpec, ModelSpec

MODELS: dict[str, str] = {
    "resnet": "compressor.models.resnet:resnet",
    "mobilenet": "compressor.models.mobilenet:mobilenet",
    "lenet5": "compressor.models.lenet:lenet5",
    "lenet_300_100": "compressor.models.mlp:lenet_300_100",
    "mlp": "compressor.models.mlp:mlp",
}

_TORCHVISION = "torchvision:"
# Given by the dataset, so a config must not repeat them.
FROM_DATA = ("num_classes", "input_shape", "input_shapes")
# Arguments of a ModelSpec that `construct.build` consumes and no factory sees.
RESERVED = ("weights", "sha256")

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


class ModelConfig(Config):
    """``model:`` of a stage: a name, or a mapping of a name and the network's own arguments.

    Attributes:
        name: One of :data:`MODELS`, ``torchvision:NAME`` or ``package.module:function``.
        weights: A ``.safetensors`` file to start from. Tensors of the classifier may have another
            number of classes; they then keep their fresh initialisation.
        sha256: Of ``weights``; compared before the file is read.

    Every other key is an argument of the network. Those of our own networks are checked here and
    their defaults written out; those of others are checked against the function when it is built.
    """

    model_config = ConfigDict(extra="allow")

    name: str
    weights: Path | None = None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _checked(self) -> ModelConfig:
        _check_name(self.name)
        _check_weights(self.weights, self.sha256)
        extra = dict(self.__pydantic_extra__ or {})
        for key in FROM_DATA:
            if key in extra:
                raise ValueError(f"{self.name}: {key} comes from the dataset; leave it out")
        self.__pydantic_extra__ = _arguments(self.name, extra)
        return self

    def factory(self) -> str:
        """``module:attribute`` of the function that makes the network."""
        if self.name.startswith(_TORCHVISION):
            return "compressor.models.torchvision:classifier"
        return reference(self.name, MODELS, "model")

    def arguments(self) -> dict[str, Any]:
        """JSON-able arguments of the factory, and the reserved ``weights`` and ``sha256``."""
        arguments = dict(self.__pydantic_extra__ or {})
        if self.name.startswith(_TORCHVISION):
            arguments["network"] = self.name.removeprefix(_TORCHVISION)
        if self.weights is not None:
            arguments["weights"] = str(self.weights)
        if self.sha256 is not None:
            arguments["sha256"] = self.sha256
        return arguments

    def externals(self) -> tuple[Path, ...]:
        """Files outside the store that the network depends on."""
        return () if self.weights is None else (self.weights,)


def _check_name(name: str) -> None:
    if name.startswith(_TORCHVISION):
        if not name.removeprefix(_TORCHVISION).isidentifier():
            raise ValueError(f"{name!r}: write torchvision:NAME, e.g. torchvision:resnet18")
        return
    try:
        reference(name, MODELS, "model")
    except ConfigError as error:
        tail = "" if ":" in name else " (or torchvision:NAME, or package.module:function)"
        raise ValueError(str(error).removeprefix("model: ") + tail) from error


def _check_weights(weights: Path | None, sha256: str | None) -> None:
    if weights is None:
        if sha256 is not None:
            raise ValueError("sha256 without weights; it is the digest of that file")
        return
    if weights.suffix != ".safetensors":
        raise ValueError(
            f"weights: {weights} is not a .safetensors file, and a pickle runs code when it is "
            "read. Convert it once, where you trust it:\n"
            "  import torch, safetensors.torch\n"
            f"  safetensors.torch.save_file(torch.load({str(weights)!r}, weights_only=True), "
            f"{str(weights.with_suffix('.safetensors'))!r})"
        )


def _arguments(name: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Arguments as JSON values; for our own networks checked and complete. Raises ValueError."""
    try:
        text = json.dumps(extra, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: arguments must be JSON values ({error})") from error
    options = OPTIONS.get(name)
    if options is None:
        arguments: dict[str, Any] = json.loads(text)
        return arguments
    try:
        return options.model_validate_json(text, strict=True).concrete().model_dump(mode="json")
    except ValidationError as error:
        known = options.model_fields
        raise ValueError("; ".join(_problem(name, row, known) for row in error.errors())) from error


def _problem(name: str, row: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """One line for one row of pydantic's report."""
    key = ".".join(str(part) for part in row["loc"])
    if row["type"] == "extra_forbidden":
        return f"{name}: unknown argument {key!r}{suggestion(key, known) or '; it takes none'}"
    message = row["msg"].removeprefix("Value error, ")
    if not key:
        return f"{name}: {message}"
    return f"{name}.{key}: {message} (got {row['input']!r})"


class DatasetLike(Protocol):
    """What a network needs to know of a dataset."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order; empty for regression."""

    @property
    def inputs(self) -> Mapping[str, InputSpec]:
        """Name to shape, in the order in which ``forward`` takes them."""

    @property
    def task(self) -> str:
        """Name of the task."""


def model_spec(config: ModelConfig, dataset: DatasetLike) -> ModelSpec:
    """What is needed to build ``config``'s network for ``dataset``."""
    return ModelSpec(
        factory=config.factory(),
        arguments=config.arguments(),
        classes=tuple(dataset.classes),
        inputs=dict(dataset.inputs),
        task=dataset.task,
    )
