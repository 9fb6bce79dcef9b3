"""What the training loop costs beside a bare PyTorch loop, per optimizer step.

    python benchmarks/loop_overhead.py [--short] [--json FILE]

Both train the same network on the same batches from the same start; at the end their weights are
compared bit by bit, so that both are known to have done the same work; if they differ, the exit
code is 1. A round runs each of them, and the bare loop a second time as an A/A control, in random
order; what counts is the median time from one step's end to the next one's inside an epoch, so
validation and checkpoints are left out. On the CPU: a GPU's steps end later than their calls.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compressor.core.environment import machine
from compressor.core.types import Context, InputSpec
from compressor.data import dataset
from compressor.data.batches import Augment, batches
from compressor.data.dataset import Dataset, Split
from compressor.models import ModelConfig, build, model_spec
from compressor.stats.ratios import ratio
from compressor.testing import context
from compressor.training.loop import fit_, steps_per_epoch, total_steps
from compressor.training.optimizers import make_optimizer, set_lr_
from compressor.training.options import TrainOptions
from compressor.training.schedules import lr_factor, warmup_steps

Weights = dict[str, torch.Tensor]


def make_data(folder: Path, samples: int) -> Dataset:
    """Random images of 1x28x28 with random labels: the time of a step does not depend on them."""
    rng = np.random.default_rng(0)

    def split(n: int) -> Split:
        images = rng.integers(0, 256, (n, 1, 28, 28)).astype(np.uint8)
        return Split({"image": images}, rng.integers(0, 10, n), np.arange(n, dtype=np.uint64))

    return dataset.save(
        folder,
        name="noise",
        task="classification",
        classes=tuple("0123456789"),
        inputs={"image": InputSpec((1, 28, 28), "uint8", (0.5,), (0.3,))},
        splits={"train": split(samples), "val": split(64)},
        duplicates={"train_test": 0, "within_train": 0},
    )


def bare(
    model: nn.Module, data: Dataset, options: TrainOptions, tick: Callable[[], None]
) -> Weights:
    """The loop that one would write by hand, with the same schedule, batches and augmentation."""
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    model.to(memory_format=layout).train()
    optimizer = make_optimizer(model, options)
    split, step = data.split("train"), 0
    total, per_epoch = total_steps(data, options), steps_per_epoch(data, options)
    warmup = warmup_steps(total, per_epoch, options.warmup_epochs)
    for epoch in range(options.epochs):
        for batch in batches(
            split, data.inputs, options.batch_size, epoch=epoch, shuffle=True,
            augment=options.augment, drop_last=True,
        ):  # fmt: skip
            set_lr_(optimizer, options.lr * lr_factor(step, total, warmup))
            images = torch.from_numpy(batch.inputs["image"]).contiguous(memory_format=layout)
            loss = nn.functional.cross_entropy(model(images), torch.from_numpy(batch.labels))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            tick()
    return {n: v.contiguous() for n, v in model.state_dict().items()}


def ours(
    model: nn.Module, data: Dataset, options: TrainOptions, ctx: Context, tick: Callable[[], None]
) -> Weights:
    """The same through ``fit_``."""
    spec = model_spec(ModelConfig(name="resnet"), data)
    fit_(model, data, spec, options, ctx, after_step=lambda step: tick())
    return dict(model.state_dict())


def timed(run: Callable[[Callable[[], None]], Weights], per_epoch: int) -> tuple[float, Weights]:
    """Median milliseconds between the ends of two steps of one epoch, and the weights."""
    stamps: list[int] = []
    weights = run(lambda: stamps.append(time.perf_counter_ns()))
    # The first epoch warms up; the first step of each epoch pays for what lies between epochs.
    gaps = [
        stamps[i] - stamps[i - 1] for i in range(per_epoch + 1, len(stamps)) if i % per_epoch != 0
    ]
    return float(np.median(gaps)) / 1e6, weights


def equal(first: Weights, second: Weights) -> bool:
    """Bit by bit, by name."""
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All rounds, and what follows from them."""
    data = make_data(folder / "data", args.batch * args.steps)
    options = TrainOptions(
        epochs=3, batch_size=args.batch, augment=Augment(pad_crop=2, flip=True), lr=0.01
    )
    config = ModelConfig.model_validate({"name": "resnet", "depth": 8, "width": args.width})
    spec = model_spec(config, data)
    torch.set_num_threads(args.threads)
    rounds: dict[str, list[float]] = {"fit_": [], "bare": [], "bare again": []}
    order, final = random.Random(0), {}
    for number in range(args.rounds):
        for name in order.sample(list(rounds), len(rounds)):
            model = build(spec, seed=0)
            if name == "fit_":
                ctx = context(folder / f"round-{number}", threads=args.threads)
                run = partial(ours, model, data, options, ctx)
            else:
                run = partial(bare, model, data, options)
            ms, weights = timed(run, args.steps)
            rounds[name].append(ms)
            final[name] = weights
    same = equal(final["fit_"], final["bare"]) and equal(final["bare again"], final["bare"])
    pairs = {"overhead": ("fit_", "bare"), "control": ("bare again", "bare")}
    found = {k: ratio(rounds[a], rounds[b]) for k, (a, b) in pairs.items()}
    return {
        "what": "milliseconds per step, fit_ over bare loop",
        "settings": {k: v for k, v in vars(args).items() if k != "json"},
        "machine": machine(),
        "rounds_ms": rounds,
        **{k: {"value": r.value, "low": r.low, "high": r.high} for k, r in found.items()},
        "same_weights": same,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write JSON if asked. 1 if the loops did not do the same work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=40, help="per epoch; each run has 3 epochs")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--short", action="store_true", help="only see whether it works")
    parser.add_argument("--json", type=Path, help="write the record here")
    args = parser.parse_args(arguments)
    if args.short:
        args.rounds, args.steps, args.batch, args.width = 3, 4, 16, 4
    with tempfile.TemporaryDirectory() as folder:
        record = measure(args, Path(folder))
    for name, times in record["rounds_ms"].items():
        print(f"{name:12} {np.median(times):8.3f} ms/step")
    for name in ("overhead", "control"):
        r = record[name]
        print(f"{name:12} {r['value']:.4f} x, 95 % interval {r['low']:.4f} to {r['high']:.4f}")
    print("same weights after all steps:", "yes" if record["same_weights"] else "NO")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1, default=str) + "\n")
    return 0 if record["same_weights"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
