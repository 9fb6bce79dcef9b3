"""The sizes of layers, read from a pruned network and given to a fresh one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # BatchNorm, SyncBatchNorm and InstanceNorm

from compressor.core.errors import IntegrityError
from compressor.models.card import LayerCard

# Class to {field of LayerCard: attribute}; the only attributes that a file can set.
_SIZES: tuple[tuple[type[nn.Module], dict[str, str]], ...] = (
    (
        nn.modules.conv._ConvNd,
        {"inside": "in_channels", "outside": "out_channels", "groups": "groups"},
    ),
    (nn.Linear, {"inside": "in_features", "outside": "out_features"}),
    (nn.Bilinear, {"outside": "out_features"}),
    (_NormBase, {"outside": "num_features"}),
    (nn.GroupNorm, {"outside": "num_channels", "groups": "num_groups"}),
    (nn.LayerNorm, {"shape": "normalized_shape"}),
    (nn.RMSNorm, {"shape": "normalized_shape"}),
    (nn.PReLU, {"outside": "num_parameters"}),
    (nn.Embedding, {"inside": "num_embeddings", "outside": "embedding_dim"}),
    (nn.MultiheadAttention, {"outside": "embed_dim", "heads": "num_heads", "head": "head_dim"}),
)

_DTYPES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def dtype_name(tensor: Tensor) -> str:
    """As safetensors writes it."""
    return _DTYPES.get(tensor.dtype, str(tensor.dtype))


def _attributes(module: nn.Module) -> dict[str, str]:
    return next((names for kind, names in _SIZES if isinstance(module, kind)), {})


def layer_sizes(model: nn.Module) -> dict[str, LayerCard]:
    """Module path to sizes, for every layer that has sizes of its own; MACs are left at 0."""
    layers = {}
    for path, module in model.named_modules():
        names = _attributes(module)
        if names:
            sizes: dict[str, Any] = {field: getattr(module, name) for field, name in names.items()}
            if "shape" in sizes:
                sizes["shape"] = tuple(sizes["shape"])
            own = sum(p.numel() for p in module.parameters(recurse=False))
            layers[path] = LayerCard(type=type(module).__name__, parameters=own, **sizes)
    return layers


def resize_(
    model: nn.Module,
    layers: Mapping[str, LayerCard],
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
) -> None:
    """Give ``model``'s layers the recorded sizes and its tensors the shapes of ``tensors``.

    Args:
        model: Fresh from its factory.
        layers: Module path to sizes; the same layers of the same types as in ``model``.
        tensors: The state to come; only names, shapes and dtypes are used.
        aliases: State name to the name in ``tensors`` whose tensor it shares.

    Raises:
        IntegrityError: Another set of layers, types or tensors than ``model``'s.
    """
    own = layer_sizes(model)
    _equal_names("layer", {*layers}, {*own})
    for path, card in layers.items():
        if card.type != own[path].type:
            raise IntegrityError(f"layer {path}: a {card.type}, the factory makes {own[path].type}")
        module = model.get_submodule(path)
        for field, attribute in _attributes(module).items():
            value = getattr(card, field)
            if value is None:
                raise IntegrityError(f"layer {path}: no {attribute} recorded")
            setattr(module, attribute, value)
    state = model.state_dict(keep_vars=True)
    _equal_names("tensor", {*tensors, *aliases}, {*state})
    for name, value in tensors.items():
        if state[name].dtype != value.dtype:
            raise IntegrityError(
                f"tensor {name}: {dtype_name(value)}, the factory makes {dtype_name(state[name])}"
            )
        if state[name].shape != value.shape:
            _replace_(model, name, _empty_like(state[name], value))
    # Shared parameters stay shared, whichever of them was resized.
    for name, source in aliases.items():
        if source not in tensors:
            raise IntegrityError(f"tensor {name}: shares {source!r}, which is not stored")
        shared = model.get_submodule(source.rpartition(".")[0])
        _replace_(model, name, getattr(shared, source.rpartition(".")[2]))


def _empty_like(old: Tensor, value: Tensor) -> Tensor:
    empty = torch.empty(value.shape, dtype=value.dtype)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(empty, requires_grad=old.requires_grad)
    return empty


def _replace_(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, tensor)


def _equal_names(kind: str, found: set[str], wanted: set[str]) -> None:
    if extra := sorted(found - wanted):
        raise IntegrityError(f"{kind} {extra[0]} is recorded, and the factory makes none such")
    if missing := sorted(wanted - found):
        raise IntegrityError(f"the factory makes {kind} {missing[0]}, which is not recorded")
