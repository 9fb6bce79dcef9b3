"""Gates of a pipeline file: what is accepted, and what an error says."""

from __future__ import annotations

from typing import Any

import pytest

from compressor.core.errors import ConfigError
from compressor.gates import parse, problems
from compressor.gates.config import split

STAGES = ["teacher", "student", "int8", "bench", "bundle"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (
            {"metric": "bundle.accuracy", "versus": "teacher.accuracy", "max_drop": 1},
            "bundle.accuracy versus teacher.accuracy max_drop 1",
        ),
        ({"metric": "bundle.speedup", "min": 4.0}, "bundle.speedup min 4"),
        ({"metric": "bench.int8.speedup", "min": 1.5}, "bench.int8.speedup min 1.5"),
        ({"metric": "bundle.bytes", "max": 60_000}, "bundle.bytes max 60000"),
        ({"metric": "bundle.accuracy", "floor": 97.0}, "bundle.accuracy floor 97"),
        (
            {"metric": "bundle.latency", "versus": "baseline", "max_ratio": 1.1},
            "bundle.latency versus baseline max_ratio 1.1",
        ),
        (
            {"metric": "student[loss=kd].accuracy", "min": 90},
            "student[loss=kd].accuracy min 90",
        ),
    ],
)
def test_a_right_gate_has_no_problems_and_reads_back_as_text(
    raw: dict[str, Any], text: str
) -> None:
    assert problems([raw], STAGES) == []
    assert parse([raw])[0].text() == text


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("bundle.bytes", "needs a mapping"),
        ({"metric": "bundle.bytes"}, "needs a limit, one of max_drop, min"),
        ({"metric": "bundle.bytes", "min": 1, "max": 2}, "has min and max; give one"),
        ({"metric": "bundle.bytes", "maximum": 2}, "maximum: unknown key; did you mean 'max'?"),
        ({"metric": "budle.bytes", "max": 2}, "no stage 'budle'; did you mean 'bundle'?"),
        ({"metric": "bundle.bytes", "max": "2"}, 'max: got "2"; needs'),
        ({"metric": "bundle", "max": 2}, "not of the form STAGE.METRIC"),
        ({"metric": "bundle.accuracy", "max_drop": 1}, "max_drop needs versus"),
        (
            {"metric": "bundle.accuracy", "versus": "techer.accuracy", "max_drop": 1},
            "versus: no stage 'techer'; did you mean 'teacher'?",
        ),
        (
            {"metric": "bundle.accuracy", "versus": "teacher.bytes", "max_drop": 1},
            "is another metric",
        ),
        ({"metric": "bundle.accuracy", "versus": "baseline", "max_drop": -1}, "is negative"),
        ({"metric": "bundle.bytes", "versus": "baseline", "max_drop": 1}, "use max_ratio"),
        ({"metric": "bundle.accuracy", "versus": "baseline", "max_ratio": 1}, "use max_drop"),
        ({"metric": "bundle.bytes", "versus": "baseline", "max": 1}, "leave versus out"),
        ({"metric": "bundle.bytes", "versus": "baseline", "max_ratio": 0}, "not above 0"),
        ({"metric": "bundle.bytes", "floor": 1}, "floor is for accuracy"),
        ({"metric": "bundle.accuracy", "floor": 970}, "not a percentage"),
        ({"metric": "bundle.accuracy", "max": 97}, "refuse a better model; use min"),
        ({"metric": "bundle.mae", "min": 3}, "refuse a better model; use max"),
        ({"metric": "bundle.val_accuracy", "min": 97}, "gates read test"),
        ({"metric": "bundle.latency", "max": 3}, "beside the baseline's model"),
    ],
)
def test_a_wrong_gate_says_what_would_work(raw: Any, words: str) -> None:
    found = problems([raw], STAGES)
    assert len(found) == 1
    assert found[0][0] == 0
    assert words in found[0][1]


def test_all_problems_of_all_gates_come_at_once() -> None:
    raw = [
        {"metric": "bundle.bytes", "max": 1},
        {"metric": "bundel.val_accuracy", "floor": 120, "versus": "teecher.accuracy"},
        {"metrik": "bundle.bytes"},
    ]
    found = problems(raw, STAGES)
    text = " | ".join(f"{index} {message}" for index, message in found)
    assert {index for index, _ in found} == {1, 2}
    for words in ("bundle", "teacher", "gates read test", "leave versus out", "'metric'"):
        assert words in text
    with pytest.raises(ConfigError, match=r"gates\.1: .*\n(.*\n)*gates\.2: "):
        parse(raw)


@pytest.mark.parametrize(
    ("dotted", "parts"),
    [
        ("bundle.accuracy", ("bundle", "accuracy")),
        ("bench.int8.speedup", ("bench", "int8.speedup")),
        ("student[kd.weight=0.9].accuracy", ("student[kd.weight=0.9]", "accuracy")),
        ("bundle", ("bundle", "")),
    ],
)
def test_a_dotted_name_splits_after_the_brackets(dotted: str, parts: tuple[str, str]) -> None:
    assert split(dotted) == parts
