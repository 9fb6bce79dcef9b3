"""What a pipeline file may say about a network; importing this loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import ConfigDict, Field, model_validator

from compressor.core.config import UNKNOWN, Config, Invalid, Loc, validate
from compressor.core.errors import ConfigError
from compressor.core.resolve import reference
from compressor.core.types import InputSpec, ModelSpec
from compressor.models.options import OPTIONS

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
        return validate(options, extra).concrete().model_dump(mode="json")
    except Invalid as invalid:
        raise ValueError("; ".join(_problem(name, *row) for row in invalid.problems)) from invalid


def _problem(name: str, loc: Loc, text: str) -> str:
    """One finding in an argument, in a line of its own network's."""
    key = ".".join(map(str, loc))
    if text.startswith(UNKNOWN):
        return f"{name}: unknown argument {key!r}{text.removeprefix(UNKNOWN) or '; it takes none'}"
    return f"{name}.{key}: {text}" if key else f"{name}: {text}"


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
