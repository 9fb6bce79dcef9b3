import itertools

import numpy as np
import pytest

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.tasks import CLASSIFICATION, REGRESSION
from compressor.runtime import predict
from compressor.runtime.choose import Candidate, choose, drop
from compressor.stats.bootstrap import Interval


def candidate(name, precision=None, drop=0.0, size=100):
    return Candidate(name, precision or name, drop, size)


def speeds(**intervals):
    """Interval of a candidate over whatever was chosen before; asked for nothing else."""
    asked = []

    def of(base, new):
        asked.append((base, new))
        return Interval(*intervals[new])

    of.asked = asked
    return of


FP32, INT8 = candidate("fp32"), candidate("int8", size=30)


@pytest.mark.parametrize(
    ("interval", "size", "ships"),
    [
        ((2.0, 1.8, 2.2), 30, "int8"),  # faster
        ((2.0, 1.8, 2.2), 300, "int8"),  # faster, though larger
        ((1.1, 1.0001, 1.2), 300, "int8"),  # lower bound just above 1
        ((1.1, 1.0, 1.2), 300, "fp32"),  # lower bound at 1: not above
        ((1.1, 1.0, 1.2), 30, "int8"),  # ... but contains 1 and is smaller
        ((1.0, 0.97, 1.05), 30, "int8"),  # tie, at the limit
        ((1.0, 0.9699, 1.05), 30, "fp32"),  # below the limit
        ((1.0, 0.98, 1.02), 100, "fp32"),  # tie, same bytes
        ((1.0, 0.98, 1.02), 99, "int8"),
        ((0.99, 0.98, 0.999), 30, "fp32"),  # proven slower, however little
        ((0.985, 0.97, 1.0), 30, "int8"),  # upper bound at 1: contains 1
        ((0.8, 0.78, 0.83), 30, "fp32"),
    ],
)
def test_int8_must_earn_its_place(interval, size, ships):
    found = choose([FP32, candidate("int8", size=size)], speeds(int8=interval), 1.0)
    assert found.name == ships
    assert found.within
    assert len(found.reasons) == 2


def test_a_slow_int8_file_is_said_to_be_slow():
    found = choose([FP32, INT8], speeds(int8=(0.8, 0.78, 0.83)), 1.0)
    assert found.reasons[1].startswith("int8 is 0.80x here")
    assert found.reasons[1].endswith("shipping fp32")


def test_the_walk_is_fp32_fp16_int8_whatever_the_order_given():
    three = [FP32, candidate("fp16", size=50), INT8]
    for order in itertools.permutations(three):
        speed = speeds(fp16=(1.5, 1.4, 1.6), int8=(1.2, 1.1, 1.3))
        assert choose(order, speed, 1.0).name == "int8"
        assert speed.asked == [("fp32", "fp16"), ("fp16", "int8")]


def test_a_candidate_is_compared_with_the_choice_so_far():
    speed = speeds(fp16=(0.5, 0.4, 0.6), int8=(1.2, 1.1, 1.3))
    choose([FP32, candidate("fp16"), INT8], speed, 1.0)
    assert speed.asked == [("fp32", "fp16"), ("fp32", "int8")]


def test_too_large_a_drop_never_ships_and_is_never_timed():
    speed = speeds()
    found = choose([FP32, candidate("int8", drop=1.01)], speed, 1.0)
    assert found.name == "fp32"
    assert found.within
    assert "above 1" in found.reasons[1]
    assert speed.asked == []


def test_a_drop_of_exactly_the_limit_is_within():
    found = choose([FP32, candidate("int8", drop=1.0)], speeds(int8=(2, 1.9, 2.1)), 1.0)
    assert found.name == "int8"


def test_int8_alone_within_ships():
    found = choose([candidate("fp32", drop=2.0), INT8], speeds(), 1.0)
    assert (found.name, found.within) == ("int8", True)


def test_unstable_timings_keep_fp32():
    speed = speeds()
    found = choose([INT8, FP32], speed, 1.0, unstable=True)
    assert found.name == "fp32"
    assert "unstable" in found.reasons[1]
    assert speed.asked == []


def test_nothing_within_ships_the_best_float_model():
    rows = [
        candidate("fp32", drop=3.0), candidate("fp16", drop=2.5), candidate("int8", drop=1.5),
    ]  # fmt: skip
    found = choose(rows, speeds(), 1.0)
    assert (found.name, found.within) == ("fp16", False)
    assert "best float model" in found.reasons[1]
    assert len(found.reasons) == 3
    tie = [candidate("fp32", drop=2.5), candidate("fp16", drop=2.5)]
    assert choose(tie, speeds(), 1.0).name == "fp32"
    assert choose([candidate("int8", drop=9.0)], speeds(), 1.0).name == "int8"


def test_within_one_precision_the_order_given_counts():
    rows = [candidate("plain", "fp32"), candidate("pruned", "fp32", size=40)]
    assert choose(rows, speeds(pruned=(1.5, 1.4, 1.6)), 1.0).name == "pruned"
    assert choose(rows, speeds(pruned=(0.9, 0.8, 0.95)), 1.0).name == "plain"


def test_no_candidates_and_unknown_precisions_are_refused():
    with pytest.raises(ConfigError, match="at least one"):
        choose([], speeds(), 1.0)
    with pytest.raises(ConfigError, match="int2"):
        choose([candidate("x", "int2")], speeds(), 1.0)


def rows(right, ids=None):
    labels = np.zeros(len(right), np.int64)
    outputs = np.stack([np.asarray(right, np.float32), np.full(len(right), 0.5, np.float32)], 1)
    ids = np.arange(len(right)) if ids is None else ids
    return predict.make("m", ids, labels, outputs, CLASSIFICATION)


def test_a_drop_is_in_points_exact_and_has_a_bound():
    teacher, new = rows([1] * 300), rows([1] * 297 + [0] * 3)
    value, bound = drop(teacher, new, CLASSIFICATION)
    assert value == 1.0
    assert value < bound < 4.0
    assert drop(new, teacher, CLASSIFICATION)[0] == -1.0


def test_a_drop_of_a_regression_is_the_rise_of_its_error():
    outputs = np.zeros((4, 1), np.float32)
    good = predict.make("a", np.arange(4), np.zeros(4), outputs, REGRESSION)
    bad = predict.make("b", np.arange(4), np.zeros(4), outputs + 0.5, REGRESSION)
    assert drop(good, bad, REGRESSION) == (0.5, None)


def test_predictions_of_other_samples_cannot_be_compared():
    with pytest.raises(IntegrityError, match="other samples"):
        drop(rows([1, 1]), rows([1, 1], np.array([1, 2])), CLASSIFICATION)
