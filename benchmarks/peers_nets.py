"""Networks and images of the int8 comparison; PyTorch is imported by ``export`` alone."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TABLE = ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1",
         "vit_b_16")  # fmt: skip
# Shapes that the table does not have: shuffles, groups, dense concatenations, searched blocks.
OTHERS = ("shufflenet_v2_x1_0", "regnet_x_400mf", "mnasnet1_0", "densenet121")
CALIBRATE, MEASURE = 32, 64
INPUT = "x"
_OPSET, _SIDE = 18, 224
_BATCHES, _BATCH = 3, 8

Images = NDArray[np.float32]


def bicubic(source: int, target: int) -> NDArray[np.float64]:
    """Matrix [target, source] of PyTorch's bicubic upsampling (a = -0.75, pixel centres, clamped).

    ``matrix @ image @ matrix.T`` equals ``F.interpolate(..., mode="bicubic")``.
    """
    slope, matrix = -0.75, np.zeros((target, source))
    for row in range(target):
        place = (row + 0.5) * source / target - 0.5
        first = int(np.floor(place))
        for at in range(first - 1, first + 3):
            d = abs(place - at)
            inner = (slope + 2) * d**3 - (slope + 3) * d**2 + 1
            outer = slope * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[row, min(max(at, 0), source - 1)] += inner if d <= 1 else outer
    return matrix


def images(
    height: int = _SIDE, width: int = _SIDE, seed: int = 0, count: int = CALIBRATE
) -> tuple[Images, Images]:
    """Unit-variance upsamplings of 14x14 normal noise, [n, 3, height, width].

    Returns:
        ``count`` to calibrate and 64 others to measure.
    """
    noise = np.random.default_rng(seed).standard_normal((count + MEASURE, 3, 14, 14))
    smooth = bicubic(14, height) @ noise @ bicubic(14, width).T
    whole = (smooth / smooth.std()).astype(np.float32)
    return whole[:count], whole[count:]


def export(name: str, path: Path) -> None:
    """Write a torchvision network of random weights as ONNX, with an open batch.

    BatchNorm's statistics are the mean over three train-mode batches of 8; a Linear head of zeros
    (vit) would make every logit equal, so it is drawn anew with a standard deviation of 0.02.
    """
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative: all three batches count alike
    for layer in model.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.any():
            nn.init.normal_(layer.weight, std=0.02)
    seen = torch.from_numpy(images()[0][: _BATCHES * _BATCH])
    with torch.no_grad():
        model.train()
        for start in range(0, len(seen), _BATCH):
            model(seen[start : start + _BATCH])
        model.eval()
        beside = path.with_suffix(".part")
        torch.onnx.export(
            model, (seen[:2],), beside, dynamo=True, opset_version=_OPSET, input_names=[INPUT],
            output_names=["logits"], dynamic_shapes=({0: "batch"},), external_data=False,
        )  # fmt: skip
    os.replace(beside, path)
