"""What a checkpoint says about itself, readable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from compressor.core.config import Config
from compressor.core.errors import IntegrityError

CARD = "checkpoint.json"
WEIGHTS = "weights.safetensors"

Count = Annotated[int, Field(ge=0)]


class _Record(Config):
    model_config = ConfigDict(populate_by_name=True, strict=True)


class LayerCard(_Record):
    """Sizes of one layer, as far as its type has them.

    Attributes:
        type: Class name; compared on loading.
        inside: Input channels or features, embeddings.
        outside: Output channels or features.
        groups: Of a convolution or GroupNorm.
        shape: ``normalized_shape`` of a LayerNorm.
        heads: Of an attention.
        head: Features of one head.
        parameters: Its own, without those of layers inside it.
        macs: Multiply-accumulates of one sample.
    """

    type: str
    inside: Count | None = Field(default=None, alias="in")
    outside: Count | None = Field(default=None, alias="out")
    groups: Annotated[int, Field(ge=1)] | None = None
    shape: tuple[Count, ...] | None = None
    heads: Count | None = None
    head: Count | None = None
    parameters: Count = 0
    macs: Count = 0


class TensorCard(_Record):
    """Shape and safetensors dtype (``F32``, ``I64`` ...) of one stored tensor."""

    shape: tuple[Count, ...]
    dtype: str


class InputCard(_Record):
    """As :class:`compressor.core.types.InputSpec`."""

    shape: tuple[Count, ...]
    dtype: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class ProbeCard(_Record):
    """Outputs [batch, classes] of the network on the CPU for seeded random inputs."""

    seed: Count
    outputs: tuple[tuple[float, ...], ...]

    @model_validator(mode="after")
    def _rectangular(self) -> ProbeCard:
        if len({len(row) for row in self.outputs}) != 1:
            raise ValueError("outputs must be rows of one length")
        return self


class Card(_Record):
    """The content of ``checkpoint.json``.

    Attributes:
        version: Of this schema.
        factory: Compared with the pipeline's; never imported because it stands here.
        arguments: Of the factory.
        classes: Class names in label order.
        task: Name of the task.
        inputs: In ``forward``'s order.
        layers: Module path to sizes, in the network's order.
        tensors: Every tensor of the weights file.
        aliases: State name to the tensor that it shares.
        probe: For the comparison after loading.
        parameters: Shared ones counted once.
        macs: Of one sample.
        sha256: Of the weights file.
    """

    version: Literal[1] = Field(alias="schema")
    factory: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    task: str
    inputs: tuple[tuple[str, InputCard], ...]
    layers: dict[str, LayerCard]
    tensors: dict[str, TensorCard]
    aliases: dict[str, str]
    probe: ProbeCard
    parameters: Count
    macs: Count
    sha256: str

    def as_json(self) -> dict[str, Any]:
        """JSON-able form; :func:`read` is its inverse."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def read(folder: Path) -> Card:
    """The card of a checkpoint folder.

    Raises:
        IntegrityError: There is none, or it is not of this schema.
    """
    path = folder / CARD
    try:
        return Card.model_validate_json(path.read_bytes())
    except OSError as error:
        raise IntegrityError(f"{path}: not a checkpoint ({error.strerror})") from error
    except ValidationError as error:
        row = error.errors()[0]
        key = ".".join(str(part) for part in row["loc"])
        raise IntegrityError(f"{path}: malformed at {key or 'the top'}: {row['msg']}") from error


def summary(folder: Path) -> dict[str, Any]:
    """``parameters``, ``macs`` and ``layers`` (path to type and sizes) of a checkpoint.

    Raises:
        IntegrityError: As :func:`read`.
    """
    card = read(folder).as_json()
    return {key: card[key] for key in ("parameters", "macs", "layers")}
