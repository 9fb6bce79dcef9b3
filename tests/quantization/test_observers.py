from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.quantization.observers import BINS, Extremes, Histogram, Range


def histogram(values: np.ndarray) -> Histogram:
    seen = Histogram(Range(float(values.min()), float(values.max())))
    seen.update(values)
    return seen


def activations(count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Heavy-tailed and lopsided, like the inputs of a real layer."""
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, count) + 0.3).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 199), max_size=6, unique=True), st.integers(0, 5))
def test_streamed_counts_equal_numpy_on_the_full_data(cuts, seed):
    values = activations(200, seed)
    streamed = Histogram(Range(float(values.min()), float(values.max())))
    for part in np.split(values, sorted(cuts)):
        streamed.update(part)
    expected, _ = np.histogram(values, BINS, (float(values.min()), float(values.max())))
    assert np.array_equal(streamed.counts, expected)


def test_extremes_and_their_mean_over_samples_do_not_depend_on_batches():
    lows, highs = activations(30, 1), activations(30, 2) + 9
    one, many = Extremes(), Extremes()
    one.update(lows, highs, highs)
    for k in range(0, 30, 7):
        many.update(lows[k : k + 7], highs[k : k + 7], highs[k : k + 7])
    assert one.range() == many.range() == Range(float(lows.min()), float(highs.max()))
    assert many.average().low == pytest.approx(float(lows.mean()), rel=1e-6)
    assert many.average().high == pytest.approx(float(highs.mean()), rel=1e-6)


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99, 100.0])
def test_percentile_is_numpys_within_one_bin(percentile):
    values = activations()
    got = histogram(values).range("percentile", percentile)
    cut = (100 - percentile) / 2
    width = float(values.max() - values.min()) / BINS
    assert got.low == pytest.approx(np.percentile(values, cut), abs=width)
    assert got.high == pytest.approx(np.percentile(values, 100 - cut), abs=width)


def test_percentile_behind_relu_cuts_only_above():
    values = np.maximum(activations(), 0)
    got = histogram(values).range("percentile", 99.0)
    assert got.low == 0.0
    assert got.high == pytest.approx(np.percentile(values, 99.5), rel=0.02)


def real_error(values: np.ndarray, low: float, high: float) -> float:
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    back = (np.clip(np.rint(values / scale) + zero, 0, 255) - zero) * scale
    return float(((back - values) ** 2).mean())


def test_mse_comes_near_the_best_of_a_brute_force_search_on_the_values_themselves():
    values = activations().astype(np.float64)
    got = histogram(values.astype(np.float32)).range("mse", 0)
    low, high = values.min(), values.max()
    grid = np.linspace(0.1, 1.0, 31)
    best = min(real_error(values, low * f, high * g) for f in grid for g in grid)
    assert real_error(values, got.low, got.high) <= best * 1.15
    assert real_error(values, got.low, got.high) < real_error(values, low, high)


def slow_divergence(counts: np.ndarray, keep: int) -> float:
    """The textbook loop for a range that starts at 0: TensorRT's calibration, 256 levels."""
    reference = counts[:keep].astype(float)
    reference[-1] += counts[keep:].sum()
    candidate = np.zeros(keep)
    bounds = np.linspace(0, keep, 257).astype(int)
    for start, stop in itertools.pairwise(bounds):
        members = [i for i in range(start, stop) if counts[i] > 0]
        for i in members:
            candidate[i] = counts[start:stop].sum() / len(members)
    total = 0.0
    candidate = np.maximum(candidate, 1e-4 * (reference > 0))
    p, q = reference / reference.sum(), candidate / candidate.sum()
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += a * np.log(a / b)
    return total


def test_entropy_takes_the_window_that_the_textbook_loop_finds_best():
    values = np.abs(activations(50_000, 3))
    values[0] = 0.0
    seen = histogram(values)
    got = seen.range("entropy", 0)
    fractions = np.linspace(1.0, 0.1, 61)
    smooth = seen.counts.copy()
    smooth[0], smooth[-1] = min(smooth[0], smooth[1]), min(smooth[-1], smooth[-2])
    keeps = [max(256, int(np.ceil(BINS * f - 1e-9))) for f in fractions]
    costs = [slow_divergence(smooth, k) for k in keeps]
    chosen = slow_divergence(smooth, max(256, round(got.high / float(seen.high) * BINS)))
    assert chosen == pytest.approx(min(costs), rel=1e-2)
    assert got.high < values.max()


def test_entropy_is_not_driven_to_a_tiny_window_by_the_spike_at_zero_of_a_relu():
    values = np.maximum(np.random.default_rng(0).standard_normal(100_000), 0).astype(np.float32)
    got = histogram(values).range("entropy", 0)
    assert got.high > 0.5 * values.max()


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_a_single_outlier_is_cut_off_and_the_sign_of_the_range_kept(method):
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    values[7] = 100.0
    got = histogram(values).range(method, 99.9)
    assert got.high < 50
    assert values.min() <= got.low < 0
