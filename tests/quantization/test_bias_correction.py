from __future__ import annotations

from types import MappingProxyType

import numpy as np
import onnxruntime
import pytest

from compressor.quantization import parts, qdq
from compressor.quantization.bias_correction import apply, correct
from compressor.quantization.calibrate import calibrate
from compressor.quantization.graph import Graph, constant_of
from compressor.quantization.prepare import clean
from compressor.quantization.samples import Samples
from compressor.quantization.select import select
from compressor.quantization.target import resolve
from compressor.quantization.weights import bias_scale
from tests.quantization.graphs import build, images, random_network, zoo

TARGET = resolve("portable")


def ready(model, samples, batch=7):
    graph = Graph(clean(model))
    selection, feeds = select(graph), Samples(samples).feeds(batch)
    ranges = calibrate(graph, selection.ranges_needed(), feeds).ranges
    return graph, selection, ranges, feeds


def runs(model, feed, names=None):
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(names, feed)


def half_steps(written, node, roots=MappingProxyType({})):
    """Half a step of the int32 bias per channel: what no bias can express."""
    quantized = written.weights[node.name]
    return (
        bias_scale(written.tensors[roots.get(node.input[0], node.input[0])].scale, quantized.scale)
        / 2
    )


@pytest.mark.parametrize("bias", [True, False])
def test_the_mean_error_of_a_linear_layer_vanishes_within_the_grid_of_its_bias(bias):
    shapes = {"w": (20, 6)} | ({"b": (6,)} if bias else {})
    model = build(f"y = Gemm(x, w{', b' if bias else ''})", shapes, inputs="float[N,20] x")
    feed = {"x": np.abs(images(50, 20)) + 1}  # a mean far from 0 makes the rounding errors add up
    graph, selection, ranges, feeds = ready(model, feed)
    exact = runs(graph.model, feed)[0]
    plain = qdq.write(graph, selection, ranges, TARGET)
    found = correct(graph, selection, ranges, TARGET, feeds)
    written = qdq.write(found.graph, selection, ranges, TARGET)
    before = np.abs((runs(plain.model, feed)[0] - exact).mean(axis=0, dtype=np.float64))
    after = np.abs((runs(written.model, feed)[0] - exact).mean(axis=0, dtype=np.float64))
    limit = half_steps(written, graph.nodes[0]) + 1e-6
    assert (before > 4 * limit).any()
    assert (after <= limit).all()


@pytest.mark.parametrize("model", [zoo(), random_network(3), random_network(11)])
def test_layer_by_layer_no_sum_of_a_network_keeps_a_mean_error(model):
    graph, selection, ranges, feeds = ready(model, {"x": images()})
    found = correct(graph, selection, ranges, TARGET, feeds)
    written = qdq.write(found.graph, selection, ranges, TARGET)
    made = {n.name: n for n in written.model.graph.node}
    for group in parts.levels(graph, selection):
        for node in group:
            axes = parts.channel_axis(node, graph)
            one = parts.per_channel(graph.model, {node.output[0]: axes}, feeds)
            raw = made[node.name].output[0]
            two = parts.per_channel(written.model, {raw: axes}, feeds)
            error = np.abs(one[node.output[0]] - two[raw])
            assert (error <= half_steps(written, node, selection.roots) + 2e-6).all(), node.name
    assert set(found.deltas) == {n for n, k in selection.kinds.items() if k == "weighted"}
    assert not found.skipped


def test_the_batch_size_does_not_matter():
    graph, selection, ranges, _ = ready(zoo(), {"x": images()})
    one, many = (
        correct(graph, selection, ranges, TARGET, Samples({"x": images()}).feeds(b)).deltas
        for b in (24, 5)
    )
    for name, delta in one.items():
        assert many[name] == pytest.approx(delta, abs=1e-5)


def test_what_it_learned_is_part_of_the_rounding_it_is_given():
    graph, selection, ranges, feeds = ready(
        build("y = Gemm(x, w)", {"w": (20, 6)}, inputs="float[N,20] x"), {"x": images(30, 20)}
    )
    nearest = qdq.write(graph, selection, ranges, TARGET).weights
    weight = constant_of(graph.nodes[0], graph, 1).T
    values = np.floor(weight / nearest[graph.nodes[0].name].scale[:, None]).astype(np.int8)
    found = correct(graph, selection, ranges, TARGET, feeds, rounding={graph.nodes[0].name: values})
    plain = correct(graph, selection, ranges, TARGET, feeds)
    written = qdq.write(found.graph, selection, ranges, TARGET, {graph.nodes[0].name: values})
    feed = {"x": images(30, 20)}
    error = (runs(written.model, feed)[0] - runs(graph.model, feed)[0]).mean(axis=0)
    assert (np.abs(error) <= half_steps(written, graph.nodes[0]) + 1e-6).all()
    assert not np.allclose(found.deltas[graph.nodes[0].name], plain.deltas[graph.nodes[0].name])


def test_the_bias_of_a_matrix_product_of_rank_3_is_the_add_behind_it():
    body = "a = MatMul(x, w) y = Add(b, a) d = MatMul(x, v) z = Relu(d)"
    model = build(body, {"w": (8, 6), "b": (6,), "v": (8, 5)}, inputs="float[N,4,8] x",
                  outputs="float[N,4,6] y, float[N,4,5] z")  # fmt: skip
    feed = {"x": np.abs(images(40, 4, 8))}
    graph, selection, ranges, feeds = ready(model, feed)
    found = correct(graph, selection, ranges, TARGET, feeds)
    assert found.skipped == ("MatMul_d",)
    written = qdq.write(found.graph, selection, ranges, TARGET)
    exact, got = runs(graph.model, feed, ["y"])[0], runs(written.model, feed, ["y"])[0]
    assert np.abs((got - exact).mean(axis=(0, 1))).max() < 1e-5


def test_a_matrix_product_without_a_bias_gets_one():
    model = build("y = MatMul(x, w)", {"w": (20, 6)}, inputs="float[N,20] x")
    graph, selection, ranges, feeds = ready(model, {"x": np.abs(images(30, 20))})
    found = correct(graph, selection, ranges, TARGET, feeds)
    assert [n.op_type for n in found.graph.nodes] == ["Gemm"]
    assert constant_of(found.graph.nodes[0], found.graph, 2).shape == (6,)


def test_a_bias_that_layers_share_is_corrected_for_each():
    body = "a = Conv(x, w, b) r = Relu(a) c = Conv(r, v, b) y = Flatten(c)"
    model = build(body, {"w": (4, 3, 1, 1), "v": (4, 4, 1, 1), "b": (4,)})
    graph = Graph(clean(model))
    changed = apply(graph, {"Conv_a": np.arange(4.0), "Conv_c": -np.arange(4.0)})
    shared = graph.array("b")
    biases = [constant_of(n, changed, 2) for n in changed.nodes if n.op_type == "Conv"]
    assert biases[0] == pytest.approx(shared + np.arange(4))
    assert biases[1] == pytest.approx(shared - np.arange(4))
    assert "b" not in changed.constants


def test_only_channel_sums_are_kept_of_each_batch(monkeypatch):
    most = 0
    opened = parts.open_model

    def watch(model, threads=1):
        session = opened(model, threads)

        class Counting:
            def run(self, names, feed):
                nonlocal most
                got = session.run(names, feed)
                most = max(most, max(a[0].size for a in got))
                return got

        return Counting()

    monkeypatch.setattr(parts, "open_model", watch)
    correct(*ready(zoo(), {"x": images()})[:3], TARGET, Samples({"x": images()}).feeds(8))
    assert most == 16  # channels of the widest layer; its map has 16 * 4 * 4 values


def test_when_told_to_stop_it_keeps_the_layers_it_has_corrected():
    graph, selection, ranges, feeds = ready(zoo(), {"x": images()})
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 2

    everything = correct(graph, selection, ranges, TARGET, feeds).deltas
    found = correct(graph, selection, ranges, TARGET, feeds, stop=stop)
    front = [n.name for level in parts.levels(graph, selection)[:2] for n in level]
    assert list(found.deltas) == front
    assert all(np.array_equal(found.deltas[n], everything[n]) for n in front)
