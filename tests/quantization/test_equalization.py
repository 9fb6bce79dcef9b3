from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from compressor.quantization import equalization, qdq
from compressor.quantization.calibrate import calibrate
from compressor.quantization.equalization import equalize, pairs, peaks
from compressor.quantization.graph import Graph, constant_of
from compressor.quantization.parts import replace
from compressor.quantization.prepare import clean
from compressor.quantization.samples import Samples
from compressor.quantization.select import select
from compressor.quantization.target import resolve
from tests.quantization.graphs import AXES, build, images, random_network, zoo


def run(model, feed):
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)[0]


def lopsided(model, seed=0, span=30.0):
    """Give the output channels of every weight factors between 1 / span and span."""
    rng = np.random.default_rng(seed)
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.ndim > 1:
            factor = span ** rng.uniform(-1, 1, (len(value), *[1] * (value.ndim - 1)))
            value = (value * factor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


def same(one, two, feed):
    a, b = run(one.model, feed), run(two.model, feed)
    return float(np.abs(a - b).max() / np.abs(a).max()) <= 1e-5


CHAIN = """
 a = Conv<pads=[1,1,1,1]>(x, w0, b0) ar = Relu(a)
 d = Conv<pads=[1,1,1,1], group=8>(ar, w1, b1) dr = PRelu(d, slope)
 g = Conv<group=2>(dr, w2) gl = LeakyRelu<alpha=0.1>(g) gp = MaxPool<kernel_shape=[2,2]>(gl)
 c = Conv(gp, w3, b3) p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(c) f = Flatten(p)
 h = Gemm<transB=1>(f, w4, b4) hr = Relu(h)
 y = Gemm(hr, w5, b5)
"""
SHAPES = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 1, 3, 3), "b1": (8,), "slope": (8, 1, 1),
    "w2": (6, 4, 1, 1), "w3": (4, 6, 1, 1), "b3": (4,), "w4": (12, 36), "b4": (12,),
    "w5": (12, 5), "b5": (5,),
}  # fmt: skip


def test_a_chain_of_every_kind_is_paired_and_stays_the_same_function():
    graph = Graph(clean(lopsided(build(CHAIN, SHAPES))))
    found = equalize(graph)
    names = [(p.first, p.second, p.tensor) for p in found.pairs]
    assert names == [
        ("Conv_a", "Conv_d", "ar"), ("Conv_d", "Conv_g", "dr"), ("Conv_g", "Conv_c", "gl"),
        ("Conv_c", "Gemm_h", "c"), ("Gemm_h", "Gemm_y", "hr"),
    ]  # fmt: skip
    assert all(p.high > 1.5 * p.low for p in found.pairs)
    assert same(graph, found.graph, {"x": images()})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), aware=st.booleans())
def test_random_networks_stay_the_same_function(seed, aware):
    graph = Graph(clean(lopsided(random_network(seed), seed, 5.0)))
    observed = peaks(graph, Samples({"x": images()}).feeds(9)) if aware else {}
    found = equalize(graph, observed)
    assert same(graph, found.graph, {"x": images(16, seed=2)})
    assert [n.name for n in graph.nodes] == [n.name for n in found.graph.nodes]


@pytest.mark.parametrize(
    "between",
    ["r = Clip(a, zero, six)", "r = HardSwish(a)", "r = Sigmoid(a)", "r = Add(a, b)",
     "r = PRelu(a, x)", "r = Softmax(a)", "r = Transpose<perm=[0,1,3,2]>(a)"],
)  # fmt: skip
def test_what_is_not_homogeneous_per_channel_is_not_crossed(between):
    body = f"a = Conv(x, w, b) {between} c = Conv(r, v) y = Flatten(c)"
    shapes = {"w": (3, 3, 1, 1), "b": (1,), "v": (4, 3, 1, 1)}
    shapes["b"] = (3,) if "Add" not in between else (1, 1, 1, 8)
    if "Add" in between:
        body = body.replace("Conv(x, w, b)", "Conv(x, w)")
    assert pairs(Graph(clean(build(body, shapes, constants=AXES)))) == ()


@pytest.mark.parametrize(
    "rest",
    ["e = Add(c, r) y = Flatten(e)", "s = Sigmoid(r) e = Mul(c, s) y = Flatten(e)",
     "d = Conv(r, w2) e = Add(c, d) y = Flatten(e)"],
)  # fmt: skip
def test_a_tensor_with_two_readers_is_left_alone(rest):
    body = f"a = Conv(x, w0) r = Relu(a) c = Conv(r, w1) {rest}"
    graph = Graph(clean(build(body, {"w0": (4, 3, 1, 1), "w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1)})))
    assert pairs(graph) == ()


def test_a_graph_output_is_left_alone():
    model = build("r = Conv(x, w0) c = Conv(r, w1) y = Flatten(c)",
                  {"w0": (4, 3, 1, 1), "w1": (4, 4, 1, 1)},
                  outputs="float[N,M] y, float[N,4,8,8] r")  # fmt: skip
    assert pairs(Graph(clean(model))) == ()


def test_layers_that_share_a_weight_each_get_their_own():
    body = (
        "a = Conv(x, w, b) r = Relu(a) c = Conv(r, w, b) s = Relu(c) d = Conv(s, w) y = Flatten(d)"
    )
    graph = Graph(clean(lopsided(build(body, {"w": (3, 3, 1, 1), "b": (3,)}))))
    found = equalize(graph)
    assert len(found.pairs) == 2
    assert same(graph, found.graph, {"x": images()})


def test_one_pair_ends_with_equal_ranges_as_the_paper_says():
    body = "a = Conv(x, w0) r = Relu(a) c = Conv(r, w1) y = Flatten(c)"
    shapes = {"w0": (8, 3, 3, 3), "w1": (4, 8, 3, 3)}
    graph = Graph(clean(lopsided(build(body, shapes))))
    one, two = (np.abs(graph.array(n)) for n in ("w0", "w1"))
    found = equalize(graph)
    convs = [n for n in found.graph.nodes if n.op_type == "Conv"]
    first, second = (np.abs(constant_of(n, found.graph, 1)) for n in convs)
    expected = np.sqrt(one.max(axis=(1, 2, 3)) * two.max(axis=(0, 2, 3)))
    assert first.max(axis=(1, 2, 3)) == pytest.approx(expected, rel=1e-5)
    assert second.max(axis=(0, 2, 3)) == pytest.approx(expected, rel=1e-5)
    assert found.rounds == 2


def test_it_ends_where_another_run_would_change_nothing():
    graph = Graph(clean(lopsided(build(CHAIN, SHAPES))))
    again = equalize(equalize(graph).graph)
    assert again.rounds <= 2
    assert all(0.99 < p.low <= p.high < 1.01 for p in again.pairs)


def test_dead_channels_and_channels_that_nobody_reads_stay():
    graph = Graph(clean(build("a = Conv(x, w0) r = Relu(a) c = Conv(r, w1) y = Flatten(c)",
                              {"w0": (4, 3, 1, 1), "w1": (2, 4, 1, 1)})))  # fmt: skip
    one, two = graph.array("w0").copy(), graph.array("w1").copy()
    one[1], two[:, 2] = 0, 0
    graph = replace(graph, {("Conv_a", 1): one, ("Conv_c", 1): two})
    found = equalize(graph)
    assert same(graph, found.graph, {"x": images()})
    assert all(np.isfinite(t).all() for t in map(found.graph.array, found.graph.constants))


def test_peaks_are_numpys_and_balance_the_activation_against_the_second_layer():
    body = "a = Conv(x, w0, b0) r = Relu(a) c = Conv(r, w1) y = Flatten(c)"
    graph = Graph(clean(lopsided(build(body, {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (4, 8, 1, 1)},
                                       outputs="float[N,M] y"))))  # fmt: skip
    feeds = Samples({"x": images()}).feeds(7)
    seen = peaks(graph, feeds)
    bias = graph.array("b0")[:, None, None]
    sums = np.einsum("oc,nchw->nohw", graph.array("w0")[:, :, 0, 0], images()) + bias
    assert seen["r"] == pytest.approx(np.maximum(sums, 0).max(axis=(0, 2, 3)), rel=1e-5)
    alive = seen["r"] > 0
    assert alive.sum() > 4
    found = equalize(graph, seen)
    after = peaks(found.graph, feeds)["r"]
    weight = np.abs(graph.array("w1")[:, :, 0, 0])
    share = (weight / weight.max(axis=1, keepdims=True)).max(axis=0)
    expected = np.sqrt(seen["r"] * share)
    assert np.ptp(np.log(after[alive] / expected[alive])) < 1e-4


def test_before_a_depthwise_layer_all_channels_get_the_same_peak():
    body = "a = Conv(x, w0) r = Relu(a) c = Conv<group=4>(r, w1) y = Flatten(c)"
    model = lopsided(build(body, {"w0": (4, 3, 1, 1), "w1": (8, 1, 3, 3)}), span=10)
    feeds = Samples({"x": images()}).feeds(7)
    graph = Graph(clean(model))
    found = equalize(graph, peaks(graph, feeds))
    assert np.ptp(np.log(peaks(found.graph, feeds)["r"])) < 1e-4
    assert same(graph, found.graph, {"x": images()})


def noise(graph, reference, feed):
    selection, feeds = select(graph), Samples(feed).feeds(8)
    ranges = calibrate(graph, selection.ranges_needed(), feeds).ranges
    written = qdq.write(graph, selection, ranges, resolve("portable"))
    return float(((run(written.model, feed) - run(reference.model, feed)) ** 2).sum())


def test_a_network_whose_balance_was_destroyed_gets_it_back():
    graph, feed = Graph(clean(build(CHAIN, SHAPES))), {"x": images()}
    rng = np.random.default_rng(0)
    factors = {p.first: 30.0 ** rng.uniform(-1, 1, p.channels) for p in pairs(graph)}
    spoilt = equalization._rewrite(graph, pairs(graph), factors)
    assert same(graph, spoilt, feed)
    fine, bad = noise(graph, graph, feed), noise(spoilt, graph, feed)
    seen = peaks(spoilt, Samples(feed).feeds(8))
    assert bad > 20 * fine
    assert noise(equalize(spoilt).graph, graph, feed) < 1.5 * fine
    assert noise(equalize(spoilt, seen).graph, graph, feed) < 4 * fine
    # and a network that was never spoilt only gains
    assert noise(equalize(graph).graph, graph, feed) < fine
    seen = peaks(graph, Samples(feed).feeds(8))
    assert noise(equalize(graph, seen).graph, graph, feed) < fine


def test_the_zoo_is_paired_only_where_it_may_be():
    assert {(p.first, p.second) for p in pairs(Graph(clean(zoo())))} == {("Conv_s1", "Conv_s2")}
