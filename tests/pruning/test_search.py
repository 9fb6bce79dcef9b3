import numpy as np
import pytest

from compressor.pruning.groups import Group
from compressor.pruning.search import choose, ladder, strongest, widths


class Toy:
    """A budget whose groups cost a fixed price per channel."""

    def __init__(self, groups, prices):
        self.prices = prices
        self.total = sum(g.width * prices[g.name] for g in groups)

    def shrink(self, name, channels):
        self.total -= channels * self.prices[name]


def steps_of(groups, scores, round_to=1, max_ratio=0.9):
    reference = {g.name: g.width for g in groups}
    return ladder(groups, scores, round_to=round_to, max_ratio=max_ratio, reference=reference)


@pytest.mark.parametrize(
    ("full", "round_to", "ratio", "want"),
    [
        (32, 8, 0.8, [24, 16, 8]),
        (20, 8, 0.8, [16, 8]),
        (24, 8, 0.5, [16]),  # 12 would be half; 8 is below the cap
        (8, 8, 0.8, []),  # rounding down would leave nothing: the group stays
        (7, 8, 0.8, []),
        (10, 1, 0.8, [9, 8, 7, 6, 5, 4, 3, 2]),
    ],
)
def test_allowed_widths(full, round_to, ratio, want):
    assert widths(full, full, round_to, ratio) == want


def test_equal_scores_keep_a_groups_cuts_in_order():
    groups = [Group("a", 20, ()), Group("b", 32, ())]
    # 0.1 is not exact: means over 4 and over 8 of them may differ in the last bit.
    steps = steps_of(groups, {"a": np.full(20, 0.1), "b": np.full(32, 0.1)}, round_to=8)
    for name in ("a", "b"):
        own = [s for s in steps if s.group == name]
        assert [s.score for s in own] == sorted(s.score for s in own)


def test_the_overshoot_is_filled_back_most_important_first():
    groups = [Group("cheap", 4, ()), Group("dear", 2, ())]
    scores = {"cheap": np.array([0.1, 0.2, 0.3, 9.0]), "dear": np.array([0.4, 9.0])}
    budget = Toy(groups, {"cheap": 1, "dear": 10})  # 24 in all
    # 0.1, 0.2 and 0.3 go (21 left), then 0.4 (11 left); 0.3 and 0.2 come back (13).
    chosen = choose(steps_of(groups, scores), budget, 13, "global")
    assert chosen == {"cheap": 3, "dear": 1}
    assert budget.total == 13


def test_a_budget_that_is_met_takes_no_step():
    groups = [Group("a", 8, ())]
    budget = Toy(groups, {"a": 1})
    assert choose(steps_of(groups, {"a": np.arange(8.0)}), budget, 8, "global") == {}


def test_out_of_reach_takes_every_step_and_stays_above():
    groups = [Group("a", 10, ())]
    budget = Toy(groups, {"a": 1})
    assert choose(steps_of(groups, {"a": np.arange(10.0)}), budget, 0, "global") == {"a": 1}
    assert budget.total == 1


def test_equal_channels_keep_the_lower_index():
    assert strongest(np.array([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [0, 1]


def test_groups_left_whole_have_no_steps():
    assert steps_of([Group("a", 8, (), "a reason")], {}) == []
