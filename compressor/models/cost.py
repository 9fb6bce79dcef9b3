"""Parameters and multiply-accumulates of a network, counted on one forward pass."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

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
    """Module path to multiply-accumulates of one sample, for convolutions and linear layers.

    Convolution: output elements x (input channels / groups) x kernel; transposed: input elements
    x (output channels / groups) x kernel; linear: output elements x input features. Bias,
    normalisation and activations are not counted, nor is what a module computes without calling
    such a layer (attention, functional convolutions). A layer that is called twice counts twice.
    """
    counts: dict[str, int] = {}
    handles = []

    def count(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            counts[path] = counts.get(path, 0) + _layer(module, inputs[0], output)

        return hook

    for path, module in model.named_modules():
        if isinstance(module, (*_CONV, *_TRANSPOSED, nn.Linear)):
            handles.append(module.register_forward_hook(count(path)))
    device = next((p.device for p in model.parameters()), None)
    try:
        with evaluating(model):
            model(*(x.to(device) for x in example_inputs(spec, 1)))
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _layer(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Batch 1, so all elements are one sample's."""
    if isinstance(module, _CONV):
        return y.numel() * (module.in_channels // module.groups) * math.prod(module.kernel_size)
    if isinstance(module, _TRANSPOSED):
        return x.numel() * (module.out_channels // module.groups) * math.prod(module.kernel_size)
    assert isinstance(module, nn.Linear)
    return y.numel() * module.in_features
