"""Networks as a user would write them, good and bad ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Tiny(nn.Module):
    """Every kind of layer that pruning narrows: grouped, transposed, normalised, raw parameters."""

    def __init__(self, num_classes, channels, width):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.act = nn.PReLU(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.group = nn.GroupNorm(2, width)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.norm = nn.LayerNorm(width)
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.act(self.bn(self.conv(x)))
        x = self.up(self.group(self.depthwise(x))).mean((2, 3))
        return self.head(self.norm(x) * self.scale)


def tiny(num_classes, input_shape, width=8):
    return Tiny(num_classes, input_shape[0], width)


class Tied(nn.Module):
    """One weight matrix under two names."""

    def __init__(self, num_classes, inside, width):
        super().__init__()
        self.first = nn.Linear(inside, width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.third.weight = self.second.weight
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = torch.relu(self.first(torch.flatten(x, 1)))
        return self.head(torch.relu(self.third(torch.relu(self.second(x)))))


def tied(num_classes, input_shape, width=6):
    inside = input_shape[0] * input_shape[1] * input_shape[2]
    return Tied(num_classes, inside, width)


class Two(nn.Module):
    """Two named inputs, taken in the dataset's order."""

    def __init__(self, shapes):
        super().__init__()
        self.image = nn.Linear(shapes["image"][-1], 4)
        self.vector = nn.Linear(shapes["vector"][0], 4)

    def forward(self, image, vector):
        return self.image(image.mean((1, 2))) + self.vector(vector)


def two(input_shapes):
    return Two(input_shapes)


class Bad(nn.Module):
    def __init__(self, num_classes, input_shape, fault):
        super().__init__()
        self.fault = fault
        self.flat = input_shape[0] * input_shape[1] * input_shape[2]
        self.head = nn.Linear(self.flat, 7 if fault == "classes" else num_classes)
        self.bn = nn.BatchNorm1d(self.flat, track_running_stats=fault != "statistics")

    def forward(self, x):
        x = torch.flatten(x, 1)
        if self.fault == "view":
            x = x.view(-1)[: self.flat].view(1, -1)
        if self.fault == "strict view":
            x = x.view(1, self.flat)
        if self.fault == "statistics":
            x = self.bn(x)
        if self.fault == "mean":
            x = x - x.mean(0, keepdim=True)
        if self.fault == "dropout":
            x = F.dropout(x, 0.5)
        y = self.head(x)
        if self.fault == "softmax":
            y = torch.softmax(y, 0)
        if self.fault == "tuple":
            return y, x
        if self.fault == "nan":
            return y / 0
        if self.fault == "one dimension":
            return y[:, 0]
        return y


def bad(num_classes, input_shape, fault):
    return Bad(num_classes, input_shape, fault)


def raises(num_classes):
    raise RuntimeError("no such thing")


def no_module():
    return 3


def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(num_classes))


def attention(num_classes, input_shape):
    return Attention(num_classes, input_shape[-1])


class Attention(nn.Module):
    def __init__(self, num_classes, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = x[:, 0]
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
