import re

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.hashing import digest_file
from compressor.core.types import InputSpec, ModelSpec
from compressor.models import build
from compressor.models.construct import evaluating, example_inputs
from tests.models.support import NETWORKS, name, run, spec

TOYS = "tests.models.toys:"


@pytest.mark.parametrize("model", NETWORKS, ids=name)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (10, 3), (100, 4)])
def test_outputs_are_batch_by_classes_for_any_classes_and_channels(model, classes, channels):
    network = build(spec(model, (channels, 16, 16), classes), seed=0)
    for batch in (1, 2, 5):
        assert run(network, torch.randn(batch, channels, 16, 16)).shape == (batch, classes)


@pytest.mark.parametrize("model", NETWORKS, ids=name)
def test_a_sample_does_not_depend_on_its_batch(model):
    network = build(spec(model), seed=0)
    x = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    together = run(network, x)
    alone = torch.cat([run(network, x[i : i + 1]) for i in range(6)])
    assert torch.allclose(together, alone, rtol=1e-4, atol=1e-5 * float(together.abs().max()))


@pytest.mark.parametrize("model", NETWORKS, ids=name)
def test_a_seed_fixes_the_weights_and_leaves_the_generator_alone(model):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first = build(spec(model), seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    again, other = build(spec(model), seed=3).state_dict(), build(spec(model), seed=4).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_without_a_seed_the_caller_s_generator_decides():
    torch.manual_seed(3)
    drawn = build(spec("mlp")).state_dict()
    seeded = build(spec("mlp"), seed=3).state_dict()
    assert all(torch.equal(drawn[k], seeded[k]) for k in seeded)


def test_a_network_is_built_in_training_mode_with_untouched_statistics():
    network = build(spec({"name": "resnet", "depth": 8, "width": 4}), seed=0)
    assert all(m.training for m in network.modules())
    assert not network.stem[1].running_mean.any()


def test_evaluating_restores_every_module_s_own_mode():
    network = build(spec({"name": "resnet", "depth": 8, "width": 4}), seed=0)
    network.stem.eval()
    modes = [m.training for m in network.modules()]
    with evaluating(network):
        assert not any(m.training for m in network.modules())
    assert [m.training for m in network.modules()] == modes


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("classes", "model gives 7 outputs, dataset has 10 classes"),
        ("view", r"output of shape \(1, 10\), not \(3, 10\); keep the batch dimension"),
        ("strict view", "one sample alone works: keep the batch dimension"),
        ("statistics", "change with the other samples of its batch"),
        ("mean", "change with the other samples"),
        ("softmax", "change with the other samples"),
        ("dropout", "dropout that ignores the mode"),
        ("tuple", "returns tuple; return one tensor"),
        ("nan", "infinite or NaN"),
        ("one dimension", r"shape \(3,\), not \(3, 10\)"),
    ],
)
def test_a_network_that_is_no_classifier_is_refused(fault, words):
    with pytest.raises(ConfigError, match=words) as caught:
        build(spec({"name": TOYS + "bad", "fault": fault}), "train.model", seed=0)
    assert str(caught.value).startswith("train.model: ")


def test_the_refused_network_is_accepted_without_its_fault():
    build(spec({"name": TOYS + "bad", "fault": ""}), seed=0)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": TOYS + "tiny", "widht": 3}, "no argument 'widht'; did you mean 'width'"),
        ({"name": TOYS + "bad"}, "missing a required argument: 'fault'"),
        (TOYS + "raises", "RuntimeError: no such thing"),
        (TOYS + "no_module", "returned int, not an nn.Module"),
        (TOYS + "tinny", "did you mean 'tiny'"),
        ("tests.models.nowhere:f", "no module 'tests.models.nowhere'"),
        (TOYS + "torch", "not a function"),
        ({"name": "lenet5", "padding": 0}, "too small with padding 0; give padding: 2"),
    ],
)
def test_a_factory_that_cannot_be_called_is_named_with_the_reason(model, words):
    shape = (3, 8, 8)
    with pytest.raises(ConfigError, match=re.escape(words)):
        build(spec(model, shape), seed=0)


def test_several_inputs_arrive_in_the_dataset_s_order():
    inputs = {"image": InputSpec((1, 4, 5)), "vector": InputSpec((3,), "float32")}
    both = ModelSpec(TOYS + "two", {}, ("a", "b", "c", "d"), inputs)
    with torch.no_grad():
        assert build(both, seed=0)(*example_inputs(both, 2)).shape == (2, 4)
    assert [tuple(x.shape) for x in example_inputs(both, 2)] == [(2, 1, 4, 5), (2, 3)]
    swapped = ModelSpec(TOYS + "two", {}, both.classes, dict(reversed(inputs.items())))
    with pytest.raises(ConfigError, match="fails on a batch"):
        build(swapped, seed=0)
    with pytest.raises(ConfigError, match="take input_shapes"):
        build(ModelSpec("compressor.models.mlp:mlp", {}, both.classes, inputs), seed=0)


def test_regression_has_one_output():
    network = build(spec("mlp", (5,), classes=0, task="regression"), seed=0)
    assert run(network, torch.randn(3, 5)).shape == (3, 1)


def test_lazy_layers_are_materialised_from_the_seed():
    first, again = (build(spec(TOYS + "lazy"), seed=2).state_dict() for _ in range(2))
    assert first["1.weight"].shape == (5, 768)
    assert all(torch.equal(first[k], again[k]) for k in first)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(8, 33), st.integers(8, 33)),
    stem=st.sampled_from(["full", "pool", "stride"]),
)
def test_images_need_not_be_square_or_even(shape, stem):
    for model in ("resnet", "mobilenet"):
        extra = {"depth": 8, "width": 2} if model == "resnet" else {"width": 0.1}
        build(spec({"name": model, "stem": stem, **extra}, shape, 3), seed=0)


def weights(tmp_path, model, **changes):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state.update({k: v for k, v in changes.items() if v is not None})
    for key in [k for k, v in changes.items() if v is None]:
        del state[key]
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


def test_weights_are_loaded_and_another_number_of_classes_keeps_a_fresh_head(tmp_path):
    source = build(spec({"name": "resnet", "depth": 8, "width": 4}, classes=7), seed=1)
    model = {"name": "resnet", "depth": 8, "width": 4, "weights": weights(tmp_path, source)}
    model["sha256"] = digest_file(tmp_path / "w.safetensors")
    same, other = build(spec(model, classes=7), seed=2), build(spec(model, classes=5), seed=2)
    fresh = build(spec({"name": "resnet", "depth": 8, "width": 4}, classes=5), seed=2)
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in source.state_dict().items())
    assert torch.equal(other.stem[0].weight, source.stem[0].weight)
    assert torch.equal(other.head.weight, fresh.head.weight)


def test_what_keeps_fresh_values_is_said_by_name(tmp_path):
    source = build(spec({"name": "mlp", "hidden": [7, 5]}, classes=7), seed=1)
    given = {"name": "mlp", "hidden": [7, 5], "weights": weights(tmp_path, source)}
    said = []
    build(spec(given, classes=7), seed=0, say=said.append)
    assert said == []
    build(spec(given, classes=4), "train.model", seed=0, say=said.append)
    (line,) = said
    assert line.startswith(f"train.model: not taken from {tmp_path / 'w.safetensors'}, ")
    assert line.endswith(": 5.bias [4] (the file has [7]), 5.weight [4, 5] (the file has [7, 5])")


def test_weights_of_another_file_or_network_are_refused(tmp_path):
    source = build(spec({"name": "mlp", "hidden": [4]}), seed=1)
    good = weights(tmp_path, source)
    with pytest.raises(IntegrityError, match="expected 000"):
        build(spec({"name": "mlp", "hidden": [4], "weights": good, "sha256": "0" * 64}), seed=0)
    with pytest.raises(ConfigError, match=r"1\.bias has shape \(4,\), the network \(5,\)"):
        build(spec({"name": "mlp", "hidden": [5], "weights": good}), seed=0)
    with pytest.raises(ConfigError, match=r"2 missing, e\.g\. 5\.weight"):
        build(spec({"name": "mlp", "hidden": [4, 4], "weights": good}), seed=0)
    with pytest.raises(ConfigError, match="2 not in the network"):
        build(spec({"name": "mlp", "hidden": [], "weights": good}, (3, 16, 16), 4), seed=0)
    with pytest.raises(ConfigError, match="No such file"):
        build(spec({"name": "mlp", "weights": "nowhere.safetensors"}), seed=0)
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04no pickle is read")
    with pytest.raises(IntegrityError, match="no safetensors file"):
        build(spec({"name": "mlp", "hidden": [4], "weights": good}), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("torchvision:resnet81", "did you mean 'resnet18'"),
        ("torchvision:fcn_resnet50", "unknown"),
        ({"name": "torchvision:resnet18", "colour": 1}, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_torchvision_network_that_cannot_be_called_is_named_with_the_reason(model, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        build(spec(model), seed=0)


@pytest.mark.slow
def test_colour_weights_for_a_grey_dataset_are_refused_with_advice(tmp_path):
    model = {"name": "torchvision:squeezenet1_1"}
    path = weights(tmp_path, build(spec(model, (3, 32, 32)), seed=0))
    with pytest.raises(ConfigError, match="for 3 channels, the dataset has 1"):
        build(spec({**model, "weights": path}, (1, 32, 32)), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18", "mobilenet_v2", "mnasnet0_5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_networks_take_the_dataset_s_channels_and_classes(network, channels):
    built = build(spec(f"torchvision:{network}", (channels, 32, 32), 4), seed=0)
    assert run(built, torch.randn(2, channels, 32, 32)).shape == (2, 4)
