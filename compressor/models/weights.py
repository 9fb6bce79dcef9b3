"""Starting from a file of weights: hashed, read as data, and fitted with a reason for each gap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.hashing import digest_bytes
from compressor.core.types import ModelSpec

# Auxiliary classifiers of torchvision's GoogLeNet and Inception, which we build without.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


def load_weights_(
    model: nn.Module,
    spec: ModelSpec,
    where: str = "model",
    say: Callable[[str], None] | None = None,
) -> None:
    """Load the file that ``spec.arguments`` names as ``weights``, if any, into ``model``.

    A tensor of the classifier whose first dimension is another number of classes keeps its fresh
    initialisation: that is how one starts from ImageNet. ``say`` is told which these are, because
    a layer inside that happens to be as wide as there are classes looks the same.

    Raises:
        ConfigError: No such file, or weights of another network.
        IntegrityError: Its sha256 is not the given one, or it is no safetensors file.
    """
    name = spec.arguments.get("weights")
    if not name:
        return
    stored = _read(Path(str(name)), spec.arguments.get("sha256"), where)
    own = model.state_dict()
    extra = [k for k in stored if k not in own and not k.startswith(_AUXILIARY)]
    # Files from before 2018 have no step counters, and evaluation does not use them.
    missing = [k for k in own if k not in stored and not k.endswith("num_batches_tracked")]
    if extra or missing:
        raise ConfigError(
            f"{where}: {name} holds another network: "
            + "; ".join(
                f"{len(keys)} {word}, e.g. {keys[0]}"
                for word, keys in (("not in the network", extra), ("missing", missing))
                if keys
            )
        )
    fresh = []
    fitting = model.state_dict()  # with the versions that some modules ask for
    for key, value in stored.items():
        if key not in own:
            continue
        if _is_head(own[key], value, spec):
            fresh.append(f"{key} {list(own[key].shape)} (the file has {list(value.shape)})")
            continue
        if own[key].shape != value.shape:
            raise ConfigError(
                f"{where}: {name}: {key} has shape {tuple(value.shape)}, the network "
                f"{tuple(own[key].shape)}" + _advice(own[key], value)
            )
        fitting[key] = value
    model.load_state_dict(fitting)
    if fresh and say is not None:
        say(f"{where}: not taken from {name}, trained from fresh values: {', '.join(fresh)}")


def _read(path: Path, sha256: object, where: str) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: weights: {path}: {error.strerror}") from error
    if sha256 is not None and (found := digest_bytes(data)) != sha256:
        raise IntegrityError(f"{where}: weights: {path} has sha256 {found}, expected {sha256}")
    try:
        # Its own order changes from run to run; messages should not.
        return dict(sorted(safetensors.torch.load(data).items()))
    except SafetensorError as error:
        raise IntegrityError(f"{where}: weights: {path} is no safetensors file: {error}") from error


def _is_head(own: Tensor, stored: Tensor, spec: ModelSpec) -> bool:
    """Differs in the first dimension alone, which in the network is the number of classes."""
    return (
        own.ndim == stored.ndim
        and own.ndim > 0
        and own.shape[0] != stored.shape[0]
        and own.shape[0] == (len(spec.classes) or 1)
        and own.shape[1:] == stored.shape[1:]
    )


def _advice(own: Tensor, stored: Tensor) -> str:
    same = own.ndim == stored.ndim == 4 and own.shape[0] == stored.shape[0]
    if same and own.shape[2:] == stored.shape[2:] and stored.shape[1] == 3:
        return (
            f"; the weights are for 3 channels, the dataset has {own.shape[1]}: leave weights out"
        )
    return "" if own.dtype == torch.float32 else f" ({own.dtype})"
