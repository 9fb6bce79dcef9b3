"""Proportions, bootstrap intervals and latency ratios."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.stats import (
    mean_interval,
    median_interval,
    proportion_lower,
    ratio,
    ratio_interval,
)

times = st.lists(st.floats(0.01, 100.0), min_size=2, max_size=40)


@pytest.mark.parametrize(
    ("right", "n", "bound"),
    # all right and one right have closed forms; 95 of 100 is in every table
    [(20, 20, 0.05 ** (1 / 20)), (1, 20, 1 - 0.95 ** (1 / 20)), (95, 100, 0.8977), (0, 9, 0.0)],
)
def test_proportion_bound_matches_closed_forms(right: int, n: int, bound: float) -> None:
    assert proportion_lower(right, n) == pytest.approx(bound, abs=5e-5)


def test_proportion_bound_is_wrong_in_at_most_one_of_twenty() -> None:
    rng = np.random.default_rng(3)
    for true in (0.5, 0.97, 0.995):
        draws = rng.binomial(360, true, size=2000)
        bounds = {int(k): proportion_lower(int(k), 360) for k in np.unique(draws)}
        assert np.mean([bounds[int(k)] > true for k in draws]) <= 0.06


def test_proportion_bound_holds_for_large_sets_and_refuses_nonsense() -> None:
    assert 0.8945 < proportion_lower(90_000, 100_000) + 0.004 < 0.9045
    assert proportion_lower(90_000, 100_000) < 0.9
    with pytest.raises(ValueError, match="right"):
        proportion_lower(5, 4)


@settings(max_examples=30, deadline=None)
@given(times)
def test_a_ratio_of_a_model_to_itself_is_exactly_one(rounds: list[float]) -> None:
    found = ratio(rounds, rounds, resamples=50)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(times, st.floats(0.1, 10.0))
def test_scaling_the_base_scales_value_and_interval(rounds: list[float], factor: float) -> None:
    other = rounds[::-1]
    plain = ratio(rounds, other, resamples=200)
    scaled = ratio([factor * r for r in rounds], other, resamples=200)
    for name in ("value", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(factor * getattr(plain, name), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(times)
def test_exchanging_the_models_inverts_the_interval(rounds: list[float]) -> None:
    there = ratio(rounds, rounds[::-1], resamples=200)
    back = ratio(rounds[::-1], rounds, resamples=200)
    assert back.value == pytest.approx(1 / there.value)
    assert (back.low, back.high) == pytest.approx((1 / there.high, 1 / there.low))
    assert there.low <= there.value <= there.high


def test_rounds_that_both_drift_keep_a_tight_ratio() -> None:
    drift = np.linspace(1.0, 3.0, 30)
    found = ratio(list(2.0 * drift), list(drift))
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))


def test_the_median_interval_covers_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(300):
        data = rng.lognormal(0.0, 0.1, size=30)
        found = median_interval(data, rng, resamples=300)
        hits += found.low <= 1.0 <= found.high
    assert 0.91 <= hits / 300 <= 0.99


def test_the_mean_interval_covers_at_its_nominal_rate() -> None:
    rng = np.random.default_rng(12)
    hits = 0
    for _ in range(300):
        found = mean_interval(rng.normal(5.0, 2.0, size=100), rng, confidence=0.9, resamples=300)
        hits += found.low <= 5.0 <= found.high
    assert 0.85 <= hits / 300 <= 0.95


def test_one_spike_does_not_move_the_median_interval_but_the_mean_one() -> None:
    data = np.concatenate([np.ones(30), [100.0]])
    middle = median_interval(data, np.random.default_rng(0))
    assert (middle.low, middle.high) == (1.0, 1.0)
    assert mean_interval(data, np.random.default_rng(0)).high > 5


def test_intervals_repeat_with_the_same_seed_and_large_data_is_resampled_in_blocks() -> None:
    data = np.random.default_rng(0).normal(size=50_000)
    found = [mean_interval(data, np.random.default_rng(5), resamples=200) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].high - found[0].low == pytest.approx(2 * 1.96 / 50_000**0.5, rel=0.25)
    samples = [1.1, 0.9, 1.2, 1.0]
    assert ratio_interval(samples, seed=3) == ratio_interval(samples, seed=3)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0]]])
def test_data_that_cannot_be_resampled_is_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        median_interval(values, np.random.default_rng(0))


def test_rounds_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 rounds"):
        ratio([1.0, 1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="above 0"):
        ratio([1.0, 0.0], [1.0, 1.0])
