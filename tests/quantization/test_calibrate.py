from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core.errors import ConfigError
from compressor.quantization.calibrate import calibrate, calibrations, chunks
from compressor.quantization.graph import Graph
from compressor.quantization.observers import BINS, METHODS
from compressor.quantization.prepare import clean
from compressor.quantization.samples import Samples
from tests.quantization.graphs import build, images, zoo

TENSORS = ["x", "ar", "d", "hs", "p", "y"]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Graph(clean(zoo()))


@pytest.fixture(scope="module")
def activations(graph):
    """Every tensor of TENSORS for the 24 images, by ONNX Runtime without optimisations."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for name in TENSORS[1:-1]:
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    got = session.run(TENSORS[1:], {"x": images()})
    return dict(zip(TENSORS, [images(), *got], strict=True))


def run(graph, method, batch, **more):
    return calibrate(graph, TENSORS, Samples({"x": images()}).feeds(batch), method=method, **more)


def test_minmax_equals_numpy_on_the_full_data(graph, activations):
    got = run(graph, "minmax", 7)
    assert got.samples == 24
    for name, values in activations.items():
        assert got.ranges[name].low == pytest.approx(float(values.min()), rel=1e-5, abs=1e-6)
        assert got.ranges[name].high == pytest.approx(float(values.max()), rel=1e-5, abs=1e-6)


def test_moving_is_the_mean_of_each_samples_own_extremes(graph, activations):
    got = run(graph, "moving", 5)
    for name, values in activations.items():
        rows = values.reshape(24, -1)
        expected = float(rows.max(axis=1).mean())
        assert got.ranges[name].high == pytest.approx(expected, rel=1e-5)


def test_several_methods_in_the_same_passes_find_what_each_finds_alone(graph):
    feeds = Samples({"x": images()}).feeds(9)
    together = calibrations(graph, TENSORS, feeds, METHODS, percentile=99.0)
    assert list(together) == list(METHODS)
    for method in METHODS:
        assert together[method] == run(graph, method, 9, percentile=99.0)


@settings(max_examples=6, deadline=None)
@given(batch=st.integers(1, 24), method=st.sampled_from(METHODS))
def test_streaming_equals_one_shot_for_any_batch_and_a_partial_last_one(graph, batch, method):
    one, many = run(graph, method, 24), run(graph, method, batch)
    for name in TENSORS:
        span = one.ranges[name].high - one.ranges[name].low
        # Kernels may sum in another order at another batch size: a bin may gain one value.
        assert many.ranges[name].low == pytest.approx(one.ranges[name].low, abs=0.02 * span)
        assert many.ranges[name].high == pytest.approx(one.ranges[name].high, abs=0.02 * span)


def test_the_graph_input_itself_is_counted_exactly_whatever_the_batch(graph):
    ranges = [run(graph, "mse", b).ranges["x"] for b in (1, 7, 24)]
    assert ranges[0] == ranges[1] == ranges[2]


def test_a_budget_smaller_than_one_sample_changes_nothing(graph):
    assert run(graph, "percentile", 8).ranges == run(graph, "percentile", 8, budget=1).ranges


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 10_000), min_size=1, max_size=20),
    st.integers(4, 200_000),
    st.sampled_from([None, 1, 4]),
)
def test_what_is_held_at_once_fits_the_budget_however_many_samples(sizes, budget, fixed):
    named = {f"t{i}": s for i, s in enumerate(sizes)}
    seen = []
    for chunk, rows in chunks(named, budget, fixed):
        held = sum(named[n] for n in chunk) * 4 * (fixed or rows)
        assert held <= budget or (len(chunk) == 1 and (fixed or rows == 1))
        seen += chunk
    assert seen == list(named)


@pytest.mark.parametrize("budget", [1, 40 << 10, 256 << 20])
def test_the_first_pass_takes_as_many_samples_at_once_as_fit(graph, monkeypatch, budget):
    from compressor.quantization import calibrate as room

    taken: list[int] = []

    class Counting(room._Runner):
        def __call__(self, names, feed):
            taken.append(len(feed["x"]))
            return super().__call__(names, feed)

    monkeypatch.setattr(room, "_Runner", Counting)
    found = run(graph, "minmax", 24, budget=budget)
    held = 4 * sum(found.sizes.values())
    rows = max(1, budget // held)
    assert taken[0] == 1
    assert sum(taken) == 24
    assert max(taken) == min(rows, 23)
    assert len(taken) == 1 + -(-23 // rows)


def test_memory_is_the_histograms_and_one_batch(graph, monkeypatch):
    from compressor.quantization import calibrate as room

    most = 0

    class Counting(room._Runner):
        def __call__(self, names, feed):
            nonlocal most
            got = super().__call__(names, feed)
            most = max(most, sum(a.nbytes for a in got))
            return got

    monkeypatch.setattr(room, "_Runner", Counting)
    kept: list[room.Histogram] = []
    original = room.Histogram

    def remember(extremes):
        kept.append(original(extremes))
        return kept[-1]

    monkeypatch.setattr(room, "Histogram", remember)
    many = Samples({"x": np.concatenate([images()] * 8)})
    calibrate(graph, TENSORS, many.feeds(8), method="percentile", budget=64 << 10)
    assert most <= 64 << 10
    assert all(h.counts.shape == (BINS,) for h in kept)
    assert len(kept) <= len(TENSORS)


def test_nan_inf_constant_and_never_active_tensors_are_named():
    model = build(
        "l = Log(x) i = Div(x, zero) n = Neg(six) m = Add(n, six) k = Mul(x, zero) d = Add(k, six)"
        " y = Flatten(x)", {}, constants="<float zero = {0.0}, float six = {6.0}>",
    )  # fmt: skip
    names = ["l", "i", "k", "d", "x"]
    got = calibrate(Graph(clean(model)), names, Samples({"x": images()}).feeds(8))
    text = "\n".join(got.warnings)
    assert got.broken == {"l", "i"}
    assert "l: holds NaN or Inf" in text
    assert "i: holds NaN or Inf" in text
    assert "k: never active" in text
    assert "d: constant (6 " in text
    assert "x:" not in text
    assert set(got.ranges) == {"k", "d", "x"}


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_hardly_varies_keeps_its_extremes(method):
    model = build("m = Mul(x, tiny) d = Add(m, one) y = Flatten(d)", {},
                  constants="<float one = {1.0}, float tiny = {0.000001}>")  # fmt: skip
    got = calibrate(Graph(clean(model)), ["d"], Samples({"x": images()}).feeds(8), method=method)
    assert got.ranges["d"].low == pytest.approx(1, abs=1e-5)
    assert got.ranges["d"].high == pytest.approx(1, abs=1e-5)


def test_a_nan_anywhere_in_a_sample_is_found():
    model = build("s = Sqrt(x) y = Flatten(s)", {})
    for at in (0, 50, 191):
        data = np.abs(images(16))
        data[3].reshape(-1)[at] = -1.0
        got = calibrate(Graph(clean(model)), ["s"], Samples({"x": data}).feeds(16))
        assert got.broken == {"s"}


def test_no_samples_are_an_error(graph):
    with pytest.raises(ConfigError, match="0 samples"):
        calibrate(graph, TENSORS, lambda: [])


def test_samples_with_nan_are_an_error_that_names_the_sample(graph):
    data = images()
    data[17, 0, 0, 0] = np.nan
    with pytest.raises(ConfigError, match=r"x\[17\] holds NaN"):
        calibrate(graph, TENSORS, Samples({"x": data}).feeds(8))


def test_few_distinct_and_constant_samples_are_warned_of(graph):
    same = np.repeat(images(3), 20, axis=0)
    got = calibrate(graph, TENSORS, Samples({"x": same}).feeds(8))
    assert "3 distinct samples of 60" in got.warnings[0]
    blank = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None, None], (20, 3, 8, 8))
    got = calibrate(graph, TENSORS, Samples({"x": np.array(blank)}).feeds(8))
    assert any("every sample is constant" in w for w in got.warnings)
    assert not any("distinct" in w for w in got.warnings)
    assert not calibrate(graph, TENSORS, Samples({"x": images()}).feeds(8)).warnings
