"""The ``table`` artifacts of a run, read from its folder: absent, strange or damaged ones too.

A table that is not a quantize stage's is shown as what it is: its plain values, and every list of
records in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compressor.core.results import RunResults
from compressor.core.types import TABLE
from compressor.report.quantized import Quantized

_MOST_BYTES = 32 << 20
_MOST_ROWS, _MOST_COLUMNS, _MOST_LETTERS = 200, 12, 120


@dataclass(frozen=True, slots=True)
class Plain:
    """A table of words.

    Attributes:
        title: The key under which it stood, or empty.
        columns: Their names; empty for plain values.
        rows: One word per column.
        left_out: Rows that are not here.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Section:
    """What is known of one table.

    Attributes:
        stage: Who made it.
        file: Relative to the run folder.
        quantized: If it is a quantize stage's.
        plain: If it is any other.
        problem: Why it cannot be shown, or empty.
    """

    stage: str
    file: str
    quantized: Quantized | None = None
    plain: tuple[Plain, ...] = ()
    problem: str = ""


def sections(results: RunResults, folder: Path | None) -> list[Section]:
    """Every table that the record names, in order of the stages; none without a folder."""
    if folder is None:
        return []
    return [
        _section(stage.name, output.file, folder)
        for stage in results.stages
        for output in stage.outputs.values()
        if output.kind == TABLE and output.file
    ]


def _section(stage: str, file: str, folder: Path) -> Section:
    try:
        path = (folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):  # the record may come from anywhere
            return Section(stage, file, problem="is not inside the run folder")
        if path.stat().st_size > _MOST_BYTES:
            return Section(stage, file, problem=f"is larger than {_MOST_BYTES >> 20} MiB")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Section(stage, file, problem="is not in the run folder")
    except (OSError, ValueError, RecursionError) as error:
        return Section(stage, file, problem=f"cannot be read ({type(error).__name__})")
    if not isinstance(value, Mapping) or not {"layers", "target"} <= set(value):
        return Section(stage, file, plain=_plain(value))
    try:
        return Section(stage, file, quantized=Quantized.model_validate(value))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Section(stage, file, problem=f"cannot be read ({where}: {first['msg']})")


def _plain(value: Any) -> tuple[Plain, ...]:
    if _records(value):
        return (_table("", value),)
    if not isinstance(value, Mapping):
        return (Plain("", (), ((_word(value),),)),)
    tables = [_table(str(key), rows) for key, rows in value.items() if _records(rows)]
    rest = [(str(k), _word(v)) for k, v in value.items() if not _records(v)]
    facts = [Plain("", (), tuple(rest[:_MOST_ROWS]), len(rest[_MOST_ROWS:]))] if rest else []
    return (*facts, *tables)


def _records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _table(title: str, records: Sequence[Mapping[str, Any]]) -> Plain:
    shown = records[:_MOST_ROWS]
    columns = list(dict.fromkeys(str(key) for record in shown for key in record))[:_MOST_COLUMNS]
    rows = tuple(tuple(_word(record.get(column)) for column in columns) for record in shown)
    return Plain(_word(title), tuple(map(_word, columns)), rows, len(records) - len(shown))


def _word(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"
