"""Which PyTorch calls become int8, by the rules of ``quantization.select`` for ONNX operators.

By the name under which a call reaches a ``TorchFunctionMode``: ``x + y``, ``torch.add`` and
``x.add_`` differ only in that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
LAYERS = CONVOLUTIONS | {"linear"}
# Relu and Clip vanish into the quantized range of what is before them.
FOLDING = frozenset(
    {"relu", "relu_", "relu6", "clamp", "clamp_", "clip", "clip_", "hardtanh", "hardtanh_"}
)
_DROPOUT = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
                      "feature_dropout", "feature_alpha_dropout"})  # fmt: skip
_SIMPLE = frozenset(
    {f"{stem}{end}" for stem in ("add", "mul") for end in ("", "_")}
    | {f"__{way}{stem}__" for stem in ("add", "mul") for way in ("", "r", "i")}
    | {"cat", "concat", "concatenate", "leaky_relu", "leaky_relu_", "sigmoid", "sigmoid_"}
    | {"hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "silu"}
    | {f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)}
)
# Int8 only where an int8 call reads the result.
_ONLY_INSIDE = frozenset({"sigmoid", "sigmoid_"})
# Move values and keep scale and zero point.
PASSING = frozenset(
    {"flatten", "reshape", "view", "view_as", "squeeze", "unsqueeze", "transpose", "permute"}
    | {"swapaxes", "moveaxis", "contiguous", "expand", "expand_as", "repeat", "tile", "narrow"}
    | {"chunk", "split", "unbind", "__getitem__", "select", "to", "float", "clone", "detach"}
    | {f"{under}max_pool{n}d{end}" for under in ("", "_") for n in (1, 2, 3)
       for end in ("", "_with_indices")}
)  # fmt: skip
# Ask for a property and read no value.
SILENT = frozenset(
    {"__get__", "size", "dim", "ndimension", "numel", "nelement", "element_size", "stride"}
    | {"storage_offset", "is_contiguous", "is_floating_point", "is_complex", "get_device"}
    | {"__len__", "type", "data_ptr", "requires_grad_", "register_hook", "__set__"}
)


def tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, those in lists (``torch.cat``) included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (x for x in value if isinstance(x, Tensor))


def mapped(values: Sequence[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Arguments with every tensor changed, those in lists included."""
    return [
        change(v) if isinstance(v, Tensor)
        else type(v)(change(x) if isinstance(x, Tensor) else x for x in v)
        if type(v) in (list, tuple) else v
        for v in values
    ]  # fmt: skip


def arithmetic(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether the call has an int8 kernel with a range of its own, given an int8 input."""
    if name in _DROPOUT:  # not in the exported graph; whoever comes after reads the same integers
        return True
    if name == "mean":
        dims = named.get("dim", args[1] if len(args) > 1 else None)
        image = isinstance(args[0], Tensor) and args[0].ndim == 4
        return image and isinstance(dims, list | tuple) and sorted(d % 4 for d in dims) == [2, 3]
    return name in _SIMPLE


def only_inside(name: str) -> bool:
    """Whether the result is quantized for int8 readers alone."""
    return name in _ONLY_INSIDE


def keeps_grid(name: str) -> bool:
    """Whether the result counts as on the grid of its input: dropout, which training alone has."""
    return name in _DROPOUT


def folds(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> bool:
    """Whether the call is a Relu or a Clip that a range with 0 in it expresses."""
    if name not in FOLDING:
        return False
    low, high = {"hardtanh": (-1.0, 1.0), "hardtanh_": (-1.0, 1.0)}.get(name, (None, None))
    given = [*args[1:3], None, None]
    if name.startswith(("clamp", "clip", "hardtanh")):
        low = _first(given[0], named.get("min"), named.get("min_val"), low)
        high = _first(given[1], named.get("max"), named.get("max_val"), high)
    numbers = all(x is None or isinstance(x, int | float) for x in (low, high))
    return numbers and (low is None or low <= 0) and (high is None or high >= 0)


def _first(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)


def is_activation(value: Any) -> bool:
    """Whether an argument has values to quantize: float32, not a single number."""
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.ndim > 0
