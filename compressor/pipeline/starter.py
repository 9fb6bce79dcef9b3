"""What ``compressor init`` writes: a pipeline that runs as it is, and two functions to replace."""

from __future__ import annotations

_PIPELINE = """\
# compressor plan pipeline.yaml    shows what would run
# compressor run pipeline.yaml     runs it
name: mine
seed: 0
stages:
  data:
    uses: data
    with: {dataset: "dataset:shapes", calibration: 128}
  teacher:
    uses: train
    with: {model: {name: "nets:tiny_cnn", width: 32}, epochs: 6}
  student:
    uses: distill
    in: {teacher: teacher}
    with: {model: {name: "nets:tiny_cnn", width: 16}, epochs: 8}
  pruned:
    uses: prune
    in: {model: student, teacher: teacher}
    with: {method: channels, target_macs: 0.6, finetune: {epochs: 4}}
  baseline: {uses: export, in: {model: teacher}}
  plain:    {uses: export, in: {model: student}}
  fp32:     {uses: export, in: {model: pruned}}
  int8:     {uses: quantize, in: {model: fp32}, with: {calibration: 128, placement: none}}
  bench:
    uses: bench
    in: {baseline: baseline, reference: plain, candidates: [fp32, int8]}
  bundle:
    uses: bundle
    in: {timings: bench, candidates: [fp32, int8], teacher: teacher}
    with: {max_drop: 2.0}
gates:
  - {metric: bundle.accuracy, versus: teacher.accuracy, max_drop: 4.0}
  - {metric: bundle.bytes, max: 60_000}
"""

_NETS = '''\
"""Your network: a function that returns an nn.Module. Replace the body by your own."""

from torch import nn


def tiny_cnn(num_classes: int, input_shape: tuple[int, int, int], width: int = 16) -> nn.Module:
    """Two convolutions and a linear layer; input [batch, C, H, W], output logits."""
    channels = input_shape[0]
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, num_classes),
    )
'''

_DATASET = '''\
"""Your data: a function that returns a RawDataset. Replace the body by your own loading."""

import numpy as np

from compressor.core.types import InputSpec
from compressor.data.dataset import RawDataset, Split


def shapes(n: int = 1500, seed: int = 0) -> RawDataset:
    """Noisy squares, crosses and rings of random size and place, 1x24x24 uint8."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    rows, columns = np.mgrid[0:24, 0:24]
    images = rng.integers(0, 90, (n, 1, 24, 24)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        x, y = rng.integers(7, 17, 2)
        size = rng.integers(3, 7)
        dx, dy = abs(columns - x), abs(rows - y)
        square = np.maximum(dx, dy) <= size
        cross = (np.minimum(dx, dy) <= 1) & (np.maximum(dx, dy) <= size)
        ring = abs(np.hypot(dx, dy) - size) <= 1
        image[0][[square, cross, ring][label]] += 120
    split = Split({"image": images}, labels.astype(np.int64))
    inputs = {"image": InputSpec((1, 24, 24), "uint8")}
    classes = ("square", "cross", "ring")
    return RawDataset("shapes", "classification", classes, inputs, {"all": split})
'''

_README = """\
# A compressor project

- `nets.py`: your network. `dataset.py`: your data. `pipeline.yaml`: what to do with them.
- `compressor plan pipeline.yaml` shows what would run; it names the code that the file imports.
- `compressor run pipeline.yaml` runs it; a second run takes everything from `.compressor/`.
- `compressor verify runs/mine/latest/bundle` checks the result, here or on the device.
- `compressor baseline accept runs/mine/latest baseline` keeps it; commit `baseline/` and let CI
  call `compressor gate runs/mine/latest --baseline baseline`.
"""

FILES = {
    "pipeline.yaml": _PIPELINE,
    "nets.py": _NETS,
    "dataset.py": _DATASET,
    "README.md": _README,
}
