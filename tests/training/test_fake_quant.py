"""Fake quantization is what the int8 file computes, and gradients pass straight through."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compressor.core.types import ModelSpec
from compressor.data.batches import batches
from compressor.data.dataset import Dataset
from compressor.quantization.grids import Grids
from compressor.quantization.weights import quantize_weight
from compressor.training.evaluate import evaluate
from compressor.training.fake_quant import FakeQuantizer
from compressor.training.fold import fold_bn_
from compressor.training.tensors import to_tensors
from tests.training.conftest import make_data
from tests.training.int8 import CALIBRATION, artifact, network, sqnr


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_data(tmp_path_factory.mktemp("int8") / "data", val=200, calibration=CALIBRATION)


def quantizer_of(model: nn.Module, data: Dataset, grids: Grids) -> FakeQuantizer:
    """Calibrated on the very samples that ``quantize`` takes."""
    found = FakeQuantizer(model, fold_bn_(model, (torch.zeros(2, 2, 8, 8),)))
    samples = data.split("calibration").take(grids.rows(CALIBRATION))

    def replay(see: object) -> None:
        with found.observing(see), torch.no_grad():  # type: ignore[arg-type]
            for batch in batches(samples, data.inputs, 16):
                model(*to_tensors(batch, data.inputs, torch.device("cpu")).inputs)

    with found.attached():
        activations = grids.activations(replay)
    rows = {n: w.detach().flatten(1).numpy() for n, w in found.weights.items()}
    found.set_(activations, {n: grids.weights(w) for n, w in rows.items()})
    return found


@pytest.mark.parametrize(
    ("name", "bits", "method"),
    [("residual", "auto", "minmax"), ("gated", 7, "minmax"), ("pooled", "auto", "mse")],
)
def test_the_forward_pass_is_that_of_the_int8_file(
    name: str, bits: str | int, method: str, many: Dataset, tmp_path: Path
) -> None:
    model = network(name)
    exact, int8 = artifact(model, many, tmp_path, bits, method)
    quantizer = quantizer_of(model, many, Grids(method, 99.99, bits))  # type: ignore[arg-type]
    with quantizer.attached():
        fake = evaluate(model, many, "val")
    assert sqnr(int8, fake) > max(35.0, sqnr(exact, int8) + 6.0)
    assert (int8.argmax(axis=1) == fake.argmax(axis=1)).mean() >= 0.98
    assert np.abs(evaluate(model, many, "val") - exact).max() < 1e-4  # and off again


def test_weights_are_on_the_very_integers_of_quantize() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 0.1, (6, 30)).astype(np.float32)
    rows[2] = 0.0
    layer = nn.Linear(30, 6, bias=False)
    layer.weight.data = torch.from_numpy(rows.copy())
    model = nn.Sequential(layer)
    for bits, word in (("proven", "auto"), ("7", 7), ("8", None)):
        quantizer = FakeQuantizer(model, ())
        wanted = quantize_weight(rows, None, np.float32(1.0), bits)  # type: ignore[arg-type]
        grid = wanted.grid if word is None else Grids("minmax", 99.99, word).weights(rows)  # type: ignore[arg-type]
        quantizer.set_({}, {"0.weight": grid})
        with quantizer.attached(), torch.no_grad():
            found = model(torch.eye(30)).T.numpy()
        exact = wanted.values * wanted.scale[:, None]
        np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-9)


def test_gradients_pass_inside_the_range_and_stop_outside() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].weight.data = torch.eye(4)
    quantizer = FakeQuantizer(model, ())
    quantizer.set_({"0.weight/1<": (0.01, 100)}, {"0.weight": np.full(4, 64)})  # -1 to 1.55
    x = torch.tensor([[-1.2, -0.996, 1.549, 1.7]], requires_grad=True)
    with quantizer.attached():
        y = model(x)
    y.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    torch.testing.assert_close(y.detach(), torch.tensor([[-1.0, -1.0, 1.55, 1.55]]))
    assert x.grad is not None
    assert x.grad.tolist() == [[0.0, 2.0, 3.0, 0.0]]
    torch.testing.assert_close(
        model[0].weight.grad, torch.tensor([[1.0], [2.0], [3.0], [4.0]]) * y.detach()
    )


def test_a_tensor_with_several_readers_is_put_on_one_grid() -> None:
    seen: list[str] = []

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(2, 2, 1)
            self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.stem(x))
            return torch.exp(self.one(x) + self.two(x) + x)

    model = Fork()
    quantizer = FakeQuantizer(model, ())
    with quantizer.attached(), quantizer.observing(lambda name, rows: seen.append(name)):
        model(torch.randn(2, 2, 4, 4))
    assert seen == [
        "stem.weight/1<", "stem.weight/1>relu", "one.weight/1", "two.weight/1",
        "two.weight/add1", "two.weight/add2",
    ]  # fmt: skip


def test_what_reads_no_integers_stays_float() -> None:
    seen: list[str] = []
    model = nn.Sequential(nn.Softmax(dim=1), nn.ConvTranspose2d(2, 2, 2), nn.GELU())
    quantizer = FakeQuantizer(model, ())
    with quantizer.attached(), quantizer.observing(lambda name, rows: seen.append(name)):
        model(torch.randn(2, 2, 4, 4))
    assert seen == []


def test_training_alone_may_call_more_without_moving_a_grid(data: Dataset) -> None:
    class Depth(nn.Module):
        """Stochastic depth: a product that evaluation does not have."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            if self.training:
                y = y * torch.ones(len(x), 1, 1, 1)
            return self.two(y + self.one(x))

    def sites(training: bool) -> set[str]:
        found: set[str] = set()
        model = Depth().train(training)
        quantizer = FakeQuantizer(model, ())
        with quantizer.attached(), quantizer.observing(lambda name, rows: found.add(name)):
            model(torch.randn(2, 2, 4, 4))
        return found

    assert sites(True) - sites(False) == {"one.weight/mul1", "one.weight/mul1<1"}
    assert sites(False) < sites(True)


def test_an_alias_of_what_is_changed_in_place_sees_the_change() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Conv2d(2, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.one(x)
            y.add_(x)
            return y * 1.0

    model = Alias()
    images = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        exact = model(images)
    quantizer = FakeQuantizer(model, ())
    quantizer.set_({"one.weight/1": (1e-4, 0)}, {"one.weight": np.full(2, 64)})
    with quantizer.attached(), torch.no_grad():
        found = model(images)
    # The convolution saturates at 0.0255, so nearly all that is left is the image.
    assert (found - images).abs().max() < 0.03
    assert (found - exact).abs().max() > 0.03


def test_nothing_is_left_behind(spec: ModelSpec) -> None:
    model = network("residual")
    names = set(model.state_dict())
    quantizer = FakeQuantizer(model, fold_bn_(model, (torch.zeros(2, 2, 8, 8),)))
    with quantizer.attached():
        assert not model.norm.weight.requires_grad
        assert model.norm.bias.requires_grad
        assert model._forward_hooks
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert set(model.state_dict()) == names
    assert all(p.requires_grad for p in model.parameters())
    assert torch.overrides._get_current_function_mode_stack() == []


def test_a_failing_forward_pass_ends_the_mode() -> None:
    model = network("pooled")
    quantizer = FakeQuantizer(model, ())
    with pytest.raises(RuntimeError), quantizer.attached():
        model(torch.zeros(2, 3, 8, 8))
    assert torch.overrides._get_current_function_mode_stack() == []
