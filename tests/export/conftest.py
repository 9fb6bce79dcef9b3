"""One small network, exported once per form for the whole session: an export takes seconds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor.core.types import InputSpec, ModelSpec
from compressor.export.lower import LowerReport, lower

PLANTED = 6  # weights that must be flushed, see `small_net`
SPEC = ModelSpec(
    factory="tests.export.conftest:small_net",
    arguments={},
    classes=("äpfel", "birnen", "kirschen", "pflaumen"),
    inputs={"image": InputSpec((2, 8, 8), "uint8", (0.3, 0.6), (0.2, 0.4))},
)


def small_net() -> nn.Module:
    """Conv + BN, residual, hard-swish, pooling, linear; trained-looking statistics; denormals."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
            self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
            self.act, self.drop = nn.Hardswish(), nn.Dropout(0.5)
            self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            x = self.act(x + self.block(x))
            return self.head(self.drop(torch.flatten(self.pool(x), 1)))

    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        net.head.weight[:, 0] = torch.tensor([1e-40, -1e-40, 1e-35, -9e-31])
        net.block[0].weight[0, 0, 0, :2] = 1e-42
        net.head.weight[0, 1] = 2e-30  # small, and kept
    return net


def images(n: int = 70) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(1).integers(0, 256, (n, 2, 8, 8), dtype=np.uint8)}


@dataclass
class Exported:
    model: nn.Module
    path: Path
    report: LowerReport
    before: dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Exported:
    torch.set_num_threads(1)
    model = small_net().train().to(memory_format=torch.channels_last)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path_factory.mktemp("float") / "model.onnx"
    report = lower(model, SPEC, path, metadata={"compressor.source": "abc"})
    return Exported(model, path, report, before)


@pytest.fixture(scope="session")
def exported_uint8(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uint8") / "model.onnx"
    lower(small_net(), SPEC, path, input="uint8")
    return path
