from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.quantization.placement import Costs, first, fit, guess, moves, neighbours
from compressor.quantization.regions import Edge

MICROSECONDS = st.floats(0.0, 500.0)


def chain(floats, int8, border, ends=0.0):
    """Regions one behind the other between float operators."""
    count = len(floats)
    edges = [Edge("x", None, (0,), 0, False)]
    edges += [Edge(f"t{i}", i, (i + 1,), 0, False) for i in range(count - 1)]
    edges.append(Edge("y", count - 1, (), 1, False))
    return Costs(tuple(floats), tuple(int8), tuple(edges),
                 (ends, *[border] * (count - 1), ends))  # fmt: skip


@st.composite
def networks(draw):
    count = draw(st.integers(1, 6))
    edges, borders = [], []
    for k in range(draw(st.integers(1, 8))):
        producer = draw(st.one_of(st.none(), st.integers(0, count - 1)))
        others = [i for i in range(count) if i != producer]
        readers = draw(st.sets(st.sampled_from(others), max_size=3)) if others else set()
        outside = 0 if producer is None else draw(st.integers(0, 2))
        edges.append(Edge(f"t{k}", producer, tuple(sorted(readers)), outside, draw(st.booleans())))
        borders.append(draw(MICROSECONDS))
    row = st.lists(MICROSECONDS, min_size=count, max_size=count).map(tuple)
    return Costs(draw(row), draw(row), tuple(edges), tuple(borders), draw(st.floats(0.25, 4.0)))


@settings(max_examples=80, deadline=None)
@given(costs=networks(), data=st.data())
def test_the_guess_is_the_cheapest_of_all_choices(costs, data):
    count = len(costs.floats)
    forced = frozenset(data.draw(st.sets(st.integers(0, count - 1))))
    rest = sorted(costs.everything - forced)
    every = [
        forced | set(extra)
        for k in range(len(rest) + 1)
        for extra in itertools.combinations(rest, k)
    ]
    found = guess(costs, forced)
    assert found >= forced
    least = min(costs.total(choice) for choice in every)
    assert costs.total(found) == pytest.approx(least, abs=0.05)  # flows count in thousandths


def test_dear_borders_join_what_loses_alone_to_its_neighbours():
    lonely = chain([100, 100, 100], [50, 120, 50], border=15)
    assert guess(lonely) == frozenset()
    assert guess(chain([100, 100, 100], [50, 120, 50], border=5)) == {1}
    assert guess(chain([100, 100], [90, 90], border=5, ends=30)) == {0, 1}


def test_the_fitted_scale_is_the_one_that_was_true():
    costs = chain([100, 100, 100, 100], [60, 130, 60, 130], border=10)
    true = Costs(costs.floats, costs.int8, costs.edges, costs.borders, scale=4.0)
    base = true.total(true.everything)
    seen = [(choice, base / true.total(choice)) for choice in (frozenset({1}), frozenset({1, 3}))]
    assert fit(costs, seen) == pytest.approx(4.0)


def test_first_proposals_are_distinct_hold_what_is_forced_and_are_never_all_float():
    costs = chain([100] * 5, [60, 130, 60, 130, 60], border=10)
    found = first(costs, frozenset({2}))
    assert found[0] == {2}
    assert len(set(found)) == len(found)
    assert all(choice >= {2} and choice != costs.everything for choice in found)


def test_moves_are_new_near_and_begin_with_the_models_optimum():
    costs = chain([100] * 4, [50, 120, 50, 50], border=5)
    best = frozenset({0, 1, 2})
    near = moves(costs, best, frozenset(), {best})
    assert near[0] == guess(costs)
    assert best not in near
    assert costs.everything not in near
    assert len(near) == len(set(near))
    assert moves(costs, best, frozenset(), {best, *near}) == []
    assert all(choice >= {3} for choice in moves(costs, best, frozenset({3}), set()))


def test_neighbours_share_a_tensor():
    assert neighbours(chain([1] * 3, [1] * 3, border=1)) == [[1], [0, 2], [1]]
