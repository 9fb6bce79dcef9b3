from __future__ import annotations

import json
import math

import onnx
import onnxruntime
import pytest

from compressor.core.errors import ConfigError, MissingError
from compressor.core.tasks import CLASSIFICATION
from compressor.core.types import Timing
from compressor.quantization.candidates import Candidates, Journal
from compressor.quantization.goal import Goal, expected, seconds
from compressor.quantization.plain import Options, quantize
from compressor.quantization.quality import Judge, Labelled, Quality
from compressor.quantization.samples import Samples
from compressor.quantization.tune import foreign, tune
from compressor.runtime import metadata
from compressor.runtime.profile import fusion, optimized_graph
from tests.quantization.graphs import build, images, put, zoo

FEED = {"x": images(40)}


class Priced:
    """Milliseconds as a function of the file: a price per int8 layer, 1 per float one, per Q."""

    def __init__(self, int8=0.4, dear=(), border=0.05, unstable=""):
        self.int8, self.dear, self.border, self.unstable = int8, set(dear), border, unstable
        self.asked = 0

    def price(self, name):
        return 3.0 if name in self.dear else self.int8

    def cost(self, path):
        total = 0.0
        graph = onnx.load(path).graph
        quantized = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
        for node in graph.node:
            if node.op_type in {"Conv", "Gemm"}:
                total += self.price(node.name) if node.input[1] in quantized else 1.0
            total += self.border * (node.op_type in {"QuantizeLinear", "LeakyRelu"})
        return total

    def measure(self, models, protocol, feed=None):
        self.asked += 1
        assert protocol.inputs
        cost = {name: self.cost(path) for name, path in models.items()}
        cost["A/A"] = next(iter(cost.values()))
        rounds = {name: (ms,) * protocol.rounds for name, ms in cost.items()}
        return Timing("m", protocol, rounds, rounds, bool(self.unstable), self.unstable, "d")

    def profile(self, model, protocol, feed=None):
        self.asked += 1
        times = {}
        for node in optimized_graph(model).graph.node:
            name = node.name.split("_token")[0]
            kinds = {"Conv": 1.0, "FusedConv": 1.0, "Gemm": 1.0, "QLinearConv": self.price(name),
                     "QGemm": self.price(name), "QuantizeLinear": self.border}  # fmt: skip
            times[node.name] = 1000 * kinds.get(node.op_type, 0.001)
        return times


def narrow():
    """Four convolutions in a row and a classifier."""
    return build(
        "a = Conv<pads=[1,1,1,1]>(x, w0, b0) ar = Relu(a) b = Conv(ar, w1) br = Relu(b)"
        " c = Conv<pads=[1,1,1,1]>(br, w2) cr = Relu(c) d = Conv(cr, w3) dr = Relu(d)"
        " p = GlobalAveragePool(dr) f = Flatten(p) y = Gemm(f, w4)",
        {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 1, 1), "w2": (16, 16, 3, 3),
         "w3": (16, 16, 1, 1), "w4": (16, 5)},
    )  # fmt: skip


def go(tmp_path, timings, model=None, goal=None, name="out", labelled=None, **options):
    source = put(narrow() if model is None else model, tmp_path / "fp32.onnx")
    out = tmp_path / f"{name}.onnx"
    report = tune(source, out, FEED, Options(**options), goal or Goal(), timings,
                  tmp_path / f"{name}.tune", labelled=labelled)  # fmt: skip
    return out, report


def test_the_same_timings_give_the_same_bytes_and_table(tmp_path):
    results = [go(tmp_path, Priced(dear={"Conv_b"}), name=n) for n in ("one", "two")]
    (one, first), (two, second) = results
    assert one.read_bytes() == two.read_bytes()
    assert first.table() == second.table()
    assert first.table()["placement"]["candidates"]


def test_a_layer_that_loses_stays_float_in_a_plain_session(tmp_path):
    out, report = go(tmp_path, Priced(dear={"Conv_b"}))
    ops = fusion(out).ops
    assert ops.get("Conv", 0) + ops.get("FusedConv", 0) == 1
    assert ops["QLinearConv"] == 3
    forms = {row["name"]: (row["form"], row["reason"]) for row in report.rows}
    assert forms["Conv_b"] == ("float", "faster so in this place")
    assert forms["Conv_a"] == ("int8", "")
    assert "the speed of fp32 on" in report.verdict
    assert "4 of 5 regions in int8" in report.verdict
    assert metadata.read(out)["compressor.placement"] == report.verdict
    layer = next(layer for layer in report.layers if layer.name == "Conv_b")
    assert (layer.form, layer.reason) == ("float", "faster so in this place")


def test_where_everything_wins_the_result_is_that_of_the_plain_path(tmp_path):
    out, report = go(tmp_path, Priced(border=0.0))
    plain = tmp_path / "plain.onnx"
    quantize(tmp_path / "fp32.onnx", plain, FEED)
    ours, theirs = onnx.load(out), onnx.load(plain)
    del ours.metadata_props[:], theirs.metadata_props[:]
    assert ours == theirs
    assert report.quantized > 0


def test_where_int8_loses_the_float_model_is_kept_and_said(tmp_path):
    out, report = go(tmp_path, Priced(int8=1.3))
    assert report.verdict.startswith("fp32 kept: int8")
    assert "x here" in report.verdict
    assert report.quantized == 0
    assert report.sqnr == {"y": 200.0}
    written = onnx.load(out)
    assert metadata.read(out)["compressor.placement"] == report.verdict
    assert metadata.read(out)["compressor.precision"] == "fp32"
    del written.metadata_props[:]
    assert written == onnx.load(tmp_path / "fp32.onnx")


def test_unstable_timings_decide_nothing(tmp_path):
    _, report = go(tmp_path, Priced(unstable="a neighbour"))
    assert report.verdict.startswith("fp32 kept: the timings are unstable (a neighbour)")


@pytest.mark.parametrize("least", [36.0, 40.0, 44.0])
def test_float_islands_hold_the_signal(tmp_path, least):
    goal = Goal(min_sqnr=least, recovery=False)
    _, report = go(tmp_path, Priced(border=0.0), zoo(), goal)
    assert report.sqnr["y"] >= least
    assert report.quantized > 0
    floats = [row for row in report.rows if row["form"] == "float"]
    assert all(row["reason"] == "float for accuracy" for row in floats)
    assert bool(floats) == (least > 36.0)


def test_a_signal_out_of_reach_keeps_fp32(tmp_path):
    _, report = go(tmp_path, Priced(), goal=Goal(min_sqnr=150.0, recovery=False))
    assert report.verdict == "fp32 kept: no int8 layer leaves an SQNR of at least 150 dB"
    assert report.recovery == report.warnings == ()


def test_a_drop_is_held_on_the_labelled_samples(tmp_path):
    path = put(zoo(), tmp_path / "zoo.onnx")
    many = {"x": images(600, seed=5)}
    right = onnxruntime.InferenceSession(str(path)).run(None, many)[0].argmax(axis=1)
    labelled = Labelled(Samples(many), right, CLASSIFICATION)
    goal = Goal(max_drop=0.5, recovery=False)
    _, report = go(tmp_path, Priced(), zoo(), goal, labelled=labelled)
    out = tmp_path / "out.onnx"
    ours = onnxruntime.InferenceSession(str(out)).run(None, many)[0].argmax(axis=1)
    assert 100 * (ours != right).mean() <= 0.5
    assert report.table()["placement"]["forced"]
    assert all(row["alone_int8"]["drop"] >= 0 for row in report.rows)


def test_killed_at_every_step_the_best_is_kept_and_the_end_is_the_same(tmp_path):
    class Killed(Priced):
        def __init__(self, after):
            super().__init__(dear={"Conv_b"})
            self.after, self.proven = after, 1.0

        def measure(self, models, protocol, feed=None):
            if self.asked == self.after:
                raise KeyboardInterrupt
            timing = super().measure(models, protocol, feed)
            speeds = [timing.rounds["fp32"][0] / r[0] for r in timing.rounds.values()]
            self.proven = max([self.proven, *speeds])
            return timing

        def profile(self, model, protocol, feed=None):
            if self.asked == self.after:
                raise KeyboardInterrupt
            return super().profile(model, protocol, feed)

    whole = Killed(after=-1)
    expected_bytes = go(tmp_path, whole, name="whole")[0].read_bytes()
    assert whole.asked >= 5
    for after in range(whole.asked):
        state = tmp_path / "out.tune"
        killed = Killed(after)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, killed)
        assert not (tmp_path / "out.onnx").exists()
        best = json.loads((state / "best.json").read_text())
        assert best["speedup"] >= killed.proven or math.isclose(best["speedup"], killed.proven)
        session = onnxruntime.InferenceSession(str(state / "best.onnx"))
        assert session.run(None, {"x": images(2)})[0].shape == (2, 5)
    assert go(tmp_path, Killed(after=-1))[0].read_bytes() == expected_bytes


def test_nothing_is_looked_at_twice(tmp_path, monkeypatch):
    from compressor.quantization import quality

    looks = []
    real = quality.Judge.look
    monkeypatch.setattr(quality.Judge, "look", lambda *a: looks.append(a[1].name) or real(*a))
    go(tmp_path, Priced())
    first = len(looks)
    assert first >= 10
    go(tmp_path, Priced())
    assert len(looks) == first


def test_the_budget_is_counted_from_timings_and_ends_the_search(tmp_path):
    short, long = Priced(dear={"Conv_b"}), Priced(dear={"Conv_b"})
    _, little = go(tmp_path, short, goal=Goal(budget=1.0), name="short")
    _, much = go(tmp_path, long, goal=Goal(budget=500.0), name="long")
    assert short.asked < long.asked
    assert len(little.table()["placement"]["candidates"]) == 0
    assert much.table()["placement"]["seconds"] < 500
    assert "regions in int8" in little.verdict  # the guess alone is confirmed


def test_expected_and_counted_seconds_agree():
    from compressor.core.types import TimingProtocol

    protocol = TimingProtocol(rounds=10, min_cell_ms=20.0, warmup_ms=100.0)
    calls = {name: (4.0,) * 50 for name in ("fp32", "0", "A/A")}
    timing = Timing("m", protocol, calls, calls)
    assert seconds(timing) == pytest.approx(expected(protocol, 4.0, 2), rel=0.3)


def test_a_journal_of_another_question_is_dropped(tmp_path):
    first = Journal(tmp_path, "one")
    first.keep("k", Quality({"y": 30.0}))
    first.keep_best(b"model", {"speedup": 2.0})
    assert Journal(tmp_path, "one").quality("k") == Quality({"y": 30.0})
    other = Journal(tmp_path, "two")
    assert other.quality("k") is None
    other.keep_best(b"fp32", {"speedup": 1.0})
    assert (tmp_path / "best.onnx").read_bytes() == b"fp32"
    other.keep_best(b"worse", {"speedup": 0.9})
    assert (tmp_path / "best.onnx").read_bytes() == b"fp32"


def test_a_damaged_journal_is_no_journal(tmp_path):
    (tmp_path / "journal.json").write_text("{")
    assert Journal(tmp_path, "one").quality("k") is None


def test_placements_are_measured_only_where_the_target_is():
    assert foreign("portable", host="arm64") == ""
    assert foreign("host", True, host="x86") == ""
    assert foreign("x86-vnni", True, host="x86-vnni") == ""
    line = "not measured on arm64; run `verify --choose` there"
    assert foreign("arm64", host="x86") == line
    with pytest.raises(MissingError, match="needs a machine with arm64, this one has x86"):
        foreign("arm64", True, host="x86")


def test_what_cannot_be_used_is_refused_before_anything_is_measured(tmp_path):
    timings = Priced()
    with pytest.raises(ConfigError, match="'nothing' is no node"):
        go(tmp_path, timings, exclude=("nothing",))
    assert timings.asked == 0


def test_a_fixed_batch_is_judged_and_timed_at_that_batch(tmp_path):
    class Watching(Priced):
        def measure(self, models, protocol, feed=None):
            assert protocol.batch == 4
            assert len(feed["x"]) % 4 == 0
            return super().measure(models, protocol, feed)

    model = build("a = Conv(x, w, b) r = Relu(a) y = Flatten(r)", {"w": (4, 3, 1, 1), "b": (4,)},
                  inputs="float[4,3,8,8] x")  # fmt: skip
    _, report = go(tmp_path, Watching(), model)
    assert report.quantized > 0


def test_excluded_and_chosen_float_layers_stay_apart(tmp_path):
    _, report = go(tmp_path, Priced(dear={"Conv_b"}), exclude=("Conv_c",))
    reasons = {layer.name: layer.reason for layer in report.layers if layer.form == "float"}
    assert reasons == {"Conv_b": "faster so in this place", "Conv_c": "excluded"}


def test_the_choice_that_is_saved_and_shipped_is_always_accurate_enough(tmp_path):
    goal = Goal(min_sqnr=41.0, recovery=False)
    _, report = go(tmp_path, Priced(dear={"Conv_d"}, border=0.0), zoo(), goal)
    assert report.sqnr["y"] >= 41.0
    forms = {row["name"]: row["reason"] for row in report.rows if row["form"] == "float"}
    assert "float for accuracy" in forms.values()
    assert forms["Conv_d"] == "faster so in this place"
    best = tmp_path / "out.tune" / "best.onnx"
    judge = Judge(tmp_path / "fp32.onnx", Samples({"x": FEED["x"][4::5]}))
    assert judge.look(best).worst >= 41.0


@pytest.mark.parametrize("needed", [1, 3, 6])
def test_the_fewest_of_the_most_sensitive_regions_are_forced(tmp_path, monkeypatch, needed):
    """Whatever the first estimate says, doubling and halving ends at the least prefix."""
    from compressor.quantization import goal as room

    def met(self, quality):
        return quality.worst >= 100.0 or len(LOOKED[-1]) >= needed

    LOOKED = []
    real = Candidates.quality
    monkeypatch.setattr(
        Candidates, "quality", lambda self, f, *a, **k: LOOKED.append(f) or real(self, f, *a, **k)
    )
    monkeypatch.setattr(room.Goal, "met", met)
    _, report = go(tmp_path, Priced(border=0.0), zoo(), Goal(recovery=False))
    forced = report.table()["placement"]["forced"]
    assert len(forced) == needed
    noise = {row["name"]: -row["alone_int8"]["sqnr"]["y"] for row in report.rows}
    assert sorted(noise, key=noise.get, reverse=True)[:needed] == sorted(
        forced, key=noise.get, reverse=True
    )
