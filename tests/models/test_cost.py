import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.models import build, cost
from tests.models.support import NETWORKS, name, spec


@pytest.mark.parametrize(
    ("model", "shape", "parameters", "macs"),
    [
        # By hand: He et al. report 0.27M for ResNet-20; projections instead of padding add 2,752.
        ({"name": "resnet", "depth": 20}, (3, 32, 32), 272_474, 40_813_184),
        # The pooled network of 93.6 % on Fashion-MNIST and its small sister.
        (
            {"name": "resnet", "depth": 8, "widths": [48, 96, 96], "strides": [1, 2, 1],
             "stem": "pool"},
            (1, 28, 28), 339_034, 22_918_848,
        ),
        (
            {"name": "resnet", "depth": 8, "widths": [16, 32, 32], "strides": [1, 2, 1],
             "stem": "pool"},
            (1, 28, 28), 38_266, 2_622_016,
        ),
        # Deep Compression, tables 2 and 3: 431k and 267k.
        ("lenet5", (1, 28, 28), 431_080, 2_293_000),
        ("lenet_300_100", (1, 28, 28), 266_610, 266_200),
    ],
)  # fmt: skip
def test_published_and_hand_counted_sizes(model, shape, parameters, macs):
    what = spec(model, shape)
    network = build(what, seed=0)
    assert (cost.parameters(network), cost.macs(network, what)) == (parameters, macs)


@pytest.mark.slow
@pytest.mark.parametrize("network", [("resnet18", 1814), ("mobilenet_v2", 301)])
def test_torchvision_s_published_gmacs(network):
    what = spec(f"torchvision:{network[0]}", (3, 224, 224), 1000)
    built = build(what, seed=0)
    assert round(cost.macs(built, what) / 1e6) == network[1]


@settings(max_examples=10, deadline=None)
@given(blocks=st.integers(1, 3), width=st.integers(1, 9), channels=st.integers(1, 4))
def test_parameters_of_a_resnet_follow_the_formula(blocks, width, channels):
    what = spec({"name": "resnet", "depth": 6 * blocks + 2, "width": width}, (channels, 8, 8), 7)
    expected = 9 * channels * width + 2 * width
    inside = width
    for outside in (width, 2 * width, 4 * width):
        for _ in range(blocks):
            expected += 9 * inside * outside + 9 * outside**2 + 4 * outside
            expected += 0 if inside == outside else inside * outside + 2 * outside
            inside = outside
    assert cost.parameters(build(what, seed=0)) == expected + 7 * inside + 7


def test_each_kind_of_layer_by_hand():
    what = spec({"name": "tests.models.toys:tiny", "width": 4}, (3, 6, 6), 5)
    network = build(what, seed=0)
    assert cost.layer_macs(network, what) == {
        "conv": 36 * 4 * 3 * 9,
        "depthwise": 36 * 4 * 9,
        "up": 36 * 4 * 4 * 4,
        "head": 4 * 5,
    }


def test_attention_counts_its_projections():
    what = spec("tests.models.toys:attention", (3, 5, 8), 2)
    network = build(what, seed=0)
    rows, width = 5, 8
    assert cost.layer_macs(network, what) == {"attention": 4 * rows * width**2, "head": 2 * width}


def test_a_layer_that_is_called_twice_counts_twice_and_parameters_once():
    what = spec("tests.models.toys:tied", (1, 2, 2), 3)
    network = build(what, seed=0)
    network.third = network.second
    assert cost.macs(network, what) == 4 * 6 + 2 * 36 + 6 * 3
    assert cost.parameters(network) == 30 + 42 + 21


def test_counting_leaves_no_hooks_and_no_statistics():
    what = spec({"name": "resnet", "depth": 8, "width": 4})
    network = build(what, seed=0).train()
    cost.macs(network, what)
    assert not any(m._forward_hooks for m in network.modules())
    assert all(m.training for m in network.modules())
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.running_mean.any() for m in norms)


def onnx_macs(path):
    """From the shapes of an ONNX graph alone; none of these networks has another weighted node."""
    import onnx
    from onnx import shape_inference

    model = onnx.load(path)
    del model.graph.value_info[:]
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {i.name: list(i.dims) for i in graph.initializer}
    constant = set(shapes)
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        shapes[value.name] = [d.dim_value for d in dims]
    total = 0
    for node in graph.node:
        assert node.op_type not in ("Einsum", "QLinearConv", "Loop", "If")
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        weight = shapes[node.input[1]]
        outputs = math.prod(shapes[node.output[0]])
        if node.op_type == "Conv":
            total += outputs * math.prod(weight[1:])
        elif node.op_type == "ConvTranspose":
            total += math.prod(shapes[node.input[0]]) * math.prod(weight[1:])
        elif node.op_type == "Gemm":
            total += outputs * weight[1 if any(a.name == "transB" for a in node.attribute) else 0]
        elif node.input[1] in constant:
            total += outputs * weight[0]
    return total


def check_export(network, what, path):
    from compressor.runtime.cost import graph_cost

    program = torch.onnx.export(
        network.eval(), (torch.randn(2, 3, 16, 16),), dynamo=True,
        dynamic_shapes=({0: "batch"},), opset_version=18, verbose=False,
    )  # fmt: skip
    graph = program.model_proto.graph
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param
    program.save(path, external_data=False)
    assert onnx_macs(path) == cost.macs(network, what)
    assert graph_cost(path).macs == cost.macs(network, what)


QUICK = ({"name": "lenet5", "widths": [4, 6], "hidden": 10}, NETWORKS[0])


@pytest.mark.parametrize(
    "model",
    [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in NETWORKS],
    ids=name,
)
def test_macs_are_those_of_the_exported_graph_whose_batch_is_free(tmp_path, model):
    what = spec(model)
    check_export(build(what, seed=0), what, tmp_path / "m.onnx")


def test_macs_of_a_pruned_network_are_those_of_its_exported_graph(tmp_path):
    from compressor.pruning.channels import Options, Target, prune_channels_

    what = spec({"name": "lenet5", "widths": [8, 12], "hidden": 20})
    network = build(what, seed=0).eval()
    full = cost.macs(network, what)
    cut = prune_channels_(
        network, (torch.randn(2, 3, 16, 16),), Target("macs", 0.5), Options(round_to=1)
    )
    assert cut.widths
    assert cut.macs == cost.macs(network, what) <= full / 2
    check_export(network, what, tmp_path / "m.onnx")
