from __future__ import annotations

import pytest
from onnx import helper

from compressor.quantization.graph import Graph
from compressor.quantization.plain import Options, quantize
from compressor.quantization.prepare import clean
from compressor.quantization.regions import divide, excluded, split
from compressor.quantization.select import select
from compressor.quantization.times import Names, border_rate, layer_times, region_times
from compressor.runtime.profile import node_times, optimized_graph
from tests.quantization.graphs import images, put, zoo
from tests.quantization.test_sensitivity import branches

BORDER = {"QuantizeLinear", "DequantizeLinear"}
LAYOUT = {"Transpose", "ReorderInput", "ReorderOutput"}


@pytest.fixture
def world(tmp_path):
    graph = Graph(clean(zoo()))
    regions = divide(graph, select(graph))
    in_float = put(graph.model, tmp_path / "float.onnx")

    def write(floats=()):
        out = tmp_path / "int8.onnx"
        options = Options(exclude=excluded(regions, floats))
        quantize(in_float, out, {"x": images()}, options)
        return out

    return graph, regions, in_float, write


def test_every_executed_node_counts_to_one_region_in_either_form(world):
    graph, regions, in_float, write = world
    for path in (in_float, write()):
        executed = optimized_graph(path)
        times = {node.name: 1.0 for node in executed.graph.node}
        spent = region_times(executed, times, graph, regions)
        assert all(us >= 1 for us in spent)
        nodes = [n for n in executed.graph.node if n.op_type not in BORDER]
        outside = path != in_float  # the change of layout of the input itself
        assert sum(spent) == len(nodes) - outside


def test_the_times_of_a_profile_are_found_under_the_graphs_names(world):
    graph, regions, in_float, write = world
    for path in (in_float, write(), write({1, 3})):
        executed = optimized_graph(path)
        times = node_times(path, {"x": images(1)}, runs=2)
        assert set(times) == {node.name for node in executed.graph.node}
        borders = {n.name for n in executed.graph.node if n.op_type in BORDER}
        inside = sum(us for name, us in times.items() if name not in borders)
        found = region_times(executed, times, graph, regions)
        # A change of layout at the very input belongs to no region.
        assert 0.8 * inside <= sum(found) <= inside


def test_a_border_costs_what_the_line_through_its_nodes_says(world):
    graph, _, _, write = world
    executed = optimized_graph(write({1, 3}))
    names = Names(graph)
    sizes = {name: 64 * (i + 1) for i, name in enumerate([*graph.producer, "x"])}

    def price(node):
        if node.op_type in LAYOUT:
            return 0.0
        tensor = node.input[0] if node.op_type == "QuantizeLinear" else node.output[0]
        return 2.0 + 0.01 * sizes.get(names.tensor(tensor), 0)

    times = {node.name: price(node) for node in executed.graph.node}
    assert border_rate(executed, times, graph, sizes) == pytest.approx((2.0, 0.01))
    layout = {n.name for n in executed.graph.node if n.op_type in LAYOUT}
    assert layout
    dearer = {name: 10.0 if name in layout else us for name, us in times.items()}
    assert border_rate(executed, dearer, graph, sizes) > (2.0, 0.01)


def test_a_model_without_borders_has_no_price_for_them(world):
    graph, _, in_float, _ = world
    executed = optimized_graph(in_float)
    times = {node.name: 1.0 for node in executed.graph.node}
    assert border_rate(executed, times, graph, {}) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "node"),
    [("ar_nchwc", "Relu_ar"), ("Conv_c_token_4", "Conv_c"), ("cr/DQ", "Clip_cr"),
     ("HardSwish_hs/hard/Add", "HardSwish_hs"), ("HardSwish_hs_1", "HardSwish_hs"),
     ("er_q_to_dq", "Relu_er"), ("reorder_token_7", ""), ("x/Q", "")],
)  # fmt: skip
def test_tails_that_the_runtime_adds_are_taken_off(world, name, node):
    assert Names(world[0]).node(name) == node


@pytest.fixture
def skipped(tmp_path):
    """A network with branches, its region of two convolutions and an addition, and its files."""
    graph = Graph(clean(branches()))
    region = next(r for r in divide(graph, select(graph)) if "Conv_s" in r.weighted)
    in_float, int8 = put(graph.model, tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    quantize(in_float, int8, {"x": images()}, Options())
    return graph, region, (in_float, int8)


def test_the_parts_of_a_region_take_its_time_and_a_layer_what_was_fused_into_it(skipped):
    graph, region, files = skipped
    parts = split(graph, region)
    for path in files:
        executed = optimized_graph(path)
        times = {node.name: 2.0**i for i, node in enumerate(executed.graph.node)}
        found = layer_times(executed, times, graph, parts)
        assert sum(found) == region_times(executed, times, graph, [region])[0]
        names = Names(graph)
        for part, us in zip(parts, found, strict=True):
            own = [n.name for n in executed.graph.node if names.node(n.name) in part.nodes]
            assert us == sum(times[name] for name in own)
            assert not part.weighted or len(own) == 1


def test_a_fused_layer_without_a_name_of_its_own_is_known_by_its_weights(skipped):
    graph, region, _ = skipped
    fused = helper.make_node("FusedConv", ["ar", "w3", "b3", "c"], ["er"], name="fused 1")
    executed = helper.make_model(helper.make_graph([fused], "g", [], []))
    parts = split(graph, region)
    found = layer_times(executed, {"fused 1": 7.0}, graph, parts)
    assert dict(zip([part.name for part in parts], found, strict=True))["Conv_s"] == 7.0
    assert sum(found) == 7.0
