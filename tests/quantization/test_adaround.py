from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.quantization import qdq
from compressor.quantization.adaround import Learning, learn, reconstruct
from compressor.quantization.calibrate import calibrate
from compressor.quantization.graph import Graph, constant_of
from compressor.quantization.prepare import clean
from compressor.quantization.samples import Samples
from compressor.quantization.select import select
from compressor.quantization.target import resolve
from compressor.quantization.unfold import unfold
from compressor.quantization.weights import fits_16_bits, quantize_weight
from tests.quantization.graphs import build, images, random_network, zoo

ONE = np.float32(1)
SHORT = Learning(iterations=120, positions=256)


def layer(channels=6, reduction=18, positions=300, groups=1, seed=0):
    """Weights, correlated inputs as behind a Relu, and exact sums."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((4, reduction))
    inputs = rng.standard_normal((positions, groups, 4)) @ mix
    inputs = np.maximum(inputs + 0.3 * rng.standard_normal(inputs.shape), 0).astype(np.float32)
    weight = rng.standard_normal((channels, reduction)).astype(np.float32)
    split = weight.reshape(groups, -1, reduction)
    targets = np.einsum("pgr,gor->pgo", inputs, split).reshape(positions, channels)
    return weight, inputs, targets.astype(np.float32)


def objective(values, scale, inputs, targets):
    """Squared error per channel, in NumPy and float64."""
    groups = inputs.shape[1]
    rows = (values * scale[:, None].astype(np.float64)).reshape(groups, -1, values.shape[1])
    got = np.einsum("pgr,gor->pgo", inputs.astype(np.float64), rows).reshape(targets.shape)
    return ((got - targets) ** 2).mean(axis=0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), groups=st.sampled_from([1, 2, 6]), reduction=st.integers(1, 30),
    bits=st.sampled_from(["proven", "7", "8"]), steps=st.integers(1, 80),
)  # fmt: skip
def test_no_channel_is_worse_than_nearest_and_every_limit_holds(
    seed, groups, reduction, bits, steps
):
    weight, inputs, targets = layer(reduction=reduction, groups=groups, seed=seed)
    nearest = quantize_weight(weight, None, ONE, bits)
    values, gain = reconstruct(
        weight, nearest, inputs, targets, rng=np.random.default_rng(seed),
        learning=Learning(iterations=steps), proven=bits == "proven",
    )  # fmt: skip
    before = objective(nearest.values, nearest.scale, inputs, targets)
    after = objective(values, nearest.scale, inputs, targets)
    assert (after <= before * (1 + 1e-4)).all()
    assert gain.learned <= gain.nearest == pytest.approx(float(before.mean()), rel=1e-2)
    assert gain.flipped == (values != nearest.values).sum()
    assert (np.abs(values.astype(int)) <= nearest.grid[:, None]).all()
    assert (np.abs(values - weight / nearest.scale[:, None]) <= 1.001).all()
    if bits != "8":
        assert fits_16_bits(values).all()
    again = quantize_weight(weight, None, ONE, bits, values)
    assert np.array_equal(again.values, values)


@pytest.mark.parametrize(("reduction", "share"), [(18, 0.7), (600, 0.8)])
def test_correlated_inputs_gain_much_and_so_do_inputs_never_seen(reduction, share):
    weight, inputs, targets = layer(8, reduction, 1200)
    nearest = quantize_weight(weight, None, ONE, "proven")
    values, gain = reconstruct(
        weight, nearest, inputs[:800], targets[:800], rng=np.random.default_rng(0)
    )
    assert gain.learned < share * gain.nearest
    unseen = inputs[800:], targets[800:]
    before = objective(nearest.values, nearest.scale, *unseen).sum()
    assert objective(values, nearest.scale, *unseen).sum() < share * before
    assert fits_16_bits(values).all()


def test_the_best_of_all_roundings_is_nearly_found_where_all_can_be_tried():
    weight, inputs, targets = layer(4, 8)
    nearest = quantize_weight(weight, None, ONE, "7")
    values, _ = reconstruct(weight, nearest, inputs, targets, rng=np.random.default_rng(0))
    floor = np.clip(np.floor(weight / nearest.scale[:, None]), -64, 63)
    ups = (np.arange(256)[:, None] >> np.arange(8)) & 1
    got = objective(values, nearest.scale, inputs, targets)
    start = objective(nearest.values, nearest.scale, inputs, targets)
    best = np.min([objective(floor + up, nearest.scale, inputs, targets) for up in ups], axis=0)
    assert (got <= best + 0.35 * (start - best) + 1e-12).all()
    assert (got < start).any()


def test_a_rounding_that_would_break_the_16_bit_proof_is_repaired():
    # On the grid of 67: -67, 64.4 and 63.4. The target wants 65 and 64, which no pair may be.
    weight = np.array([[-1.0, 0.9612, 0.9463, 0.05]], np.float32)
    nearest = quantize_weight(weight, None, ONE, "proven")
    inputs = np.abs(np.random.default_rng(0).standard_normal((200, 1, 4))).astype(np.float32)
    wanted = (nearest.values + np.array([0, 1, 1, 0])) * nearest.scale[:, None]
    targets = (inputs[:, 0] @ wanted.T).astype(np.float32)
    free, proven = (
        reconstruct(weight, nearest, inputs, targets, rng=np.random.default_rng(0), proven=p)[0]
        for p in (False, True)
    )
    assert free[0, 1:3].tolist() == [65, 64]
    assert not fits_16_bits(free).any()
    assert fits_16_bits(proven).all()
    assert proven[0, 1:3].tolist() == [64, 64]  # one of the two is taken back


def test_a_layer_that_is_exact_already_stays():
    weight = np.array([[1, -2, 64], [0, 0, 0]], np.float32)
    inputs = np.ones((10, 1, 3), np.float32)
    nearest = quantize_weight(weight, None, ONE, "7")
    targets = inputs[:, 0] @ weight.T
    values, gain = reconstruct(weight, nearest, inputs, targets, rng=np.random.default_rng(0))
    assert np.array_equal(values, nearest.values)
    assert gain.flipped == gain.nearest == 0


CONVS = [
    ("pads=[1,2,0,1], strides=[2,1], dilations=[1,2]", (4, 3, 3, 3), "float[N,3,9,11] x"),
    ('auto_pad="SAME_UPPER", strides=[2,2]', (4, 3, 4, 3), "float[N,3,9,11] x"),
    ('auto_pad="SAME_LOWER", strides=[2,2]', (4, 3, 4, 4), "float[N,3,9,11] x"),
    ('auto_pad="VALID", group=3', (6, 1, 3, 3), "float[N,3,9,11] x"),
    ("pads=[2,1], group=3", (6, 1, 3), "float[N,3,9] x"),
    ("pads=[1,0,1,1,1,0]", (4, 3, 2, 1, 3), "float[N,3,4,5,6] x"),
]


@pytest.mark.parametrize(("attributes", "shape", "inputs"), CONVS)
def test_unfolded_inputs_times_weights_are_what_the_runtime_computes(attributes, shape, inputs):
    rank = len(shape)
    model = build(f"y = Conv<{attributes}>(x, w, b)", {"w": shape, "b": shape[:1]}, inputs=inputs,
                  outputs=f"float[{','.join('NCDEF'[:rank])}] y")  # fmt: skip
    graph = Graph(clean(model))
    size = tuple(int(d) for d in inputs.split("[")[1].split("]")[0].split(",")[1:])
    feed = images(3, *size)
    session = onnxruntime.InferenceSession(graph.model.SerializeToString())
    output = session.run(None, {"x": feed})[0]
    node = graph.nodes[0]
    for count in (7, 10**6):
        rows, sums = unfold(node, graph, feed, output, count, np.random.default_rng(0))
        assert len(rows) == len(sums) == min(count, output.size // shape[0])
        weight = constant_of(node, graph, 1).reshape(rows.shape[1], -1, rows.shape[2])
        got = np.einsum("pgr,gor->pgo", rows, weight).reshape(sums.shape)
        assert got == pytest.approx(sums, abs=2e-5)


def ready(model):
    graph = Graph(clean(model))
    selection, feeds = select(graph), Samples({"x": images()}).feeds(7)
    return graph, selection, calibrate(graph, selection.ranges_needed(), feeds).ranges, feeds


def run(model, feed):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]


@pytest.mark.parametrize("target", ["portable", "x86-vnni", "arm64"])
def test_a_whole_network_is_learned_written_and_no_layer_is_worse(target):
    graph, selection, ranges, feeds = ready(zoo())
    by = resolve(target)
    found = learn(graph, selection, ranges, by, feeds, rng=np.random.default_rng(0),
                  learning=SHORT)  # fmt: skip
    weighted = [n for n, k in selection.kinds.items() if k == "weighted"]
    assert sorted(found.values) == sorted(weighted) == sorted(g.name for g in found.gains)
    assert all(g.learned <= g.nearest for g in found.gains)
    assert sum(g.learned for g in found.gains) < 0.9 * sum(g.nearest for g in found.gains)
    written = qdq.write(graph, selection, ranges, by, found.values)
    for name, values in found.values.items():
        assert np.array_equal(written.weights[name].values, values)
        assert fits_16_bits(values).all() or target != "portable"


def test_the_learned_network_is_nearer_to_the_float_one_on_samples_it_never_saw():
    graph, selection, ranges, feeds = ready(random_network(7))
    by = resolve("portable", 7)
    found = learn(graph, selection, ranges, by, feeds, rng=np.random.default_rng(0))
    feed = {"x": images(64, seed=9)}
    exact = run(graph.model, feed)
    plain, learned = (
        run(qdq.write(graph, selection, ranges, by, r).model, feed) for r in ({}, found.values)
    )
    assert ((learned - exact) ** 2).sum() < ((plain - exact) ** 2).sum()


def test_the_same_seed_gives_the_same_integers():
    parts = ready(random_network(1))
    one, two = (
        learn(*parts[:3], resolve("portable"), parts[3], rng=np.random.default_rng(5),
              learning=SHORT)
        for _ in range(2)
    )  # fmt: skip
    assert all(np.array_equal(one.values[n], two.values[n]) for n in one.values)
    assert one.gains == two.gains


def test_when_told_to_stop_it_returns_what_it_has():
    graph, selection, ranges, feeds = ready(zoo())
    done = []
    found = learn(graph, selection, ranges, resolve("portable"), feeds, learning=SHORT,
                  rng=np.random.default_rng(0), stop=lambda: len(done) >= 2,
                  progress=done.append)  # fmt: skip
    assert [g.name for g in found.gains] == done
    assert len(done) == 2


def test_memory_is_the_positions_that_were_asked_for(monkeypatch):
    from compressor.quantization import adaround as room

    shapes = {}
    original = room.reconstruct

    def watch(weight, nearest, inputs, targets, **more):
        shapes[more["name"]] = inputs.shape
        return original(weight, nearest, inputs, targets, **more)

    monkeypatch.setattr(room, "reconstruct", watch)
    graph, selection, ranges, feeds = ready(zoo())
    learn(graph, selection, ranges, resolve("portable"), feeds, rng=np.random.default_rng(0),
          learning=Learning(iterations=1, positions=100))  # fmt: skip
    assert shapes["Conv_c"] == (100, 1, 72)
    assert shapes["Conv_d"] == (100, 8, 9)
    assert shapes["Gemm_y"] == (24, 1, 16)  # one position per sample


def test_a_matrix_product_of_rank_3_is_learned_too():
    model = build("a = MatMul(x, w) y = Add(a, b)", {"w": (8, 6), "b": (6,)},
                  inputs="float[N,4,8] x", outputs="float[N,4,6] y")  # fmt: skip
    graph = Graph(clean(model))
    selection, feeds = select(graph), Samples({"x": np.abs(images(40, 4, 8))}).feeds(16)
    ranges = calibrate(graph, selection.ranges_needed(), feeds).ranges
    by = resolve("portable")
    found = learn(graph, selection, ranges, by, feeds, rng=np.random.default_rng(0))
    (gain,) = found.gains
    assert gain.learned < 0.9 * gain.nearest
    feed = {"x": np.abs(images(64, 4, 8, seed=3))}
    exact = run(graph.model, feed)
    plain, learned = (
        run(qdq.write(graph, selection, ranges, by, r).model, feed) for r in ({}, found.values)
    )
    assert ((learned - exact) ** 2).sum() < ((plain - exact) ** 2).sum()
