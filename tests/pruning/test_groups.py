import copy
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from compressor.core.errors import MissingError, StageError
from compressor.pruning.channels import examine
from compressor.pruning.groups import find
from tests.pruning import nets


def named(groups):
    return {g.name: g for g in groups}


def test_residual_additions_join_convolutions_into_one_group():
    model, example = nets.make("residual")
    group = named(find(model, example))["stem"]
    producers = {m.layer for m in group.members if m.side == "out"}
    # stem -> block 0 (identity shortcut) share the addition; bn2 rides along.
    assert producers == {"stem", "blocks.0.conv2", "blocks.0.bn2"}
    readers = {m.layer for m in group.members if m.side == "in"}
    assert readers == {"blocks.0.conv1", "blocks.1.conv1", "blocks.1.short"}


def test_flattened_channels_map_to_all_their_features():
    model, example = nets.make("lenet5")
    group = named(find(model, example))["conv2"]
    reader = next(m for m in group.members if m.layer == "fc1")
    stride = model.fc1.in_features // model.conv2.out_channels
    assert reader.where.tolist() == np.arange(model.fc1.in_features).reshape(-1, stride).tolist()


def test_concatenated_channels_are_offset():
    model, example = nets.make("concat")
    groups = named(find(model, example))
    norm = {n: next(m for m in groups[n].members if m.layer == "norm") for n in ("a", "b")}
    assert norm["a"].where.ravel().tolist() == list(range(16))
    assert norm["b"].where.ravel().tolist() == list(range(16, 40))


@pytest.mark.parametrize("name", sorted(nets.NETS))
def test_the_output_is_whole_and_no_input_channel_is_in_a_group(name):
    model, example = nets.make(name)
    groups = find(model, example)
    assert [g.whole for g in groups if g.whole] == ["it is the network's output"]
    first = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert (first, "in") not in {(m.layer, m.side) for g in groups for m in g.members}


def test_every_position_belongs_to_one_group():
    for name in nets.NETS:
        model, example = nets.make(name)
        claims = Counter(
            (m.layer, m.side, p)
            for g in find(model, example)
            for m in g.members
            for p in m.where.ravel().tolist()
        )
        assert max(claims.values()) == 1, name


def test_finding_groups_leaves_the_model_alone():
    model, example = nets.make("residual")
    model.train()
    model.stem.weight.requires_grad_(False)  # frozen layers must still be traced
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    groups = examine(model, example)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert not model.stem.weight.requires_grad
    assert not any(m._forward_hooks for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert not named(groups)["stem"].whole


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_groups_are_found_where_gradients_are_off(guard):
    model, example = nets.make("residual")
    with guard():
        inside = find(model, example)
    assert [g.name for g in inside] == [g.name for g in find(model, example)]


def test_two_models_in_one_process_do_not_see_each_other():
    first, example = nets.make("residual")
    alone = [(g.name, g.width) for g in find(first, example)]
    other, other_example = nets.make("concat")
    find(other, other_example)
    assert [(g.name, g.width) for g in find(first, example)] == alone


def test_what_cannot_be_cut_is_left_whole_with_its_reason():
    model, example = nets.Guarded().eval(), (torch.randn(2, 4, 4, 4),)
    reasons = {g.name: g.whole for g in examine(model, example)}
    assert "4 convolution groups" in reasons["grouped"]
    assert "GroupNorm" in reasons["normed"]
    assert reasons["inside"]
    assert "changes what the others compute" in reasons["fixed"]  # view(-1, 128)
    assert reasons["free"] == ""


def test_a_layer_that_is_used_twice_stays_whole():
    shared = nn.Conv2d(16, 16, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(1, 16, 1), shared, nn.ReLU(), shared, nn.Conv2d(16, 4, 1))
    groups = examine(model.eval(), (torch.randn(2, 1, 4, 4),))
    touched = [g.whole for g in groups if "1" in {m.layer for m in g.members}]
    assert touched
    assert all("used 2 times" in reason for reason in touched)


def test_channels_added_to_the_networks_own_input_stay_whole():
    class OwnInput(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Conv2d(8, 8, 1)  # the tracer cannot see what it is added to
            self.next = nn.Conv2d(8, 16, 1)
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.next(self.inside(x) + x).mean((2, 3)))

    groups = named(examine(OwnInput().eval(), (torch.randn(2, 8, 4, 4),)))
    assert "changes what the others compute" in groups["inside"].whole
    assert groups["next"].whole == ""


def test_a_convolution_with_one_filter_group_per_output_is_not_taken_for_depthwise():
    # 8 inputs, 4 outputs, 4 groups: two inputs per filter, which Torch-Pruning calls depthwise.
    model = nn.Sequential(
        nn.Conv2d(1, 8, 1), nn.Conv2d(8, 4, 1, groups=4), nn.Flatten(), nn.Linear(4 * 16, 3)
    ).eval()
    assert all(g.whole for g in examine(model, (torch.randn(2, 1, 4, 4),)))


def test_one_channel_with_one_group_is_an_ordinary_convolution():
    model = nn.Sequential(
        nn.Conv2d(1, 1, 3, groups=1), nn.ReLU(), nn.Conv2d(1, 16, 1), nn.Flatten(),
        nn.Linear(16 * 4, 3),
    ).eval()  # fmt: skip
    groups = named(examine(model, (torch.randn(2, 1, 4, 4),)))
    assert {n: g.width for n, g in groups.items()} == {"0": 1, "2": 16, "4": 3}
    assert groups["0"].members[0].side == "out"
    assert {m.layer for m in groups["0"].members} == {"0", "2"}


def test_a_channel_shuffle_is_found_out():
    model, example = nets.Shuffle().eval(), (torch.randn(2, 1, 4, 4),)
    try:
        reasons = {g.name: g.whole for g in examine(model, example)}
    except StageError:
        return  # refusing the whole network is right too
    assert reasons["first"]


def test_overlapping_groups_stay_whole():
    model, example = nets.ResidualSum().eval(), (torch.randn(2, 1, 4, 4),)
    assert all(g.whole for g in examine(model, example))


def test_shared_and_computed_weights_stay_whole():
    model, example = nets.make("residual")
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].conv1)
    model.blocks[1].bn1.weight = model.blocks[1].bn2.weight
    reasons = {g.name: g.whole for g in examine(model, example)}
    assert "computed weight" in reasons["blocks.0.conv1"] or "Parametr" in reasons["blocks.0.conv1"]
    assert "shares its weights" in reasons["blocks.1.conv1"]


def test_layers_that_only_run_in_training_are_refused():
    with pytest.raises(StageError, match="helper run in training but not in evaluation"):
        find(nets.Auxiliary(), (torch.randn(2, 1, 4, 4),))


def test_a_network_that_loses_the_batch_is_refused_with_its_shapes():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(0), nn.Linear(8 * 4, 3))
    with pytest.raises(StageError, match=r"fails on inputs \(2, 1, 4, 4\)"):
        find(model, (torch.randn(2, 1, 4, 4),))


def test_without_torch_pruning_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"compressor\[train\]"):
        find(*nets.make("residual"))


def test_attention_keeps_its_width_and_the_mlp_between_is_cut():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(4, 16)
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.norm = nn.LayerNorm(16)
            self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            y = self.embed(x)
            y = self.norm(y + self.attention(y, y, y, need_weights=False)[0])
            return self.head((y + self.down(torch.relu(self.up(y)))).mean(1))

    reasons = {g.name: g.whole for g in examine(Layer().eval(), (torch.randn(2, 5, 4),))}
    assert reasons["up"] == ""
    assert all(reason for name, reason in reasons.items() if name != "up")


def test_options_load_no_torch():
    code = "import sys, compressor.stages.prune; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
