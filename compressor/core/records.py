"""Typed JSON records with a schema version: whole and understood, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from compressor.core.config import first_problem
from compressor.core.errors import IntegrityError

T = TypeVar("T")


def read(adapter: TypeAdapter[T], file: Path, what: str, schema: int, hint: str = "") -> T:
    """Read a record that has a field ``schema``.

    Args:
        adapter: Of the record's class.
        file: The JSON file.
        what: Names the record in messages, e.g. ``timings``.
        schema: The only version that is understood; another is refused instead of guessed at.
        hint: What to give instead, where there is no such file.

    Raises:
        IntegrityError: Missing, malformed, or of another version.
    """
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise IntegrityError(f"{file}: no {what} here{hint and '; '}{hint}") from error
    found = _schema(data)
    if found not in (None, schema):
        raise IntegrityError(f"{file}: schema {found}, this version reads {schema}")
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise IntegrityError(f"{file}: not a {what} file ({first_problem(error)})") from error


def _schema(data: bytes) -> object:
    """The version that a file claims; None if it has none, or is no JSON mapping."""
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value.get("schema") if isinstance(value, dict) else None
