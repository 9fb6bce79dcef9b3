import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.core.errors import TargetError
from compressor.core.types import InputSpec, ModelSpec
from compressor.pruning.budget import Budget, layers
from compressor.pruning.channels import Options, Target, examine, prune_channels_
from compressor.pruning.importance import l2, scores
from compressor.pruning.search import widths
from tests.pruning import nets

MEASURES = ("macs", "parameters", "channels")


def spec_for(model, example):
    inputs = {"image": InputSpec(tuple(example[0].shape[1:]))}
    return ModelSpec("none:none", {}, ("a", "b", "c", "d"), inputs)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("measure", MEASURES)
def test_keeping_everything_changes_nothing(measure):
    model, example = nets.make("residual")
    before = state(model)
    parameters = dict(model.named_parameters())
    cut = prune_channels_(model, example, Target(measure, 1.0), Options())
    assert cut.widths == {}
    assert cut.of(measure) == cut.reference.of(measure)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(dict(model.named_parameters())[k] is v for k, v in parameters.items())


CASES = [(n, "macs", "global") for n in sorted(nets.NETS)]
CASES += [("residual", m, s) for m in MEASURES for s in ("global", "local")][1:]
CASES += [("concat", "parameters", "local"), ("lenet5", "channels", "global")]
CASES += [("shared slope", "parameters", "global")]


@pytest.mark.parametrize(("name", "measure", "scope"), CASES)
def test_the_target_is_met_and_no_further_step_fits(name, measure, scope):
    model, example = nets.make(name)
    fresh = copy.deepcopy(model)
    options = Options(round_to=4, scope=scope)
    cut = prune_channels_(model, example, Target(measure, 0.6), options)
    check_achieved(fresh, example, cut, measure, 0.6, options)


def check_achieved(fresh, example, cut, measure, keep, options):
    """At or below the target, multiples only, and one step more in any group is too much."""
    full = cut.reference.of(measure)
    assert cut.of(measure) <= keep * full * (1 + 1e-12)
    groups = examine(fresh, example)
    costs = layers(fresh, example)
    for before, after in cut.widths.values():
        assert after % options.round_to == 0
        assert options.round_to <= after < before
        assert after >= (1 - options.max_ratio) * before - 1e-9
    for name, (before, after) in cut.widths.items():
        budget = Budget({k: copy.copy(v) for k, v in costs.items()}, groups, measure)
        for other, (a, b) in cut.widths.items():
            budget.shrink(other, a - b)
        allowed = [before, *widths(before, before, options.round_to, options.max_ratio)]
        budget.shrink(name, after - allowed[allowed.index(after) - 1])
        assert budget.total > keep * full, f"{name} could be wider"


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(5, 40), min_size=1, max_size=3),
    st.sampled_from(MEASURES),
    st.sampled_from(["global", "local"]),
    st.sampled_from([1, 4, 8]),
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=3),
    st.integers(0, 3),
)
def test_a_smaller_target_never_gives_a_larger_network(
    sizes, measure, scope, round_to, keeps, seed
):
    torch.manual_seed(seed)
    model, example = nets.SmallResNet(tuple(sizes)).eval(), (torch.randn(2, 1, 4, 4),)
    options = Options(round_to=round_to, scope=scope, max_ratio=0.9)
    achieved = []
    for keep in sorted(keeps, reverse=True):
        pruned = copy.deepcopy(model)
        try:
            cut = prune_channels_(pruned, example, Target(measure, keep), options)
        except TargetError:
            assert all(torch.equal(v, w) for v, w in zip(
                pruned.state_dict().values(), model.state_dict().values(), strict=True
            ))  # fmt: skip
            continue
        check_achieved(model, example, cut, measure, keep, options)
        assert pruned(*example).shape == (2, 4)
        achieved.append(cut.of(measure))
    assert achieved == sorted(achieved, reverse=True)


def test_parameters_and_macs_do_not_grow_with_the_ratio():
    model, example = nets.make("residual")
    found = []
    for removed in (0.0, 0.2, 0.4, 0.55, 0.7):
        cut = prune_channels_(
            copy.deepcopy(model), example, Target("channels", 1 - removed), Options(round_to=4)
        )
        found.append((cut.macs, cut.parameters, cut.channels))
    assert found == sorted(found, reverse=True)
    assert all(x >= y for a, b in itertools.pairwise(found)
               for x, y in zip(a, b, strict=True))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "scope"),
    [("residual", "global"), ("residual", "local"), ("mobilenet", "global"), ("lenet5", "global"),
     ("concat", "local")],
)  # fmt: skip
def test_channels_of_zero_norm_go_first(name, scope):
    model, example = nets.make(name)
    groups = [g for g in examine(model, example) if not g.whole]
    rng = np.random.default_rng(0)
    planted = {g.name: set(rng.permutation(g.width)[: g.width // 2].tolist()) for g in groups}
    from compressor.pruning.surgery import mask_

    mask_(model, groups, {
        g.name: np.array(sorted(set(range(g.width)) - planted[g.name])) for g in groups
    }, readers=True)  # fmt: skip
    cut = prune_channels_(model, example, Target("channels", 0.7), Options(round_to=1, scope=scope))
    for group in groups:
        if group.name in cut.kept:
            gone = set(range(group.width)) - set(cut.kept[group.name])
            assert gone <= planted[group.name]
    assert cut.widths


def test_selection_follows_a_permutation_of_channels():
    model, example = nets.make("residual")
    shuffled = copy.deepcopy(model)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    block = shuffled.blocks[0]  # bn1's channels, between conv1 and conv2, renamed
    with torch.no_grad():
        block.conv1.weight.copy_(block.conv1.weight[order].clone())
        for tensor in (block.bn1.weight, block.bn1.bias, block.bn1.running_mean,
                       block.bn1.running_var):  # fmt: skip
            tensor.copy_(tensor[order].clone())
        block.conv2.weight.copy_(block.conv2.weight[:, order].clone())
    assert torch.allclose(shuffled(*example), model(*example), rtol=1e-4, atol=1e-4)
    options = Options(round_to=4)
    first = prune_channels_(model, example, Target("channels", 0.6), options)
    second = prune_channels_(shuffled, example, Target("channels", 0.6), options)
    assert "blocks.0.conv1" in first.kept
    moved = {int(order[i]) for i in second.kept["blocks.0.conv1"]}
    assert moved == set(first.kept["blocks.0.conv1"])
    assert torch.allclose(shuffled(*example), model(*example), rtol=1e-4, atol=1e-4)


def test_importance_is_torch_prunings_group_l2():
    import torch_pruning

    for name in ("residual", "concat"):  # theirs leaves depthwise filters out
        model, example = nets.make(name)
        graph = torch_pruning.DependencyGraph().build_dependency(
            model, example, forward_fn=lambda m, x: m(*x), verbose=False
        )
        theirs = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        for group in examine(model, example):
            if not group.whole:
                module = model.get_submodule(group.name)
                oracle = theirs(
                    graph.get_pruning_group(
                        module, torch_pruning.prune_conv_out_channels, list(range(group.width))
                    )
                )
                np.testing.assert_allclose(l2(model, group), oracle.numpy(), rtol=1e-4)


def test_importance_is_the_mean_of_squared_norms_over_the_mean_of_the_group():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[1.0] * 4 + [2.0] * 4, [0.0] * 8]))
    group = examine(model, (torch.randn(2, 1, 2, 2),))[0]
    # ((1, 9) + (4, 16)) / 2 = (2.5, 12.5), mean 7.5.
    np.testing.assert_allclose(l2(model, group), [1 / 3, 5 / 3])


def test_random_importance_follows_the_seed():
    model, example = nets.make("residual")
    groups = examine(model, example)
    draw = [scores(model, groups, "random", seed) for seed in (0, 0, 1)]
    name = groups[0].name
    assert np.array_equal(draw[0][name], draw[1][name])
    assert not np.array_equal(draw[0][name], draw[2][name])


def test_a_target_out_of_reach_names_a_value_that_is_reachable():
    model, example = nets.make("residual")
    for measure in MEASURES:
        target = Target(measure, 0.01, "the_target: 0.01")
        with pytest.raises(TargetError, match=r"the_target: 0\.01: out of reach") as caught:
            prune_channels_(model, example, target, Options())
        assert caught.value.exit_code == 8
        nearest = float(str(caught.value).split("nearest reachable value is ")[1].split(" ")[0])
        keep = 1 - nearest if measure == "channels" else nearest
        cut = prune_channels_(copy.deepcopy(model), example, Target(measure, keep), Options())
        assert cut.widths
        tighter = Target(measure, keep - 0.001)
        with pytest.raises(TargetError):
            prune_channels_(copy.deepcopy(model), example, tighter, Options())


def test_asking_for_what_nothing_can_give_is_an_error_and_no_silence():
    model, example = nets.SmallResNet((8, 8)).eval(), (torch.randn(2, 1, 4, 4),)
    with pytest.raises(TargetError, match="nearest reachable value is 1 with round_to 8"):
        prune_channels_(model, example, Target("macs", 0.9), Options(round_to=8))


def test_groups_left_whole_are_named_in_the_error():
    model, example = nets.Guarded().eval(), (torch.randn(2, 4, 4, 4),)
    with pytest.raises(TargetError, match=r"left whole: .*convolution groups"):
        prune_channels_(model, example, Target("macs", 0.1), Options())


def test_a_group_that_is_not_cut_keeps_its_odd_width():
    model, example = nets.SmallResNet((13, 40)).eval(), (torch.randn(2, 1, 4, 4),)
    cut = prune_channels_(model, example, Target("macs", 0.97), Options(round_to=8))
    assert len(cut.widths) < 4
    untouched = {"stem", "blocks.0.conv1"} - set(cut.widths)
    assert untouched
    assert all(model.get_submodule(n).out_channels == 13 for n in untouched)


def test_the_cap_holds_over_several_rounds():
    model, example = nets.make("residual")
    options = Options(round_to=4, max_ratio=0.5)
    full = {g.name: g.width for g in examine(model, example) if not g.whole}
    target, reference = Target("channels", 0.55), None
    for turn in (1, 2, 3):
        cut = prune_channels_(
            model, example, target, options, portion=turn / 3, reference=reference
        )
        reference = cut.reference
        assert cut.channels <= (1 - 0.45 * turn / 3) * reference.channels
    for name, width in full.items():
        assert model.get_submodule(name).out_channels >= width / 2


def test_the_same_inputs_cut_the_same_channels():
    cuts = []
    for _ in range(2):
        model, example = nets.make("mobilenet")
        cuts.append(prune_channels_(model, example, Target("macs", 0.5), Options(round_to=4)))
    assert cuts[0] == cuts[1]


def test_local_scope_takes_about_the_same_fraction_everywhere():
    model, example = nets.make("residual")
    options = Options(round_to=1, scope="local")
    cut = prune_channels_(model, example, Target("channels", 0.5), options)
    fractions = [after / before for before, after in cut.widths.values()]
    assert max(fractions) - min(fractions) <= 1 / 16 + 1e-9
