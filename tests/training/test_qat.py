"""Fine-tuning on quantize's grid: what it is for, and that it leaves an ordinary network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.core.errors import ConfigError
from compressor.core.types import Context, ModelSpec
from compressor.data.dataset import Dataset
from compressor.quantization.grids import Grids
from compressor.training.evaluate import evaluate
from compressor.training.loop import fit_
from compressor.training.options import QatOptions, TrainOptions
from compressor.training.qat import qat_
from tests.training.conftest import TinyNet, make_data, same, tiny_net, weights
from tests.training.int8 import CALIBRATION, artifact

MakeContext = Callable[..., Context]
GRIDS = Grids("minmax", 99.99, "auto")


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("qat") / "data"
    return make_data(folder, train=160, val=100, calibration=CALIBRATION)


def options(**changes: Any) -> QatOptions:
    return QatOptions(**{"epochs": 1, "batch_size": 16, "calibration": CALIBRATION, **changes})


def test_without_epochs_the_function_stays_and_the_norms_are_folded(
    more: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    model = tiny_net()
    model.norm.running_var.uniform_(0.5, 2)
    before = evaluate(model, more, "val")
    metrics = qat_(model, more, spec, options(epochs=0), context(), GRIDS)
    np.testing.assert_allclose(evaluate(model, more, "val"), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.norm.weight, torch.ones(6))
    assert metrics["val_score"] == metrics["val_before_finetune"]


def coarse(data: Dataset, spec: ModelSpec, ctx: Context) -> TinyNet:
    """A trained network whose head has large weights on a channel that is always 0.

    They cost nothing in float; in int8 all others are below half a step, and so 0.
    """
    model = tiny_net()
    with torch.no_grad():
        model.norm.weight[0], model.norm.bias[0] = 0.0, -1.0
    fit_(model, data, spec, TrainOptions(epochs=6, batch_size=16, lr=0.05), ctx)
    with torch.no_grad():
        model.head.weight[:, :4] = 2.2 * 64 * model.head.weight[:, 4:].abs().max()
    return model


def test_fine_tuning_repairs_what_quantization_alone_breaks(
    more: Dataset, spec: ModelSpec, context: MakeContext, tmp_path: Path
) -> None:
    model = coarse(more, spec, context("float"))
    labels = more.split("val").labels
    plain = copy.deepcopy(model)
    metrics = qat_(model, more, spec, options(epochs=8, lr=0.05), context(), GRIDS)
    right = {}
    for name, network in (("plain", plain), ("tuned", model)):
        exact, int8 = artifact(network, more, tmp_path / name)
        right[name] = [100 * float((x.argmax(axis=1) == labels).mean()) for x in (exact, int8)]
    # What the stage says of itself is what the files do.
    assert metrics["val_before_finetune"].value == pytest.approx(right["plain"][1], abs=3)
    assert metrics["val_score"].value == pytest.approx(right["tuned"][1], abs=3)
    assert right["plain"][1] <= right["plain"][0] - 10
    assert right["tuned"][1] >= right["plain"][1] + 10


def test_statistics_of_norms_stay_and_everything_else_may_learn(
    more: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    model = tiny_net()
    still = copy.deepcopy(model)
    qat_(still, more, spec, options(epochs=0), context("still"), GRIDS)
    qat_(model, more, spec, options(ema=0.9), context(), GRIDS)
    moved = {n for n, v in weights(model).items() if not np.array_equal(v, weights(still)[n])}
    # The bias of a layer with a folded norm is the layer's own.
    assert moved == {"conv.weight", "conv.bias", "head.weight", "head.bias"}


def test_zeros_of_a_pruned_network_stay_zero(
    more: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    model = tiny_net()
    with torch.no_grad():
        model.head.weight[:, ::2] = 0
    qat_(model, more, spec, options(ema=0.9), context(), GRIDS)
    assert not model.head.weight[:, ::2].any()
    assert (model.head.weight[:, 1::2] != 0).all()


class Killed(Exception):
    """Stands for whatever ends a process between two steps."""


@pytest.mark.parametrize("step", [1, 7, 10, 13, 20])
def test_killed_after_any_step_it_goes_on_to_the_same_bytes(
    step: int, more: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    """Ranges are part of what is saved: in the middle of an epoch, old weights chose them."""
    how = options(epochs=2, checkpoint_steps=3, patience=2, ema=0.9, lr=0.05)

    def run(name: str, life: int = -1) -> tuple[dict[str, np.ndarray], Any]:
        steps = 0

        def loss(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
            nonlocal steps
            steps += 1
            if steps == life:
                raise Killed
            return functional.cross_entropy(outputs, batch.labels)

        model = tiny_net()
        metrics = qat_(model, more, spec, how, context(name), GRIDS, loss)
        return weights(model), metrics

    with pytest.raises(Killed):
        run("killed", step)
    (found, metrics), (wanted, expected) = run("killed"), run("whole")
    assert same(found, wanted)
    assert metrics == expected


def test_a_network_without_norms_or_convolutions_learns_too(
    more: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(128, 8), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(functional.relu(self.one(x.flatten(1))))

    torch.manual_seed(0)
    model = Rows()
    metrics = qat_(model, more, spec, options(epochs=3, lr=0.05), context(), GRIDS)
    assert metrics["val_score"].value > metrics["val_before_finetune"].value


def test_fewer_samples_than_asked_for_are_an_error_with_both_numbers(
    more: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    with pytest.raises(ConfigError, match=r"qat.calibration: 512 samples.*has 40"):
        qat_(tiny_net(), more, spec, options(calibration=512), context(), GRIDS)


def test_bfloat16_and_decay_are_not_the_usual_ones() -> None:
    with pytest.raises(ValueError, match="precision"):
        options(precision="bf16")
    usual = QatOptions()
    assert (usual.epochs, usual.lr, usual.weight_decay) == (3, 0.01, 0.0)
    adam = QatOptions.model_validate({"optimizer": "adamw"})
    assert (adam.lr, adam.weight_decay) == (1e-4, 0.0)
