"""Grids for a network in training are those that ``quantize`` chooses."""

from __future__ import annotations

import numpy as np
import pytest

from compressor.quantization import calibrate
from compressor.quantization.graph import Graph
from compressor.quantization.grids import Grids
from compressor.quantization.observers import METHODS
from compressor.quantization.prepare import clean
from compressor.quantization.scales import parameters
from compressor.quantization.weights import fits_16_bits, quantize_weight
from tests.quantization.graphs import zoo


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_calibration_on_the_same_values(method):
    rng = np.random.default_rng(0)
    batches = [{"x": rng.gamma(2.0, 1.0, (n, 3, 8, 8)).astype(np.float32)} for n in (5, 3)]
    graph = Graph(clean(zoo()))
    wanted = calibrate.calibrate(graph, ["x"], lambda: batches, method=method, percentile=99.0)

    def replay(see):
        for batch in batches:
            see("x", batch["x"].reshape(len(batch["x"]), -1))

    scale, zero = Grids(method, 99.0, "auto").activations(replay)["x"]
    by = parameters(wanted.ranges["x"])
    assert scale == pytest.approx(float(by.scale), rel=1e-6)
    assert zero == by.zero_point


def test_a_tensor_with_nan_has_no_grid_and_a_constant_one_has():
    def replay(see):
        see("broken", np.array([[1.0, np.nan]], np.float32))
        see("zero", np.zeros((2, 3), np.float32))

    assert Grids("mse", 99.99, 7).activations(replay) == {"zero": (1.0, 0)}


def test_weights_have_the_grid_of_the_target():
    rows = np.random.default_rng(0).normal(0, 1, (5, 20)).astype(np.float32)
    assert Grids("minmax", 99.99, 7).weights(rows).tolist() == [64] * 5
    assert Grids("minmax", 99.99, 8).weights(rows).tolist() == [127] * 5
    proven = Grids("minmax", 99.99, "auto").weights(rows)
    assert ((proven >= 64) & (proven <= 127)).all()
    assert fits_16_bits(quantize_weight(rows, None, np.float32(1), "proven").values).all()


def test_the_samples_are_those_that_quantize_does_not_hold_out():
    grids = Grids("minmax", 99.99, "auto")
    assert grids.rows(11).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 10]
    assert grids.rows(3).tolist() == [0, 1, 2]
