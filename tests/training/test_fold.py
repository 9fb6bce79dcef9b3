"""Folding a BatchNorm changes no function, and leaves a network of the same modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.training.fold import fold_bn_
from tests.training.int8 import NETS, network

IMAGES = torch.randn((4, 2, 8, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETS)
def test_folding_keeps_the_function_and_the_shapes(name: str) -> None:
    model = network(name)
    with torch.no_grad():
        before = model(IMAGES)
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    pairs = fold_bn_(model, (IMAGES,))
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-5, atol=1e-5)
    assert {k: v.shape for k, v in model.state_dict().items()} == shapes
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {id(norm) for _, norm in pairs} == {id(norm) for norm in norms}
    assert not model.training


@pytest.mark.parametrize("name", ["residual", "gated"])
def test_a_folded_norm_adds_its_bias_and_does_nothing_else(name: str) -> None:
    model = network(name)
    for layer, norm in fold_bn_(model, (IMAGES,)):
        x = torch.randn(3, norm.num_features, 2, 2)
        bias = -norm.running_mean if norm.bias is None else norm.bias.detach()
        assert torch.equal(norm(x), x + bias.reshape(1, -1, 1, 1))
        assert layer.bias is None or not bias.any()


def test_folding_once_more_changes_no_weight() -> None:
    """The export and ``quantize`` fold again; in float64, as ``prepare`` does."""
    model = network("residual")
    pairs = fold_bn_(model, (IMAGES,))
    weights = [layer.weight.detach().clone() for layer, _ in pairs]
    for _, norm in fold_bn_(model, (IMAGES,)):
        assert torch.isfinite(norm.running_var).all()
    for (layer, _), weight in zip(pairs, weights, strict=True):
        assert torch.equal(layer.weight, weight)


class Odd(nn.Module):
    """Norms that must stay: two readers, a second call, a tied weight, one after a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.forked, self.twice = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.tied, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.other.weight = self.tied.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.plain, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.forked(x)
        y = self.norms[0](y) + y
        y = self.twice(functional.relu(self.norms[1](self.twice(y))))
        y = self.norms[2](self.tied(y)) + self.other(y)
        y = self.norms[3](y).mean([2, 3])
        return self.last(self.plain(y))


def test_only_a_norm_that_alone_reads_an_unshared_layer_is_folded() -> None:
    torch.manual_seed(0)
    model = Odd()
    for norm in (*model.norms, model.last):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    kept = copy.deepcopy(model).eval()
    pairs = fold_bn_(model, (IMAGES,))
    assert pairs == ((model.plain, model.last),)
    assert model.training
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IMAGES), kept(IMAGES), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", ["weight", "bias"])
def test_layers_and_norms_that_share_any_parameter_stay_as_they_are(shared: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3),
                          nn.BatchNorm2d(4))  # fmt: skip
    first, second = model[1], model[3]
    for norm in (first, second):
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.normal_()
        norm.running_var.uniform_(0.5, 2)
    setattr(second, shared, getattr(first, shared))
    kept = copy.deepcopy(model).eval()
    assert fold_bn_(model, (IMAGES,)) == ()
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(IMAGES), kept(IMAGES))
