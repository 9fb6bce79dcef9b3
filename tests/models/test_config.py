import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from compressor.core.config import Config, Invalid, validate
from compressor.models import MODELS, ModelConfig, model_spec
from compressor.models.options import OPTIONS
from tests.models.support import NETWORKS, data, name


class Holder(Config):
    model: ModelConfig


def strict(model):
    return Holder.model_validate_json(json.dumps({"model": model}), strict=True).model


def test_every_name_has_options_and_a_reference():
    assert MODELS.keys() == OPTIONS.keys()
    assert all(strict(n).factory() == ref for n, ref in MODELS.items())


def test_a_word_is_a_name():
    assert strict("lenet5") == strict({"name": "lenet5"})


@pytest.mark.parametrize("model", NETWORKS, ids=name)
def test_the_resolved_form_is_concrete_and_resolves_to_itself(model):
    first = strict(model)
    again = strict(first.model_dump(mode="json"))
    assert again == first
    assert again.arguments() == first.arguments()
    if first.name in OPTIONS:
        assert first.arguments().keys() == OPTIONS[first.name].model_fields.keys()
        assert None not in first.arguments().values()
    json.dumps(first.arguments(), allow_nan=False)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("lenet6", "did you mean 'lenet5'"),
        ("resnet18", "torchvision:NAME"),
        ("torchvision:", "torchvision:resnet18"),
        ("my nets:f", "package.module:attribute"),
        ({"name": "resnet", "dept": 8}, "unknown argument 'dept'; did you mean 'depth'"),
        ({"name": "resnet", "depth": 8, "widht": 4}, "did you mean 'width'"),
        ({"name": "resnet", "depth": 9}, "nearest 8"),
        ({"name": "resnet", "depth": "8"}, 'resnet.depth: got "8"; needs a whole number'),
        ({"name": "resnet", "depth": True}, "resnet.depth"),
        ({"name": "resnet", "width": 0}, "resnet.width: got 0; needs at least 1"),
        ({"name": "resnet", "width": 8, "widths": [16, 32, 64]}, "contradicts widths"),
        ({"name": "resnet", "depth": 20, "blocks": [1, 1, 1]}, "contradicts blocks"),
        ({"name": "resnet", "widths": [8, 8], "blocks": [1, 1, 1]}, "equally long, got [2, 3]"),
        ({"name": "resnet", "widths": []}, "equally long"),
        ({"name": "resnet", "stem": "pol"}, "'full', 'pool' or 'stride'"),
        ({"name": "resnet", "strides": [1, 3, 1]}, "resnet.strides.1"),
        ({"name": "mobilenet", "widths": [8, 8]}, "equally long"),
        ({"name": "mobilenet", "activation": "gelu"}, "needs 'relu', 'relu6' or 'hardswish'"),
        ({"name": "lenet_300_100", "hidden": 3}, "takes none"),
        ({"name": "lenet5", "widths": [1, 2, 3]}, "got [1, 2, 3]; needs a list of at most 2"),
        ({"name": "mlp", "dropout": 1.0}, "mlp.dropout: got 1.0; needs less than 1"),
        ({"name": "mlp", "num_classes": 3}, "comes from the dataset"),
        ({"name": "my.nets:f", "input_shape": [1]}, "comes from the dataset"),
        ({"name": "mlp", "weights": "w.pth"}, "torch.load('w.pth', weights_only=True)"),
        ({"name": "mlp", "sha256": "0" * 64}, "sha256 without weights"),
        ({"name": "mlp", "weights": "w.safetensors", "sha256": "0"}, "should match pattern"),
        ({"name": "resnet", "widths": "8"}, 'resnet.widths: got "8"; needs a list'),
    ],
)
def test_a_mistake_is_named_with_the_nearest_valid_word(model, words):
    with pytest.raises(ValidationError) as caught:
        strict(model)
    assert words in str(caught.value)


def test_no_word_of_the_library_that_checks_reaches_the_user():
    for model in ({"name": "resnet", "depth": "8"}, {"name": "mlp", "sha256": "0"}):
        with pytest.raises(Invalid) as caught:
            validate(Holder, {"model": model})
        said = str(caught.value)
        assert "; needs " in said
        assert not [w for w in ("Input should", "String should", "Value error") if w in said]


def test_all_mistakes_of_a_network_are_found_at_once():
    with pytest.raises(ValidationError) as caught:
        strict({"name": "resnet", "depht": 8, "stem": "x", "width": -1})
    message = str(caught.value)
    assert all(word in message for word in ("'depht'", "resnet.stem", "resnet.width"))


def test_nan_cannot_be_an_argument():
    with pytest.raises(ValidationError, match="JSON"):
        ModelConfig(name="my.nets:f", rate=float("nan"))


def test_weights_travel_as_reserved_arguments_and_are_external():
    config = strict({"name": "torchvision:resnet18", "weights": "w.safetensors"})
    assert config.arguments() == {"network": "resnet18", "weights": "w.safetensors"}
    assert [str(p) for p in config.externals()] == ["w.safetensors"]
    assert strict("mlp").externals() == ()


def test_the_spec_takes_classes_inputs_and_task_from_the_dataset():
    dataset = data((1, 8, 8), 3)
    spec = model_spec(ModelConfig(name="mlp"), dataset)
    assert (spec.classes, spec.inputs, spec.task) == (dataset.classes, dataset.inputs, dataset.task)


@settings(max_examples=30, deadline=None)
@given(stages=st.integers(1, 4), blocks=st.integers(1, 5), width=st.integers(1, 64))
def test_depth_and_blocks_are_two_ways_to_say_the_same(stages, blocks, width):
    widths = [width * 2**i for i in range(stages)]
    depth = 2 * stages * blocks + 2
    by_depth = strict({"name": "resnet", "depth": depth, "widths": widths})
    by_blocks = strict({"name": "resnet", "blocks": [blocks] * stages, "width": width})
    assert by_depth.arguments() == by_blocks.arguments()


def test_the_package_loads_no_torch():
    code = (
        "import sys; import compressor.models, compressor.models.card; "
        "compressor.models.ModelConfig(name='resnet'); "
        "sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
