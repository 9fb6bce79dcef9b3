from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from compressor.core.types import Timing
from compressor.quantization import quality
from compressor.quantization.goal import Goal
from compressor.quantization.plain import Options
from compressor.quantization.tune import tune
from compressor.runtime.profile import optimized_graph
from tests.quantization.graphs import build, images, put

FEED = {"x": images(40)}
LAYERS = ["Conv_a", "Conv_b", "Conv_c", "Conv_s", "Conv_h", "Conv_k", "Conv_z", "Gemm_y"]
SEVERAL = {"Conv_c": ["Conv_c", "Conv_s"], "Conv_h": ["Conv_h", "Conv_k"]}


def branches(loud=1.0):
    """A projected skip connection, two branches into a Concat; one channel of the skip ``loud``.

    What reads that channel takes it back, so that the float function does not depend on it much.
    """
    model = build(
        "a = Conv<pads=[1,1,1,1]>(x, w0, b0) ar = Relu(a)"
        " b = Conv<pads=[1,1,1,1]>(ar, w1, b1) br = Relu(b)"
        " c = Conv<pads=[1,1,1,1]>(br, w2, b2) s = Conv(ar, w3, b3) e = Add(c, s) er = Relu(e)"
        " h = Conv(er, w4) hr = Relu(h) k = Conv(er, w5) kr = Relu(k) m = Concat<axis=1>(hr, kr)"
        " z = Conv(m, w6) p = GlobalAveragePool(z) f = Flatten(p) y = Gemm(f, w7)",
        {"w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "b1": (16,),
         "w2": (16, 16, 3, 3), "b2": (16,), "w3": (16, 16, 1, 1), "b3": (16,),
         "w4": (16, 16, 1, 1), "w5": (16, 16, 1, 1), "w6": (16, 32, 1, 1), "w7": (16, 5)},
    )  # fmt: skip
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor).copy()
        if tensor.name == "w3":
            value[0] *= loud
        elif tensor.name in {"w4", "w5"}:
            value[:, 0] /= loud
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


class Even:
    """One millisecond in float, half of it in int8; 10 us per executed node."""

    def measure(self, models, protocol, feed=None):
        cost = {name: 1.0 if name == "fp32" else 0.5 for name in models} | {"A/A": 1.0}
        rounds = {name: (ms,) * protocol.rounds for name, ms in cost.items()}
        return Timing("m", protocol, rounds, rounds, False, "", "d")

    def profile(self, model, protocol, feed=None):
        return {node.name: 10.0 for node in optimized_graph(model).graph.node}


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Runs a search; gives its table and what it looked at, with how many samples."""
    real = quality.Judge.look

    def run(model=None, **goal):
        looks = []

        def noted(judge, candidate, count=None):
            looks.append((candidate.read_bytes(), count))
            return real(judge, candidate, count)

        monkeypatch.setattr(quality.Judge, "look", noted)
        source = put(branches() if model is None else model, tmp_path / "fp32.onnx")
        wanted = Goal(recovery=False, **goal)  # the recipe of the table is then the plain one
        report = tune(source, tmp_path / "out.onnx", FEED, Options(), wanted, Even(),
                      tmp_path / "tune")  # fmt: skip
        return report.table(), looks

    return run


def decibels(row, form):
    return row[form]["sqnr"]["y"]


def test_every_weighted_layer_has_one_row_of_its_own(look):
    table, _ = look()
    rows = [row for row in table["layers"] if "alone_int8" in row]
    assert [row["name"] for row in rows] == LAYERS
    for row in rows:
        assert row["alone_int8"] is not None
        assert row["alone_float"] is not None
        assert row["float_us"] >= 10.0
        assert row["int8_us"] >= 10.0
    regions = {row["name"]: row for row in table["regions"]}
    assert {row["region"] for row in rows} == set(regions)
    for name, region in regions.items():
        own = [row for row in rows if row["region"] == name]
        assert [row["name"] for row in own] == SEVERAL.get(name, [name])
        if len(own) == 1:
            assert own[0]["alone_int8"] == region["alone_int8"]
            assert own[0]["float_us"] == region["float_us"]
        else:  # the addition, the concatenation between the layers is nobody's own
            assert sum(row["int8_us"] for row in own) < region["int8_us"]
            assert all(row["alone_int8"] != region["alone_int8"] for row in own)


def test_a_layer_that_is_made_noisy_is_the_worst_and_its_neighbour_is_not(look):
    even = {row["name"]: row for row in look()[0]["layers"] if "alone_int8" in row}
    table, _ = look(branches(loud=300.0))
    rows = {row["name"]: row for row in table["layers"] if "alone_int8" in row}
    worst = sorted(rows, key=lambda name: decibels(rows[name], "alone_int8"))
    assert worst[0] == "Conv_s"
    assert decibels(rows["Conv_s"], "alone_int8") < decibels(even["Conv_s"], "alone_int8") - 10
    assert decibels(rows["Conv_s"], "alone_int8") < decibels(rows["Conv_c"], "alone_int8") - 10


def test_nothing_is_looked_at_twice_and_a_second_run_looks_at_nothing(look):
    _, first = look()
    assert len(first) == len(set(first))
    assert len(first) >= 2 * (len(LAYERS) + len(SEVERAL))
    _, again = look()
    assert again == []


def test_layers_inside_regions_come_after_the_regions_and_as_far_as_the_budget_goes(look):
    # A look is counted as 0.158 s, there are two per row, and the table has a third of the budget.
    table, _ = look(budget=3 * (6 + 1) * 2 * 0.16)
    assert all(row["alone_int8"] for row in table["regions"])
    inside = [
        row for row in table["layers"] if row["name"] in {*SEVERAL["Conv_c"], *SEVERAL["Conv_h"]}
    ]
    assert [row["alone_int8"] is None for row in inside].count(False) == 1
    assert all(row["float_us"] > 0 for row in inside)


def test_without_budget_there_are_times_alone(look):
    table, _ = look(budget=0.1)
    rows = [row for row in table["layers"] if "alone_int8" in row]
    assert [row["name"] for row in rows] == LAYERS
    assert all(row["alone_int8"] is None and row["int8_us"] > 0 for row in rows)
    assert all(np.isfinite(row["float_us"]) for row in rows)
