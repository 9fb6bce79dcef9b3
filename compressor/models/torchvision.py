"""Classification networks of torchvision, fitted to the dataset's channels and classes."""

from __future__ import annotations

from typing import Any

from torch import nn

from compressor.core.errors import ConfigError, MissingError, suggestion

# Built without auxiliary classifiers: those return tuples while training.
_WITH_AUXILIARY = {"googlenet", "inception_v3"}


def classifier(
    network: str, num_classes: int, input_shape: tuple[int, int, int], **arguments: Any
) -> nn.Module:
    """``torchvision.models.NETWORK`` with fresh weights.

    Args:
        network: As in ``torchvision.models``, e.g. ``resnet18``.
        num_classes: Outputs.
        input_shape: Channels, height, width. With other than 3 channels the first convolution is
            replaced by one that takes them, initialised with the same deviation.
        arguments: Passed on.

    Raises:
        MissingError: torchvision is not installed.
        ConfigError: No such classification network.
    """
    try:
        from torchvision import models
    except ImportError as error:
        raise MissingError(
            f'torchvision:{network} needs torchvision; `pip install "compressor[train]"` ({error})'
        ) from error
    known = models.list_models(module=models)
    if network not in known:
        raise ConfigError(f"torchvision:{network}: unknown{suggestion(network, known)}")
    if network in _WITH_AUXILIARY:
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    if network.startswith("vit_"):
        arguments = {"image_size": input_shape[1], **arguments}
    model: nn.Module = models.get_model(network, weights=None, num_classes=num_classes, **arguments)
    if input_shape[0] != 3:
        _take_channels_(model, network, input_shape[0])
    return model


def _take_channels_(model: nn.Module, network: str, channels: int) -> None:
    """Replace the first convolution by one for ``channels`` input channels."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _like(module, channels))
            return
    raise ConfigError(
        f"torchvision:{network} takes 3 channels, the dataset has {channels}, and it has no "
        "convolution that could be replaced; repeat the channel in the dataset"
    )


def _like(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    fresh = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]  # tuples of two in a Conv2d
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    nn.init.normal_(fresh.weight, std=float(conv.weight.detach().std()))
    return fresh
