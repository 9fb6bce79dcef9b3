from __future__ import annotations

import itertools
import json

import numpy as np
import onnx
import onnxruntime
import pytest

from compressor.core.tasks import CLASSIFICATION
from compressor.quantization.candidates import Candidates, Journal
from compressor.quantization.goal import Goal
from compressor.quantization.graph import Graph
from compressor.quantization.plain import Options, calibrated
from compressor.quantization.prepare import clean
from compressor.quantization.quality import Judge, Labelled, Quality
from compressor.quantization.recipe import Recipe
from compressor.quantization.recovery import Rung
from compressor.quantization.samples import Samples
from compressor.quantization.search import FP32
from compressor.quantization.target import resolve
from compressor.quantization.tune import tune
from compressor.runtime import metadata
from tests.quantization.graphs import build, images, put, zoo
from tests.quantization.test_tune import Priced

COUNT = 80


def weights(model, **arrays):
    """The same network with other constants."""
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            value = np.asarray(arrays[tensor.name], np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    return model


def of(model, name):
    found = next(t for t in model.graph.initializer if t.name == name)
    return onnx.numpy_helper.to_array(found).copy()


def outlier():
    """One value of one sample that calibrates is 100 times the others."""
    model = build("a = Conv(x, w0, b0) r = Relu(a) p = GlobalAveragePool(r) f = Flatten(p)"
                  " y = Gemm(f, w1)", {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (8, 5)})  # fmt: skip
    feed = images(COUNT)
    feed[0, 0, 0, 0] = 300.0
    return model, feed


def shifted():
    """The inputs' mean is 30 times their spread; what rounding the weights does to it is a bias."""
    model = build("y = Gemm(x, w, b)", {"w": (20, 6), "b": (6,)}, inputs="float[N,20] x")
    return weights(model, b=-30 * of(model, "w").sum(axis=0)), images(COUNT, 20) + 30


def uneven():
    """Channels of one tensor whose sizes differ by 1,000, and weights that make up for it."""
    model = build("a = Conv(x, w0, b0) r = Relu(a) y = Conv(r, w1)",
                  {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (8, 8, 1, 1)},
                  outputs="float[N,8,8,8] y")  # fmt: skip
    factor = np.geomspace(1, 1000, 8, dtype=np.float32)
    w0, b0, w1 = (of(model, n) for n in ("w0", "b0", "w1"))
    bent = {"w0": w0 * factor[:, None, None, None], "b0": b0 * factor,
            "w1": w1 / factor[:, None, None]}  # fmt: skip
    return weights(model, **bent), images(COUNT)


def correlated():
    """20 inputs of 4 degrees of freedom; a large weight makes the grid of all others coarse."""
    model = build("y = Gemm(x, w)", {"w": (21, 6)}, inputs="float[N,21] x")
    w = of(model, "w")
    w[20] = 12 * np.abs(w).max()
    rng = np.random.default_rng(3)
    feed = rng.standard_normal((COUNT, 4)) @ rng.standard_normal((4, 21))
    feed[:, 20] *= 1e-3
    return weights(model, w=w), feed.astype(np.float32)


def go(tmp_path, model, feed, goal=None, name="out", labelled=None, **options):
    path = put(model, tmp_path / "fp32.onnx")
    out = tmp_path / f"{name}.onnx"
    report = tune(path, out, {"x": feed}, Options(**options), goal or Goal(),
                  Priced(border=0.0), tmp_path / f"{name}.tune", labelled=labelled)  # fmt: skip
    return out, report


CASES = [
    (outlier, "ranges", 25.0), (shifted, "bias correction", 25.0),
    (uneven, "equalization by activations, minmax ranges", 25.0), (correlated, "AdaRound", 22.0),
]  # fmt: skip


@pytest.mark.parametrize(("case", "rung", "least"), CASES)
def test_what_plain_int8_misses_is_met_by_the_rung_that_is_made_for_it(tmp_path, case, rung, least):
    model, feed = case()
    out, report = go(tmp_path, model, feed, Goal(min_sqnr=least), percentile=99.9)
    rungs = report.recovery
    assert rungs[0].before.worst < least <= report.sqnr["y"]
    assert rungs[-1].name.endswith(rung)
    assert rungs[-1].outcome == "kept"
    assert rungs[-1].after.worst == pytest.approx(report.sqnr["y"])
    for one, two in itertools.pairwise(rungs):
        kept = one.outcome == "kept"
        assert two.before == (one.after if kept else one.before)
        assert kept == (one.after is not None and one.after.worst > one.before.worst + 0.1)
    assert report.table()["placement"]["forced"] == []
    assert {layer.form for layer in report.layers} == {"int8"}  # so it is not fp32 that was kept
    assert metadata.read(out)["compressor.recovery"].count(rung.split(",")[0]) == 1
    assert "regions in int8, with " in report.verdict
    assert report.warnings == ()
    assert json.loads(json.dumps(report.table()["recovery"]))[-1]["outcome"] == "kept"


def test_a_rung_that_does_not_help_is_not_kept(tmp_path):
    model, feed = uneven()
    out, report = go(tmp_path, model, feed)
    lost = [rung for rung in report.recovery if rung.outcome == "not kept"]
    assert lost
    assert all(rung.after.worst <= rung.before.worst + 0.1 for rung in lost)
    said = metadata.read(out)["compressor.recovery"]
    assert "equalization by activations" in said
    assert "ranges by minmax" in said  # again, after others were kept
    assert not any(rung.name.split()[0] in said for rung in lost)


def test_where_plain_int8_is_good_enough_nothing_is_tried(tmp_path):
    _, report = go(tmp_path, zoo(), images(40))
    assert report.recovery == ()
    assert report.table()["recovery"] == []


@pytest.mark.slow
def test_islands_come_after_the_ladder_and_stand_on_it(tmp_path):
    out, report = go(tmp_path, zoo(), images(40), Goal(min_sqnr=48.0))
    assert report.recovery[-1].after.worst < 48.0 <= report.sqnr["y"]
    assert "kept" in {rung.outcome for rung in report.recovery}
    assert 0 < len(report.table()["placement"]["forced"]) < len(report.rows)
    assert "compressor.recovery" in metadata.read(out)
    assert "the stage `qat` may, from the PyTorch checkpoint" in report.warnings[-1]


def test_when_nothing_helps_the_verdict_and_a_snippet_name_qat(tmp_path):
    import yaml

    model, feed = shifted()
    metadata.write_(model, {metadata.SOURCE: "digest of a checkpoint"})
    out, report = go(tmp_path, model, feed, Goal(min_sqnr=150.0))
    assert report.verdict.startswith("fp32 kept: no int8 layer leaves an SQNR of at least 150 dB")
    assert report.verdict.endswith("the stage qat may")
    assert "did not reach an SQNR of at least 150 dB" in report.warnings[-2]
    stage = yaml.safe_load(report.warnings[-1])["qat"]
    assert stage == {"uses": "qat", "in": {"model": "pruned", "teacher": "teacher"}}
    assert metadata.read(out)["compressor.precision"] == FP32


def test_what_does_not_fit_the_budget_is_skipped_and_said(tmp_path):
    model, feed = uneven()
    _, report = go(tmp_path, model, feed, Goal(budget=0.3))
    assert {rung.outcome for rung in report.recovery} == {"skipped: budget"}
    assert len(report.recovery) == 8
    assert report.recovery[0].line() == "recovery, mse ranges: skipped: budget"
    assert report.table()["recovery"][0]["after"] is None
    _, more = go(tmp_path, model, feed, Goal(budget=10.0), name="more")
    spent = sum(rung.seconds for rung in more.recovery)
    assert 0 < spent <= 10 / 3


def test_an_exact_tie_in_the_drop_is_decided_by_the_signal():
    goal = Goal(max_drop=0.5)
    low, high = Quality({"y": 20.0}, drop=1.0), Quality({"y": 30.0}, drop=1.0)
    worse = Quality({"y": 40.0}, drop=1.5)
    assert goal.better(high, low)
    assert goal.better(low, worse)
    assert not goal.better(worse, high)
    assert Goal().better(worse, high)
    assert not Goal().better(Quality({"y": 30.05}), high)  # chance


def test_a_drop_is_recovered_on_the_labelled_samples(tmp_path):
    model, feed = shifted()
    path = put(model, tmp_path / "labels.onnx")
    many = {"x": images(400, 20, seed=5) + 30}
    right = onnxruntime.InferenceSession(str(path)).run(None, many)[0].argmax(axis=1)
    labelled = Labelled(Samples(many), right, CLASSIFICATION)
    _, report = go(tmp_path, model, feed, Goal(max_drop=3.0), labelled=labelled)
    last = report.recovery[-1]
    assert report.recovery[0].before.drop > 3.0 >= last.after.drop
    assert last.outcome == "kept"
    assert f"drop {last.before.drop:.2f} -> {last.after.drop:.2f}, kept" in last.line()


def test_killed_at_every_step_of_the_ladder_the_end_is_the_same(tmp_path, monkeypatch):
    """And what took long is not computed again."""
    model, feed = correlated()
    goal = Goal(min_sqnr=60.0)
    real, computed, left = Journal.arrays, [], [10**6]

    def arrays(self, key, compute):
        def counted():
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            computed.append(key)
            return compute()

        return real(self, key, counted)

    monkeypatch.setattr(Journal, "arrays", arrays)
    whole, report = go(tmp_path, model, feed, goal, "whole")
    steps = list(computed)
    assert len(steps) == len(set(steps)) >= 3
    computed.clear()
    for _ in steps[1:]:
        left[0] = 1
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, model, feed, goal)
    left[0] = 1
    again, resumed = go(tmp_path, model, feed, goal)
    assert computed == steps
    assert again.read_bytes() == whole.read_bytes()
    assert resumed.table() == report.table()


def test_damaged_arrays_are_computed_again(tmp_path):
    journal = Journal(tmp_path, "one")
    rows = {"a/b": np.arange(3.0), "file": np.zeros((2, 2), np.int8), "c": np.empty(0)}
    calls = []
    for _ in range(2):
        found = journal.arrays("k", lambda: calls.append(1) or rows)
        assert list(found) == list(rows)
        assert all(np.array_equal(found[n], rows[n]) for n in rows)
    assert journal.arrays("nothing", dict) == {}
    (kept,) = [p for p in (tmp_path / "arrays").iterdir() if p.stat().st_size > 500]
    kept.write_bytes(kept.read_bytes()[:100])
    journal.arrays("k", lambda: calls.append(1) or rows)
    assert len(calls) == 2


@pytest.fixture
def candidates(tmp_path):
    model = zoo()
    path, feeds = put(model, tmp_path / "zoo.onnx"), Samples({"x": images()})
    graph = Graph(clean(model))
    selection, found = calibrated(graph, feeds.feeds(8), Options())
    return Candidates(graph, selection, Recipe(graph, found), resolve("portable"), Options(),
                      Judge(path, feeds), Journal(tmp_path / "state", "it"))  # fmt: skip


def test_a_layer_that_stays_float_keeps_its_own_bias(candidates):
    deltas = {"Conv_a": np.full(8, 0.5), "Conv_d": np.full(8, 0.25)}
    recipe = Recipe(candidates.graph, candidates.found, deltas=deltas, steps=("bias",))
    float_a = frozenset({next(i for i, r in enumerate(candidates.regions) if "Conv_a" in r.nodes)})
    made = candidates.of(recipe).written(float_a)[1]
    bare = candidates.written(float_a)[1]
    values = {t.name: onnx.numpy_helper.to_array(t) for t in made.model.graph.initializer}
    node = next(n for n in made.model.graph.node if n.name == "Conv_a")
    own = next(n for n in candidates.graph.nodes if n.name == "Conv_a")
    assert np.array_equal(values[node.input[2]], candidates.graph.array(own.input[2]))
    one, two = (w.weights["Conv_d"].bias.astype(int) for w in (made, bare))
    assert (one > two).all()


def test_all_of_it_in_float_is_the_given_network_whatever_was_recovered(candidates):
    equal = candidates.of(Recipe(Graph(clean(zoo())), candidates.found, steps=("equal",)))
    one, two = (c.file(c.all_float) for c in (candidates, equal))
    assert one != two
    assert one.read_bytes() == two.read_bytes()
    assert equal.file_of(frozenset()) != candidates.file_of(frozenset())


def test_a_rung_says_what_it_gave_in_one_line():
    before, after = Quality({"y": 18.64, "z": 40.0}), Quality({"y": 24.06, "z": 39.0})
    line = Rung("mse ranges", before, after, 1.0, "kept").line()
    assert line == "recovery, mse ranges: 18.6 -> 24.1 dB, kept"
