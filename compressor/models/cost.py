"""Parameters and multiply-accumulates of a network, counted on one forward pass."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from compressor.core.types import ModelSpec
from compressor.models.construct import evaluating, example_inputs

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parameters(model: nn.Module) -> int:
    """Elements of all parameters, shared ones once; buffers are not parameters."""
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, spec: ModelSpec) -> int:
    """Multiply-accumulates of one sample: the sum of :func:`layer_macs`."""
    return sum(layer_macs(model, spec).values())


def layer_macs(model: nn.Module, spec: ModelSpec) -> dict[str, int]:
    """Module path to multiply-accumulates of one sample, for the layers that have weights.

    Convolution: output elements x (input channels / groups) x kernel; transposed: input elements
    x (output channels / groups) x kernel; linear: output elements x input features; attention:
    its four projections. Products without weights (attention scores), bias, normalisation and
    activations are not counted, nor is what a module computes without calling such a layer
    (functional convolutions, Swin's projections). A layer that is called twice counts twice.
    """
    counts: dict[str, int] = {}
    handles = []

    def count(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            counts[path] = counts.get(path, 0) + _layer(module, (*args, *kwargs.values()), output)

        return hook

    for path, module in model.named_modules():
        if isinstance(module, (*_CONV, *_TRANSPOSED, nn.Linear, nn.MultiheadAttention)):
            handles.append(module.register_forward_hook(count(path), with_kwargs=True))
    device = next((p.device for p in model.parameters()), None)
    try:
        with evaluating(model):
            model(*(x.to(device) for x in example_inputs(spec, 1)))
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _layer(module: nn.Module, given: tuple[Any, ...], output: Any) -> int:
    """Batch 1, so all elements are one sample's."""
    if isinstance(module, _CONV):
        inside = module.in_channels // module.groups
        return int(output.numel()) * inside * math.prod(module.kernel_size)
    if isinstance(module, _TRANSPOSED):
        outside = module.out_channels // module.groups
        return int(given[0].numel()) * outside * math.prod(module.kernel_size)
    if isinstance(module, nn.MultiheadAttention):
        # Query, key and value go to embed_dim, and as many rows as queries once more.
        return int(module.embed_dim) * sum(int(x.numel()) for x in (*given[:3], output[0]))
    assert isinstance(module, nn.Linear)
    return int(output.numel()) * module.in_features
