"""The base class of every typed setting."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from compressor.core.errors import suggestion

T = TypeVar("T", bound="Config")
Loc = tuple[str | int, ...]
UNKNOWN = "unknown key"  # how the message about one begins


class Config(BaseModel):
    """Frozen and strict about unknown keys.

    The pipeline loader validates in pydantic's strict JSON mode, so that ``"4"`` is not a number
    and ``yes`` is not an integer there; from Python, paths may be strings and tuples lists.
    Fields that choose code stay strings; see ``core.resolve``.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )


_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(value: Any) -> float:
    """``90``, ``"90s"``, ``"3m"`` or ``"1h"`` in seconds.

    Raises:
        ValueError: Anything else, and nothing above 0.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value) if isinstance(value, str) else None
    number = float(found[1]) * _UNITS[found[2]] if found else value
    if isinstance(number, bool | str) or not isinstance(number, int | float) or not number > 0:
        raise ValueError(f"got {_short(value)}; needs a time above 0 such as 90, 90s, 3m or 1h")
    return float(number)


class Invalid(Exception):
    """Options that do not fit their class: pairs of location and message, all of them."""

    def __init__(self, problems: list[tuple[Loc, str]]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, loc))}: {text}" for loc, text in problems))
        self.problems = problems


def validate(cls: type[T], options: Mapping[str, Any]) -> T:
    """Build ``cls`` from plain values without coercion (strict JSON mode).

    Raises:
        Invalid: With every problem, each with its location below ``options``.
    """
    try:
        return cls.model_validate_json(json.dumps(dict(options)), strict=True)
    except ValidationError as error:
        raise Invalid(list(_explain(error, cls, options))) from None


def first_problem(error: ValidationError) -> str:
    """``where: what`` of the first finding, for a file that no person writes."""
    row = error.errors()[0]
    where = ".".join(map(str, row["loc"]))
    if row["type"] == "missing":
        return f"{where} is missing"
    if row["type"] == "json_invalid":
        return "not JSON"
    text = _need(row["type"], row.get("ctx", {}), row["msg"])
    return f"{where}: got {_short(row['input'])}; needs {text}"


def _explain(
    error: ValidationError, cls: type[BaseModel], options: Mapping[str, Any]
) -> Iterator[tuple[Loc, str]]:
    """Pydantic's findings in the words of this tool: one per place, branches of a union joined."""
    said: dict[Loc, str] = {}
    needs: dict[Loc, list[str]] = {}
    got: dict[Loc, Any] = {}
    for one in error.errors():
        loc, kind = _place(one["loc"], one["type"], options), one["type"]
        if kind == "extra_forbidden":
            said[loc] = f"{UNKNOWN}{suggestion(str(loc[-1]), _fields(cls, loc[:-1]))}"
        elif kind == "missing":
            said[loc] = "is required"
        elif kind == "value_error":
            said[loc] = str(one["ctx"]["error"])
        else:
            got[loc] = one["input"]
            needs.setdefault(loc, []).append(_need(kind, one.get("ctx", {}), one["msg"]))
    for loc, words in needs.items():
        # Of a union, the branch that came further knows better what is wrong.
        deeper = any(len(other) > len(loc) and other[: len(loc)] == loc for other in needs)
        if not deeper:
            wanted = " or ".join(dict.fromkeys(words))
            said.setdefault(loc, f"got {_short(got[loc])}; needs {wanted}")
    yield from said.items()


def _place(loc: Loc, kind: str, options: Any) -> Loc:
    """``loc`` without what Pydantic adds to it: the branches of a union are not the user's keys."""
    found: list[str | int] = []
    node = options
    for index, part in enumerate(loc):
        if isinstance(node, Mapping) and part in node:
            node = node[str(part)]
        elif isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
            node = node[part]
        elif not (kind == "missing" and index == len(loc) - 1):
            continue
        found.append(part)
    return tuple(found)


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
    "too_short": ("a list of at least", "min_length"),
    "too_long": ("a list of at most", "max_length"),
}


def _need(kind: str, facts: Mapping[str, Any], message: str) -> str:
    """What would have been right, for one kind of finding."""
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"{words} {facts[key]:g}"
    if kind == "literal_error":
        return str(facts["expected"])
    if kind == "none_required":
        return "nothing (null)"
    if kind == "string_pattern_mismatch":
        return f"text that matches {facts['pattern']}"
    word = _TYPES.get(kind.rpartition("_")[0]) or _TYPES.get(kind.partition("_")[0])
    return word or message.removeprefix("Input should be ").removeprefix("a valid ")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _fields(cls: type[BaseModel], loc: Loc) -> list[str]:
    """Names of the fields of the model found by walking ``loc`` down from ``cls``."""
    for part in loc:
        info = cls.model_fields.get(str(part))
        if info is None:
            return []
        kinds = [info.annotation, *get_args(info.annotation)]
        below = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not below:
            return []
        cls = below[0]
    return [f.alias or name for name, f in cls.model_fields.items()]
