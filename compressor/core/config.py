"""The base class of every typed setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from compressor.core.errors import suggestion

T = TypeVar("T", bound="Config")
Loc = tuple[str | int, ...]


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
        raise Invalid(list(_explain(error, cls))) from None


def _explain(error: ValidationError, cls: type[BaseModel]) -> Iterator[tuple[Loc, str]]:
    """Pydantic's findings in the words of this tool."""
    seen: set[Loc] = set()
    for one in error.errors():
        loc = tuple(p for p in one["loc"] if not (isinstance(p, str) and _is_tag(p)))
        if loc in seen:  # further branches of a union
            continue
        seen.add(loc)
        kind = one["type"]
        if kind == "extra_forbidden":
            yield loc, f"unknown key{suggestion(str(loc[-1]), _fields(cls, loc[:-1]))}"
        elif kind == "missing":
            yield loc, "is required"
        elif kind == "value_error":
            yield loc, str(one["ctx"]["error"])
        else:
            need = one["msg"].removeprefix("Input should be ").removeprefix("a valid ")
            yield loc, f"got {_short(one['input'])}; needs {need}"


def _is_tag(part: str) -> bool:
    """Pydantic puts the branch of a union into the location: ``str``, ``tuple[int, ...]`` ..."""
    return part in {"str", "int", "float", "bool"} or "[" in part or part[:1].isupper()


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
