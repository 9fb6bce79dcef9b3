"""The learning rate as a function of the step."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.training.schedules import lr_factor, warmup_steps

runs = st.integers(1, 400).flatmap(
    lambda total: st.tuples(st.just(total), st.integers(0, total // 2))
)


@settings(max_examples=30, deadline=None)
@given(runs)
def test_factor_stays_above_zero_and_never_exceeds_one(run: tuple[int, int]) -> None:
    total, warmup = run
    factors = [lr_factor(step, total, warmup) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    assert factors[warmup] == 1.0


@settings(max_examples=30, deadline=None)
@given(runs)
def test_factor_rises_linearly_then_falls_without_a_break(run: tuple[int, int]) -> None:
    total, warmup = run
    factors = [lr_factor(step, total, warmup) for step in range(total)]
    rising = factors[: warmup + 1]
    assert rising == pytest.approx([(i + 1) * rising[0] for i in range(warmup + 1)])
    assert all(a > b for a, b in pairwise(factors[warmup:]))


def test_cosine_is_one_half_in_the_middle_and_almost_zero_at_the_end() -> None:
    assert lr_factor(50, 100, 0) == pytest.approx(0.5)
    assert lr_factor(60, 100, 20) == pytest.approx(0.5)
    assert 0 < lr_factor(999, 1000, 100) < 1e-5


def test_constant_schedule_warms_up_and_stays() -> None:
    factors = [lr_factor(step, 10, 4, "constant") for step in range(10)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8] + 6 * [1.0])


def test_warmup_counts_fractions_of_epochs_and_takes_at_most_half_of_the_run() -> None:
    assert warmup_steps(total=100, per_epoch=10, warmup_epochs=1.5) == 15
    assert warmup_steps(total=10, per_epoch=10, warmup_epochs=1.0) == 5
    assert warmup_steps(total=1, per_epoch=1, warmup_epochs=1.0) == 0
