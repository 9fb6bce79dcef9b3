from __future__ import annotations

import json
from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, Field, model_validator

from compressor.core.config import Config, Invalid, seconds, validate


class Inner(Config):
    flip: bool = False
    rate: float = Field(0.1, gt=0)


class Outer(Config):
    epochs: int = Field(15, ge=0)
    kind: Literal["sgd", "adamw"] = "sgd"
    threads: int | Annotated[list[int], Field(min_length=1)] = 1
    names: tuple[str, ...] = ()
    patience: int | None = None
    inner: Inner = Inner()
    maybe: Inner | None = None
    word: str = "x"

    @model_validator(mode="after")
    def _agree(self) -> Outer:
        if self.word == "bad":
            raise ValueError("word: 'bad' is bad; give another")
        return self


def problems(**options: object) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as caught:
        validate(Outer, options)
    return [(".".join(map(str, loc)), text) for loc, text in caught.value.problems]


@pytest.mark.parametrize(
    ("options", "where", "text"),
    [
        ({"epocks": 3}, "epocks", "unknown key; did you mean 'epochs'?"),
        ({"zzz": 3}, "zzz", "unknown key; known: epochs, inner, kind, maybe, names, "),
        ({"inner": {"flop": True}}, "inner.flop", "unknown key; did you mean 'flip'?"),
        ({"maybe": {"flop": True}}, "maybe.flop", "unknown key; did you mean 'flip'?"),
        ({"epochs": "3"}, "epochs", 'got "3"; needs a whole number'),
        ({"epochs": 1.5}, "epochs", "got 1.5; needs a whole number"),
        ({"epochs": True}, "epochs", "got true; needs a whole number"),
        ({"epochs": -1}, "epochs", "got -1; needs at least 0"),
        ({"inner": {"rate": 0}}, "inner.rate", "got 0; needs more than 0"),
        ({"inner": {"flip": 1}}, "inner.flip", "got 1; needs true or false"),
        ({"inner": 3}, "inner", "got 3; needs a mapping"),
        ({"kind": "sdg"}, "kind", "got \"sdg\"; needs 'sgd' or 'adamw'"),
        ({"names": "one"}, "names", 'got "one"; needs a list'),
        ({"names": ["a", 1]}, "names.1", "got 1; needs text"),
        ({"word": 3}, "word", "got 3; needs text"),
        ({"threads": "x"}, "threads", 'got "x"; needs a whole number or a list'),
        ({"threads": [1, "x"]}, "threads.1", 'got "x"; needs a whole number'),
        ({"threads": []}, "threads", "got []; needs a whole number or a list of at least 1"),
        ({"patience": "x"}, "patience", 'got "x"; needs a whole number'),
        ({"word": "bad"}, "", "word: 'bad' is bad; give another"),
    ],
)
def test_a_problem_says_where_what_it_got_and_what_would_work(options, where, text):
    found = problems(**options)
    assert len(found) == 1
    assert found[0][0] == where
    assert found[0][1].startswith(text)


def test_all_problems_are_found_at_once():
    found = problems(epochs="3", inner={"flop": 1, "rate": -1}, kind=3)
    assert {where for where, _ in found} == {"epochs", "inner.flop", "inner.rate", "kind"}


def test_a_required_key_is_named_where_it_is_missing():
    class Needs(Config):
        model: Inner
        name: str

    with pytest.raises(Invalid) as caught:
        validate(Needs, {"model": {}})
    assert caught.value.problems == [(("name",), "is required")]


def test_a_long_value_is_shortened():
    ((_, text),) = problems(epochs="x" * 500)
    assert len(text) < 120


def test_keys_that_look_like_types_are_kept():
    class Free(Config):
        table: dict[str, int]

    with pytest.raises(Invalid) as caught:
        validate(Free, {"table": {"Big": "x", "int": "y"}})
    assert {loc for loc, _ in caught.value.problems} == {("table", "Big"), ("table", "int")}


def test_what_is_right_is_built_without_coercion():
    got = validate(Outer, {"epochs": 3, "threads": [1, 2], "inner": {"rate": 1}, "names": ["a"]})
    assert (got.epochs, got.threads, got.inner.rate, got.names) == (3, [1, 2], 1.0, ("a",))


class Timed(Config):
    budget: Annotated[float, BeforeValidator(seconds)] | None = None
    digest: Annotated[str, Field(pattern="^[0-9a-f]{4}$")] = "0000"


@pytest.mark.parametrize(("given", "s"), [(90, 90.0), ("90s", 90.0), ("3m", 180.0), ("1h", 3600.0)])
def test_a_time_may_be_written_as_people_write_it(given, s):
    assert validate(Timed, {"budget": given}).budget == s
    assert validate(Timed, {}).budget is None


@pytest.mark.parametrize("given", ["3 minutes", "0s", -1, 0, True, "90", [90]])
def test_a_wrong_time_is_told_the_forms_that_work(given):
    with pytest.raises(Invalid) as caught:
        validate(Timed, {"budget": given})
    ((loc, text),) = caught.value.problems
    assert loc == ("budget",)
    shown = json.dumps(given)
    assert text == f"got {shown}; needs a time above 0 such as 90, 90s, 3m or 1h"


def test_a_text_of_the_wrong_form_is_told_the_form():
    with pytest.raises(Invalid) as caught:
        validate(Timed, {"digest": "xyz"})
    assert caught.value.problems == [
        (("digest",), 'got "xyz"; needs text that matches ^[0-9a-f]{4}$')
    ]
