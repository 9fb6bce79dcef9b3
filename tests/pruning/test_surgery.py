import copy
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from compressor.models import checkpoint, cost
from compressor.pruning.budget import Budget, layers, total
from compressor.pruning.channels import Options, Target, examine, prune_channels_
from compressor.pruning.surgery import mask_, proved, remove_
from tests.pruning import nets
from tests.pruning.test_channels import spec_for

HEAVY = [pytest.param(n, marks=pytest.mark.slow) for n in sorted(nets.TORCHVISION)]
ALL = [*sorted(nets.NETS), *HEAVY]


def random_choice(groups, seed, least=1):
    rng = np.random.default_rng(seed)
    return {
        g.name: np.sort(rng.permutation(g.width)[: int(rng.integers(least, g.width))])
        for g in groups
        if not g.whole
    }


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", [0, 1])
def test_removed_channels_are_silenced_channels(name, seed):
    model, example = nets.make(name, seed)
    groups = examine(model, example)
    kept = random_choice(groups, seed)
    masked = copy.deepcopy(model).double()
    cut = copy.deepcopy(masked)
    mask_(masked, groups, kept)
    remove_(cut, groups, kept)
    x = example[0].double()
    with torch.no_grad():
        want, have = masked(x), cut(x)
    assert cost_of(cut) < cost_of(model)
    assert torch.isfinite(want).all()
    assert float(want.abs().max()) > 1e-3
    assert float((want - have).abs().max()) <= 1e-10 * max(1.0, float(want.abs().max()))


def cost_of(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["residual", "concat", "mobilenet", "lenet5"])
def test_surgery_equals_torch_pruning_on_the_same_channels(name):
    import torch_pruning

    model, example = nets.make(name)
    groups = examine(model, example)
    kept = random_choice(groups, 3)
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    remove_(ours, groups, kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = torch_pruning.DependencyGraph().build_dependency(
            theirs, example, forward_fn=lambda m, x: m(*x), verbose=False
        )
        for group in groups:
            if group.name in kept:
                module = theirs.get_submodule(group.name)
                drop = np.setdiff1d(np.arange(group.width), kept[group.name]).tolist()
                pruner = graph.get_pruner_of_module(module)
                graph.get_pruning_group(module, pruner.prune_out_channels, drop).prune()
    mine, oracle = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == oracle.keys()
    assert all(torch.equal(mine[k], oracle[k]) for k in mine)
    with torch.no_grad():
        assert torch.equal(ours(*example), theirs(*example))


@pytest.mark.parametrize("name", ["residual", "mobilenet", "squeeze"])
def test_training_goes_on_after_surgery(name):
    model, example = nets.make(name)
    groups = examine(model, example)
    remove_(model, groups, random_choice(groups, 0, least=2))
    model.train()
    model(*example).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_frozen_parameters_stay_frozen():
    model, example = nets.make("residual")
    model.blocks[0].conv1.weight.requires_grad_(False)
    groups = examine(model, example)
    remove_(model, groups, random_choice(groups, 0))
    assert not model.blocks[0].conv1.weight.requires_grad
    assert model.blocks[0].conv2.weight.requires_grad


def test_the_proof_refuses_a_wrong_index():
    model, example = nets.make("residual")
    groups = examine(model, example)
    kept = random_choice(groups, 0)
    assert proved(model, groups, kept, example)
    wrong = copy.deepcopy(groups)
    reader = next(m for m in wrong[0].members if m.side == "in")
    reader.where[:] = np.roll(reader.where, 1, axis=0)
    assert not proved(model, wrong, kept, example)


def test_the_proof_sees_behind_channels_that_are_zero():
    model, example = nets.make("residual")
    nn.init.zeros_(model.blocks[0].bn1.weight)  # hides conv1 completely in the trained network
    groups = list(examine(model, example))
    place = next(i for i, g in enumerate(groups) if g.name == "blocks.0.conv1")
    kept = {groups[place].name: np.arange(5)}
    reader = next(m for m in groups[place].members if m.side == "in")
    reader.where[:] = np.roll(reader.where, 1, axis=0)
    assert not proved(model, groups, kept, example)


@pytest.mark.parametrize("name", ALL)
def test_the_analytic_cost_is_the_counted_cost(name):
    model, example = nets.make(name)
    spec = spec_for(model, example)

    def agree():
        costs = layers(model, example).values()
        assert total(costs, "macs") == cost.macs(model, spec)
        assert total(costs, "parameters") == cost.parameters(model)

    agree()
    groups = examine(model, example)
    kept = {g.name: np.arange(g.width // 2) for g in groups if not g.whole}
    budgets = {
        measure: Budget(layers(model, example), groups, measure)
        for measure in ("macs", "parameters")
    }
    for group in groups:
        for budget in budgets.values():
            if group.name in kept:
                budget.shrink(group.name, group.width - group.width // 2)
    remove_(model, groups, kept)
    agree()
    assert budgets["macs"].total == cost.macs(model, spec)
    assert budgets["parameters"].total == cost.parameters(model)


def test_a_pruned_network_reloads_in_a_process_without_torch_pruning(tmp_path):
    from compressor.core.types import InputSpec, ModelSpec
    from compressor.models import build

    spec = ModelSpec(
        "compressor.models.resnet:resnet",
        {"depth": 8, "width": 16},
        ("a", "b", "c"),
        {"image": InputSpec((1, 16, 16))},
    )
    model = build(spec, seed=0).eval()
    example = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    cut = prune_channels_(model, (example,), Target("macs", 0.5), Options())
    assert cut.widths
    checkpoint.save(tmp_path / "model", model, spec)
    with torch.no_grad():
        np.save(tmp_path / "outputs.npy", model(example).numpy())
    np.save(tmp_path / "inputs.npy", example.numpy())
    code = f"""
import sys
sys.modules["torch_pruning"] = None
import numpy as np, torch
torch.set_num_threads(1)
from compressor.core.types import InputSpec, ModelSpec
from compressor.models import checkpoint
spec = ModelSpec("compressor.models.resnet:resnet", {{"depth": 8, "width": 16}}, ("a", "b", "c"),
                 {{"image": InputSpec((1, 16, 16))}})
from pathlib import Path
folder = Path({str(tmp_path)!r})
model = checkpoint.load(folder / "model", spec)
with torch.no_grad():
    have = model(torch.from_numpy(np.load(folder / "inputs.npy"))).numpy()
assert np.array_equal(have, np.load(folder / "outputs.npy"))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
