"""Datasets without data, and the networks that every property is tested on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from compressor.core.types import InputSpec
from compressor.models import ModelConfig, model_spec


@dataclass(frozen=True)
class Data:
    classes: tuple[str, ...]
    inputs: dict[str, InputSpec]
    task: str = "classification"


def data(shape=(3, 16, 16), classes=10, task="classification"):
    return Data(tuple(f"c{i}" for i in range(classes)), {"image": InputSpec(shape)}, task)


def spec(model, shape=(3, 16, 16), classes=10, task="classification"):
    return model_spec(ModelConfig.model_validate(model), data(shape, classes, task))


NETWORKS = [
    {"name": "resnet", "depth": 8, "width": 4},
    {"name": "resnet", "widths": [4, 6], "blocks": [2, 1], "strides": [1, 2], "stem": "pool"},
    {"name": "resnet", "depth": 8, "width": 4, "stem": "stride", "zero_init": True},
    {"name": "mobilenet", "width": 0.25, "expansion": 2},
    {"name": "mobilenet", "width": 0.5, "activation": "hardswish", "stem": "stride", "head": 0},
    {"name": "mobilenet", "width": 0.5, "activation": "relu", "stem": "pool"},
    {"name": "lenet5", "widths": [4, 6], "hidden": 10},
    {"name": "lenet5", "padding": 2, "hidden": 10},
    "lenet_300_100",
    {"name": "mlp", "hidden": [12, 9], "dropout": 0.5},
    {"name": "mlp", "hidden": []},
    {"name": "tests.models.toys:tiny", "width": 6},
    "tests.models.toys:tied",
    "tests.models.toys:attention",
]


def name(model):
    if isinstance(model, str):
        return model
    return ",".join([model["name"], *(f"{k}={v}" for k, v in model.items() if k != "name")])


def run(model, x):
    with torch.no_grad():
        return model.eval()(x)


def settle(model, seed=5):
    """Give a network the look of a trained one: no tensor at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(noise + 0.5 if "var" in key else value + 0.2 * (noise - 0.5))
        else:
            value.fill_(7)
    return model
