"""Tango's bound and McNemar's test against vectors, an independent solver and simulation."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.stats import (
    Paired,
    compare,
    mcnemar_exact,
    samples_needed,
    tango_lower,
    tango_upper,
)

Z = NormalDist().inv_cdf(0.95)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 2000))
    b = draw(st.integers(0, n))
    return b, draw(st.integers(0, n - b)), n


@pytest.mark.parametrize(
    ("b", "c", "n", "percent"),
    [
        (9, 6, 1797, 0.563),
        (31, 5, 1797, 2.055),
        (4, 3, 360, 1.725),
        (0, 0, 360, 0.746),
        (12, 2, 500, 3.455),
        (5, 0, 1797, 0.570),
        (60, 20, 10000, 0.555),
    ],
)
def test_upper_bound_matches_published_vectors(b: int, c: int, n: int, percent: float) -> None:
    assert 100 * tango_upper(b, c, n) == pytest.approx(percent, abs=5e-4)


def _score_by_likelihood(b: int, c: int, n: int, d: float) -> float:
    """The score of drop ``d``, with the nuisance found by searching the trinomial likelihood."""
    low, high = max(0.0, -d), (1 - d) / 2

    def slope(q: float) -> float:  # derivative of the log-likelihood in q = P(fixed)
        return b / (q + d) + c / q - 2 * (n - b - c) / (1 - 2 * q - d)

    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (b - c - n * d) / math.sqrt(n * (2 * low + d - d * d))


@pytest.mark.parametrize("case", [(9, 6, 1797), (31, 5, 1797), (4, 3, 360), (20, 60, 900)])
def test_both_bounds_solve_the_score_equation_of_the_constrained_likelihood(
    case: tuple[int, int, int],
) -> None:
    assert _score_by_likelihood(*case, tango_upper(*case)) == pytest.approx(-Z, abs=1e-6)
    assert _score_by_likelihood(*case, tango_lower(*case)) == pytest.approx(Z, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(counts())
def test_bounds_enclose_the_observed_drop_and_swap_with_the_models(
    case: tuple[int, int, int],
) -> None:
    b, c, n = case
    pair = Paired(b, c, n)
    assert -1 <= pair.lower() <= pair.drop <= pair.upper() <= 1
    assert pair.upper() == -tango_lower(c, b, n)
    assert pair.upper(0.99) >= pair.upper(0.95) >= pair.upper(0.6)


@settings(max_examples=60, deadline=None)
@given(counts())
def test_upper_bound_rises_with_new_errors_and_falls_with_fixed_ones(
    case: tuple[int, int, int],
) -> None:
    b, c, n = case
    if b + c < n:
        assert tango_upper(b + 1, c, n) > tango_upper(b, c, n) - 1e-12
        assert tango_upper(b, c + 1, n) < tango_upper(b, c, n) + 1e-12


def test_more_samples_at_equal_rates_tighten_the_bound() -> None:
    bounds = [tango_upper(k, k, 100 * k) for k in (1, 4, 16, 64)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.5 * bounds[0]


@pytest.mark.parametrize(("b", "c", "n"), [(1, 0, 1), (0, 1, 1), (7, 0, 7), (0, 7, 7), (3, 4, 7)])
def test_extreme_counts_give_finite_bounds(b: int, c: int, n: int) -> None:
    pair = Paired(b, c, n)
    assert math.isfinite(pair.upper())
    assert pair.lower() <= pair.drop <= pair.upper()


@pytest.mark.parametrize(("n", "gain", "loss"), [(360, 0.005, 0.015), (1797, 0.005, 0.015)])
def test_a_true_drop_at_the_limit_passes_in_one_of_twenty(n: int, gain: float, loss: float) -> None:
    rng = np.random.default_rng(7)
    draws = rng.multinomial(n, [loss, gain, 1 - loss - gain], size=4000)
    seen, times = np.unique(draws[:, :2], axis=0, return_counts=True)
    wrong = sum(
        int(t)
        for (b, c), t in zip(seen, times, strict=True)
        if tango_upper(int(b), int(c), n) <= loss - gain
    )
    assert 0.03 <= wrong / 4000 <= 0.06  # published .047-.050; +-2.6 standard errors


@pytest.mark.parametrize(("b", "c"), [(31, 5), (5, 0), (4, 0), (0, 4), (6, 6), (10, 11), (0, 0)])
def test_mcnemar_equals_the_binomial_sum_in_fractions(b: int, c: int) -> None:
    total = sum(math.comb(b + c, k) for k in range(b, b + c + 1))
    assert mcnemar_exact(b, c) == pytest.approx(float(Fraction(total, 2 ** (b + c))), rel=1e-14)


def test_five_new_errors_without_a_fix_are_the_fewest_that_are_significant() -> None:
    assert mcnemar_exact(5, 0) <= 0.05 < mcnemar_exact(4, 0)
    assert mcnemar_exact(31, 5) == pytest.approx(6.457e-6, rel=1e-3)


def test_mcnemar_of_many_thousands_is_finite_and_near_the_normal_tail() -> None:
    expected = 1 - NormalDist().cdf((10200 - 0.5 - 10000) / math.sqrt(5000))
    assert mcnemar_exact(10200, 9800) == pytest.approx(expected, rel=1e-3)
    assert mcnemar_exact(20000, 100) == 0.0
    assert mcnemar_exact(100, 20000) == 1.0


def test_compare_counts_each_direction() -> None:
    base = np.array([True, True, True, False, False])
    new = np.array([True, False, False, True, False])
    assert compare(base, new) == Paired(2, 1, 5)


def test_lengths_that_differ_and_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="paired"):
        compare(np.ones(3, bool), np.ones(4, bool))
    with pytest.raises(ValueError, match="n >= 1"):
        Paired(0, 0, 0)
    with pytest.raises(ValueError, match=r"b \+ c <= n"):
        tango_upper(3, 3, 5)


@pytest.mark.parametrize(
    ("disagreement", "margin", "n"),
    [(0.005, 0.005, 1237), (0.02, 0.005, 4947), (0.08, 0.005, 19785)],
)
def test_samples_needed_matches_the_published_table(
    disagreement: float, margin: float, n: int
) -> None:
    assert samples_needed(disagreement, margin) == pytest.approx(n, rel=1e-3)


def test_without_a_flip_the_needed_samples_are_just_enough_for_the_bound() -> None:
    needed = samples_needed(0.0, 0.01)
    assert tango_upper(0, 0, needed) <= 0.01 < tango_upper(0, 0, needed - 2)
