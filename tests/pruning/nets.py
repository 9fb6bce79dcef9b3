"""Small networks, one for each way in which channels can be coupled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compressor.models.lenet import lenet5
from compressor.models.mlp import mlp
from compressor.models.mobilenet import mobilenet
from compressor.models.resnet import resnet


class Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.short: nn.Module = nn.Identity()
        if inside != outside:
            self.short = nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.short(x))


class SmallResNet(nn.Module):
    """Residual groups; widths[0] is the stem's."""

    def __init__(self, widths: tuple[int, ...] = (16, 24), classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, widths[0], 3, padding=1)
        pairs = zip((widths[0], *widths), widths, strict=False)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in pairs))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Concat(nn.Module):
    """Two branches concatenated, normalised together, as in Fire modules and DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 16, 1)
        self.b = nn.Conv2d(1, 24, 3, padding=1)
        self.norm = nn.BatchNorm2d(40)
        self.c = nn.Conv2d(40, 16, 3, padding=1)
        self.head = nn.Linear(56, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(torch.cat([self.a(x), self.b(x)], 1)))
        z = torch.cat([y, torch.relu(self.c(y))], 1)
        return self.head(z.mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze and excitation, hardswish, PReLU, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.slope = nn.PReLU(16)
        self.down = nn.Conv2d(16, 8, 1)
        self.up = nn.Conv2d(8, 16, 1)
        self.grow = nn.ConvTranspose2d(16, 24, 2, stride=2)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slope(self.conv(x))
        scale = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
        return self.head(nn.functional.hardswish(self.grow(y * scale)).mean((2, 3)))


class SharedSlope(nn.Module):
    """PReLU with one slope for all channels: nothing to cut there, and nothing to save."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 16, 3, padding=1)
        self.slope = nn.PReLU()
        self.b = nn.Conv2d(16, 24, 3, padding=1)
        self.other = nn.PReLU()
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.b(self.slope(self.a(x)))).mean((2, 3)))


class Shuffle(nn.Module):
    """Channel shuffle between two convolutions: no trace of coupling sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 3, padding=1)
        self.mixed = nn.Conv2d(16, 16, 3, padding=1)
        self.free = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.free(torch.relu(self.mixed(y)))).mean((2, 3)))


class Guarded(nn.Module):
    """Everything that must stay whole, beside one group that may be cut (``free``)."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(4, 4, 1)  # added to the network's own input
        self.grouped = nn.Conv2d(4, 16, 1, groups=4)
        self.twice = nn.Conv2d(16, 16, 3, padding=1)
        self.normed = nn.Conv2d(16, 16, 1)
        self.norm = nn.GroupNorm(4, 16)
        self.free = nn.Conv2d(16, 16, 1)
        self.fixed = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(self.inside(x) + x)
        y = torch.relu(self.twice(torch.relu(self.twice(y))))
        y = torch.relu(self.norm(self.normed(y)))
        y = self.fixed(torch.relu(self.free(y)))
        return self.head(y.view(-1, 8 * 16))


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 16, 3)
        self.helper = nn.Linear(16, 4)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x).mean((2, 3))
        return self.head(y) + (self.helper(y) if self.training else 0)


class ResidualSum(nn.Module):
    """A concatenation added to one convolution: two groups that are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 8, 1)
        self.b = nn.Conv2d(1, 8, 1)
        self.c = nn.Conv2d(1, 16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((torch.cat([self.a(x), self.b(x)], 1) + self.c(x)).mean((2, 3)))


def _small_resnet() -> nn.Module:
    return resnet(4, (1, 16, 16), depth=8, width=16)


def _small_mobilenet() -> nn.Module:
    return mobilenet(
        4,
        (1, 16, 16),
        widths=(8, 16, 24),
        blocks=(1, 1, 2),
        strides=(1, 2, 1),
        expansion=2,
        head=32,
    )


def _lenet() -> nn.Module:
    return lenet5(4, (1, 28, 28), widths=(16, 24), hidden=32)


def _pooled_resnet() -> nn.Module:
    return resnet(4, (1, 16, 16), widths=(8, 16), blocks=(1, 1), strides=(1, 2), stem="pool")


def _mlp() -> nn.Module:
    return mlp(4, (1, 8, 8), hidden=(48, 24))


# Name to (network, shape of one sample).
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (SmallResNet, (1, 8, 8)),
    "concat": (Concat, (1, 8, 8)),
    "squeeze": (Squeeze, (1, 8, 8)),
    "shared slope": (SharedSlope, (1, 8, 8)),
    "resnet": (_small_resnet, (1, 16, 16)),
    "mobilenet": (_small_mobilenet, (1, 16, 16)),
    "lenet5": (_lenet, (1, 28, 28)),
    "mlp": (_mlp, (1, 8, 8)),
    "pooled stem": (_pooled_resnet, (1, 16, 16)),
}
TORCHVISION = {"resnet18": 64, "mobilenet_v2": 64, "squeezenet1_1": 64}


def torchvision_net(name: str, **arguments: Any) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(weights=None, num_classes=4, **arguments)


def make(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network in evaluation mode with statistics that are not trivial, and its example."""
    from compressor.pruning.surgery import scramble_

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in NETS:
            factory, shape = NETS[name]
            model = factory()
        else:
            model, shape = torchvision_net(name), (3, TORCHVISION[name], TORCHVISION[name])
        example = torch.randn(2, *shape)
    scramble_(model, seed)
    return model.eval(), (example,)
