"""Networks with every rule of fake quantization in them, and what the true int8 file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from compressor.core.types import ModelSpec
from compressor.data.dataset import Dataset, as_float
from compressor.export.lower import lower
from compressor.quantization.plain import Options, quantize
from compressor.runtime.session import open_session

CALIBRATION = 40


class Residual(nn.Module):
    """Stem and pooling, a residual sum, a depthwise convolution with Relu6, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(8, affine=False)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8, eps=1e-3)
        self.two = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(functional.relu(self.norm(self.stem(x))), 2)
        y = self.norm1(self.one(x))
        y += x
        y = functional.relu(y, inplace=True)
        z = functional.relu6(self.norm2(self.deep(y)))
        x = functional.relu(self.two(torch.cat([y, z], 1)))
        return self.head(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


class Gated(nn.Module):
    """Squeeze and excitation, hard-swish, a mean over the image, two linear layers, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish(inplace=True)
        )
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 12, 3, padding=1)
        self.classes = nn.Sequential(
            nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(16, 3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        gate = functional.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        x = x * torch.sigmoid(self.excite(gate))
        return self.classes(functional.relu(self.last(x)).mean([2, 3]))


class Pooled(nn.Module):
    """No Relu before the pooling, one behind it; the output is a convolution's."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(functional.max_pool2d(self.one(x), 2))
        return torch.flatten(functional.avg_pool2d(self.two(x), 1), 1)


NETS = {"residual": Residual, "gated": Gated, "pooled": Pooled}


def network(name: str, seed: int = 0) -> nn.Module:
    """A seeded network whose norms have statistics, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.2, 3.0)
                if module.weight is not None:
                    module.weight.data.uniform_(0.5, 1.5)
                    module.bias.data.normal_(0, 0.3)
    return model.eval()


def spec_of(data: Dataset) -> ModelSpec:
    return ModelSpec("tests.training.int8:Residual", {}, data.classes, data.inputs, data.task)


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    return open_session(path).run(None, {"image": images})[0]


def artifact(
    model: nn.Module, data: Dataset, folder: Path, bits: str | int = "auto", method: str = "minmax"
) -> tuple[np.ndarray, np.ndarray]:
    """Float and int8 logits on val of the files that export and quantize make."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = spec_of(data)
    lower(model, spec, folder / "fp32.onnx")
    samples = data.split("calibration").inputs["image"][:CALIBRATION]
    calibration = {"image": as_float(samples, data.inputs["image"])}
    options = Options(weight_bits=bits, method=method)
    quantize(folder / "fp32.onnx", folder / "int8.onnx", calibration, options)
    images = as_float(data.split("val").inputs["image"], data.inputs["image"])
    return outputs(folder / "fp32.onnx", images), outputs(folder / "int8.onnx", images)


def sqnr(exact: np.ndarray, found: np.ndarray) -> float:
    wide = exact.astype(np.float64)
    return float(10 * np.log10((wide**2).sum() / ((wide - found) ** 2).sum()))
