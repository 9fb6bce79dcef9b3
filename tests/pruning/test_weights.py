import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.core.errors import StageError, TargetError
from compressor.pruning.schedule import Ramp, cubic, ramp
from compressor.pruning.weights import LAYER_CAP, Masks, ends, masks, prunable, zero_fraction
from tests.pruning import nets

tensors = st.lists(
    st.lists(st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 3.25]), min_size=1, max_size=30),
    min_size=1,
    max_size=4,
)


def weights_of(rows):
    return {f"w{i}": torch.tensor(row) for i, row in enumerate(rows)}


def zeros(found):
    return sum(int((~m).sum()) for m in found.values())


@settings(max_examples=60, deadline=None)
@given(tensors, st.floats(0, 1))
def test_exactly_the_rounded_amount_goes_globally_ties_included(rows, amount):
    weights = weights_of(rows)
    total = sum(map(len, rows))
    assert zeros(masks(weights, amount, "global", cap=1.0)) == round(amount * total)


@settings(max_examples=60, deadline=None)
@given(tensors, st.floats(0, 1))
def test_exactly_the_rounded_amount_of_each_layer_goes_locally(rows, amount):
    for name, mask in masks(weights_of(rows), amount, "local").items():
        assert int((~mask).sum()) == round(amount * len(rows[int(name[1:])]))


def test_constant_tensors_lose_their_first_entries():
    found = masks({"a": torch.ones(2, 3), "b": torch.ones(4)}, 0.5, "global", cap=1.0)
    assert found["a"].flatten().tolist() == [False] * 5 + [True]
    assert found["b"].all()


def test_the_smallest_magnitudes_go():
    weights = {"a": torch.tensor([3.0, -0.1, 2.0]), "b": torch.tensor([[0.05, -5.0]])}
    found = masks(weights, 0.4, "global")
    assert found["a"].tolist() == [True, False, True]
    assert found["b"].tolist() == [[False, True]]


def test_global_ranking_never_empties_a_layer():
    weights = {"small": 1e-6 * torch.rand(100), "large": 1 + torch.rand(300)}
    found = masks(weights, 0.4, "global")
    assert zeros(found) == 160
    assert int((~found["small"]).sum()) == int(LAYER_CAP * 100)


def test_beyond_the_cap_the_nearest_value_is_named_and_reached():
    weights = {"a": torch.rand(100), "b": torch.rand(30)}
    with pytest.raises(TargetError, match=r"sparsity: 0\.99 is out of reach") as caught:
        masks(weights, 0.99, "global")
    nearest = float(str(caught.value).split("nearest reachable value is ")[1].split(":")[0])
    assert zeros(masks(weights, nearest, "global")) == round(nearest * 130)
    with pytest.raises(TargetError):
        masks(weights, nearest + 0.01, "global")


def test_a_ramp_that_ends_out_of_reach_is_refused_before_training():
    model, _ = nets.make("residual")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TargetError, match=r"sparsity: 0\.99 is out of reach"):
        Masks(model, Ramp(0.99, end=100, every=2), "global")
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    Masks(model, Ramp(0.99, end=100, every=2), "local")


@pytest.mark.parametrize("scope", ["global", "local"])
def test_masks_only_grow_even_where_weights_change_and_tie(scope):
    rng = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(40, generator=rng), "b": torch.zeros(25)}
    previous = None
    for amount in (0.1, 0.3, 0.3, 0.62, 0.9):
        found = masks(weights, amount, scope, previous=previous, cap=1.0)
        if previous is not None:
            assert all(not (found[n] & ~previous[n]).any() for n in found)
        if scope == "global":
            assert zeros(found) == round(amount * 65)
        previous = found
        weights = {n: torch.randn(w.shape, generator=rng) * found[n] for n, w in weights.items()}


def test_the_cubic_ramp():
    assert cubic(0, 0, 100, 0.1, 0.8) == 0.1
    assert cubic(100, 0, 100, 0.1, 0.8) == 0.8
    assert cubic(1000, 0, 100, 0.1, 0.8) == 0.8
    assert cubic(50, 0, 100, 0.0, 0.8) == pytest.approx(0.8 * (1 - 0.125))
    values = [cubic(s, 10, 70, 0.2, 0.9) for s in range(100)]
    assert all(a <= b for a, b in itertools.pairwise(values))
    assert values[9] == 0.2
    assert values[70] == 0.9


def test_a_ramp_ends_before_training_does():
    plan = ramp("cubic", 0.9, 500)
    assert plan.end == 300
    assert plan.at(300) == 0.9
    assert plan.due(300)
    assert not plan.due(301)
    assert 40 <= sum(plan.due(s) for s in range(301)) <= 60
    assert ramp("one_shot", 0.9, 500).due(0)
    assert ramp("one_shot", 0.9, 500).at(0) == 0.9
    assert ramp("cubic", 0.9, 0).at(0) == 0.9  # no fine-tuning: at once


def train(model, masks_, steps, seed=0):
    """Momentum and weight decay on random data; yields after each step's hook."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=0.01)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 8, 8, generator=rng)).square().mean().backward()
        optimizer.step()
        masks_.after_step(step)
        yield step


def test_zeros_stay_zero_under_momentum_and_decay_and_only_grow():
    model, _ = nets.make("residual")
    found = Masks(model, Ramp(0.8, end=6, every=2), "global")
    before = {n: torch.ones_like(m) for n, m in found.state.items()}
    total = sum(m.numel() for m in found.state.values())
    for step in train(model.train(), found, 9):
        for name, weight in prunable(model).items():
            assert not weight[~found.state[name]].any()
            assert not (found.state[name] & ~before[name]).any()
        if found._ramp.due(step):
            assert zeros(found.state) == round(found._ramp.at(step) * total)
        before = {n: m.clone() for n, m in found.state.items()}
    assert zero_fraction(model) == pytest.approx(round(0.8 * total) / total)


def test_masks_continue_from_their_state_as_if_never_interrupted():
    model, _ = nets.make("residual")
    nn.init.zeros_(model.blocks[0].conv2.weight)  # zeros that no mask made
    twin = copy.deepcopy(model)
    whole = Masks(model, Ramp(0.7, end=8, every=2), "global")
    list(train(model.train(), whole, 9))

    first = Masks(twin, Ramp(0.7, end=8, every=2), "global")
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-4, momentum=0.9, weight_decay=0.01)
    rng = torch.Generator().manual_seed(0)
    for step in range(1, 10):
        if step == 6:  # killed after step 5: a new object takes the saved tensors
            saved = {n: m.clone() for n, m in first.state.items()}
            weights = copy.deepcopy(twin.state_dict())
            first = Masks(twin, Ramp(0.7, end=8, every=2), "global")
            twin.load_state_dict(weights)
            for name, mask in first.state.items():
                mask.copy_(saved[name])
        twin.train()
        optimizer.zero_grad()
        twin(torch.randn(4, 1, 8, 8, generator=rng)).square().mean().backward()
        optimizer.step()
        first.after_step(step)
    assert all(torch.equal(whole.state[n], first.state[n]) for n in whole.state)
    assert all(bool(torch.isfinite(v).all()) for v in model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(
        model.state_dict().values(), twin.state_dict().values(), strict=True
    ))  # fmt: skip


def test_masks_do_not_depend_on_memory_format():
    model, _ = nets.make("residual")
    twin = copy.deepcopy(model).to(memory_format=torch.channels_last)
    a, b = (Masks(m, Ramp(0.5), "global").state for m in (model, twin))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert all(
        torch.equal(v, w) for v, w in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_only_convolution_and_linear_weights_are_touched():
    model, _ = nets.make("residual")
    before = {n: p.clone() for n, p in model.named_parameters()}
    Masks(model, Ramp(0.9), "global")
    touched = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert touched <= set(prunable(model))
    assert touched


def test_the_first_and_last_layer_are_those_that_run_first_and_last():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.mid, self.stem = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)

        def forward(self, x):
            return self.head(self.mid(self.stem(x)))

    model = Backwards()
    spared = ends(model, (torch.randn(2, 3),))
    assert spared == {"stem.weight", "head.weight"}
    found = Masks(model, Ramp(0.5), "local", spared)
    assert set(found.state) == {"mid.weight"}
    assert zeros(found.state) == 8


def test_a_network_without_layers_is_refused():
    with pytest.raises(StageError, match="no convolution"):
        prunable(nn.Sequential(nn.ReLU()))
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(TargetError, match="scope: global"):
        Masks(model, Ramp(0.5), "local", ends(model, (torch.randn(2, 2),)))


def test_equal_inputs_give_equal_masks():
    rng = np.random.default_rng(0)
    weights = {"a": torch.from_numpy(rng.integers(0, 3, 500).astype(np.float32))}
    first, second = (masks(weights, 0.37, "global") for _ in range(2))
    assert torch.equal(first["a"], second["a"])
