"""Who is decayed, what the average holds, and optimizer state that survives a round trip."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressor.core.errors import ConfigError
from compressor.training.optimizers import (
    Average,
    decay_groups,
    make_optimizer,
    restore_slots_,
    slots,
)
from compressor.training.options import TrainOptions


class Scale(nn.Module):
    """A norm of the user's own, with a table that is a weight in spite of its small module."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))
        self.table = nn.Parameter(torch.ones(4, 4))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.LayerNorm([4, 2, 2]),  # its weight has three dimensions
        Scale(),
        nn.Linear(4, 2),
    )


def test_decay_falls_on_weights_and_never_on_norms_and_biases() -> None:
    model = network()
    names = {id(p): n for n, p in model.named_parameters()}
    decayed, free = decay_groups(model, 0.01)
    assert decayed["weight_decay"] == 0.01
    assert free["weight_decay"] == 0
    assert {names[id(p)] for p in decayed["params"]} == {"0.weight", "4.table", "5.weight"}
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_frozen_parameters_are_left_out_and_a_wholly_frozen_model_is_refused() -> None:
    model = network()
    model[0].requires_grad_(False)
    held = {id(p) for g in decay_groups(model, 0.1) for p in g["params"]}
    assert id(model[0].weight) not in held
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="requires_grad"):
        make_optimizer(model, TrainOptions())


def test_decay_shrinks_weights_and_leaves_biases_when_gradients_are_zero() -> None:
    model = nn.Linear(3, 3)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainOptions(lr=0.1, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(model.bias, before["bias"])
    assert (model.weight.abs() < before["weight"].abs()).all()


def test_average_follows_its_formula_with_buffers_and_copies_integers() -> None:
    live = {"weight": torch.tensor([1.0, 2.0]), "count": torch.tensor(0)}
    average = Average(live, decay=0.5)
    expected = live["weight"].clone()
    for step in range(1, 12):
        live["weight"] += 1.0
        live["count"] += 1
        average.update_(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * live["weight"]
        torch.testing.assert_close(average.tensors["weight"], expected)
        assert average.tensors["count"].item() == step
    assert not torch.equal(average.tensors["weight"], live["weight"])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_restored_slots_continue_bit_for_bit(kind: str) -> None:
    options = TrainOptions(optimizer=kind, lr=0.05)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
        for seed in seeds:
            x = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2))
    optimizer = make_optimizer(model, options)
    steps(model, optimizer, range(3))
    saved = {n: t.clone() for n, t in slots(optimizer).items()}
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    steps(model, optimizer, range(3, 6))

    other = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 2))
    other.load_state_dict(weights)
    resumed = make_optimizer(other, options)
    restore_slots_(resumed, saved)
    steps(other, resumed, range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_defaults_that_depend_on_another_option_are_concrete_in_the_config() -> None:
    adamw = TrainOptions(optimizer="adamw").model_dump()
    assert (adamw["lr"], adamw["weight_decay"]) == (1e-3, 0.05)
    assert TrainOptions(optimizer="adamw", lr=0.01).lr == 0.01
    assert TrainOptions().model_dump()["lr"] == 0.1
