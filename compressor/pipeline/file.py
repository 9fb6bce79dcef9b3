"""From a pipeline file to typed entries; finds every problem of the file at once."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.core import resolve, yaml
from compressor.core.config import Config, Invalid, validate
from compressor.core.errors import ConfigError, suggestion
from compressor.core.types import Stage
from compressor.stages import STAGES

_TOP = ("name", "seed", "stages", "gates")
_ENTRY = ("uses", "in", "with", "seed", "matrix")
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STAGE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
MAX_MEMBERS = 256

Combination = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """One combination of a stage's own matrix: its typed config and seed."""

    combination: Combination
    config: Config
    seed: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One stage as the file has it, checked.

    Attributes:
        name: Key below ``stages``.
        reference: ``module:attribute`` of the stage value.
        stage: The stage value.
        wires: Input name to the names written in the file, in order.
        members: One per combination of ``matrix``; exactly one without it.
    """

    name: str
    reference: str
    stage: Stage[Any]
    wires: Mapping[str, tuple[str, ...]]
    members: tuple[Member, ...]


class Problems:
    """Collects what is wrong with a file; raises once."""

    def __init__(self, document: yaml.Document) -> None:
        self._document = document
        self.found: list[str] = []

    def add(self, where: Iterable[str | int], message: str) -> None:
        """Note a problem at a path of keys."""
        self.found.append(f"{self._document.locate(tuple(where))}: {message}")

    def raise_if_any(self) -> None:
        """Raise ConfigError with all problems."""
        if self.found:
            raise ConfigError(*self.found)


def read(path: Path, overrides: Sequence[str] = ()) -> yaml.Document:
    """Parse a pipeline file and apply ``--set a.b=value`` overrides.

    Raises ConfigError.
    """
    document = yaml.load_file(path)
    if not isinstance(document.value, dict):
        got = {list: "a list", type(None): "nothing"}.get(type(document.value), "plain text")
        raise ConfigError(
            f"{path}: got {got}; a pipeline is a mapping with the keys {', '.join(_TOP)} "
            "(`compressor init DIR` writes one)"
        )
    value = copy.deepcopy(document.value)
    for text in overrides:
        _override_(value, text)
    return yaml.Document(value, document.lines, document.source)


def _override_(tree: dict[str, Any], text: str) -> None:
    dotted, equals, raw = text.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"--set {text}: write it as key.path=value")
    node: Any = tree
    *parents, last = dotted.split(".")
    for depth, part in enumerate(parents):
        if not isinstance(node, dict):
            raise ConfigError(f"--set {text}: {'.'.join(parents[:depth])} holds no keys")
        # options that the file leaves at their defaults may be opened; stages may not
        opens = part in {"with", "matrix"} or "with" in parents[:depth]
        if part not in node and not opens:
            raise ConfigError(f"--set {text}: no {part!r} there{_full(tree, dotted, depth, node)}")
        node = node.setdefault(part, {})
    if not isinstance(node, dict):
        raise ConfigError(f"--set {text}: {'.'.join(parents)} is not a mapping")
    try:
        node[last] = yaml.scalar(raw)
    except ConfigError as error:
        why = str(error).partition("not YAML: ")[2] or str(error)
        raise ConfigError(f"--set {text}: the value is not YAML ({why}); quote it") from error


def _full(tree: Mapping[str, Any], dotted: str, depth: int, node: Mapping[str, Any]) -> str:
    """What was probably meant: a stage's option written short, else the nearest word."""
    stage, _, option = dotted.partition(".")
    stages = tree.get("stages")
    if depth == 0 and isinstance(stages, dict) and stage in stages:
        return f"; did you mean 'stages.{stage}.with.{option.removeprefix('with.')}'?"
    return suggestion(dotted.split(".")[depth], node)


def check_top(document: yaml.Document, problems: Problems) -> tuple[str, int]:
    """Name and seed; notes unknown keys and a missing or wrong name."""
    value = document.value
    for key in value:
        if key not in _TOP:
            problems.add((key,), f"unknown key{suggestion(key, _TOP)}")
    name = value.get("name")
    if not isinstance(name, str) or not _RUN_NAME.fullmatch(name):
        problems.add(("name",), f"got {name!r}; needs letters, digits, '.', '_' or '-', at most 64")
        name = "?"
    seed = _seed(value, ("seed",), problems, 0)
    if not isinstance(value.get("stages"), dict) or not value["stages"]:
        problems.add(("stages",), "needs a mapping with at least one stage")
    return name, seed


def _seed(
    value: Mapping[str, Any], where: tuple[str, ...], problems: Problems, default: int
) -> int:
    seed = value.get("seed", default)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        problems.add(where, f"got {seed!r}; needs a whole number from 0 to 2**32 - 1")
        return default
    return seed


def entries(document: yaml.Document, seed: int, problems: Problems) -> Iterator[Entry]:
    """The stages of the file in order; what is wrong with them goes to ``problems``."""
    stages = document.value.get("stages")
    for name, raw in stages.items() if isinstance(stages, dict) else ():
        where = ("stages", name)
        if not _STAGE_NAME.fullmatch(name):
            problems.add(where, "a stage's name is letters, digits, '_' and '-', no digit first")
        elif not isinstance(raw, dict):
            problems.add(where, f"got {raw!r}; needs a mapping with `uses`")
        else:
            entry = _entry(name, raw, seed, problems)
            if entry is not None:
                yield entry


def _entry(name: str, raw: dict[str, Any], seed: int, problems: Problems) -> Entry | None:
    where = ("stages", name)
    options = raw.get("with") or {}
    if not isinstance(options, dict):
        problems.add((*where, "with"), f"got {options!r}; needs a mapping")
        return None
    found = _stage(raw.get("uses"), where, problems)
    _check_keys(raw, found[1] if found else None, where, problems)
    if found is None:
        return None
    reference, stage = found
    own_seed = _seed(raw, (*where, "seed"), problems, seed)
    wires = _wires(raw.get("in") or {}, stage, where, problems)
    members = tuple(_members(raw, options, stage, own_seed, where, problems))
    return Entry(name, reference, stage, wires, members) if members else None


def _check_keys(
    raw: Mapping[str, Any], stage: Stage[Any] | None, where: tuple[str, ...], problems: Problems
) -> None:
    """Unknown keys of a stage; options and inputs that stand one level too high are told so."""
    for key in raw:
        if key in _ENTRY:
            continue
        hint = suggestion(key, _ENTRY)
        if stage is not None and key in stage.config.model_fields:
            hint = f"; an option of {stage.name} stands below `with`"
        elif stage is not None and key in stage.needs:
            hint = f"; an input of {stage.name} stands below `in`"
        problems.add((*where, key), f"unknown key{hint}")


def _stage(uses: Any, where: tuple[str, ...], problems: Problems) -> tuple[str, Stage[Any]] | None:
    if not isinstance(uses, str):
        problems.add((*where, "uses"), f"is required; known: {', '.join(STAGES)}")
        return None
    try:
        reference = resolve.reference(uses, STAGES, "uses")
        stage = resolve.load(reference, "uses")
    except (ConfigError, ImportError) as error:
        problems.add(where, str(error))
        return None
    if not isinstance(stage, Stage):
        problems.add((*where, "uses"), f"{uses} is a {type(stage).__name__}, not a Stage")
        return None
    return reference, stage


def _wires(
    raw: Any, stage: Stage[Any], where: tuple[str, ...], problems: Problems
) -> dict[str, tuple[str, ...]]:
    wires: dict[str, tuple[str, ...]] = {}
    if not isinstance(raw, dict):
        problems.add((*where, "in"), f"got {raw!r}; needs a mapping of input to stage")
        return wires
    for name, value in raw.items():
        at = (*where, "in", name)
        need = stage.needs.get(name)
        words = value if isinstance(value, list) else [value]
        if need is None:
            problems.add(at, f"{stage.name} has no such input{suggestion(name, stage.needs)}")
        elif not all(isinstance(w, str) for w in words) or not words:
            problems.add(at, f"got {value!r}; needs the name of a stage")
        elif len(words) > 1 and not need.many:
            problems.add(at, f"got {len(words)} stages; {name} takes one")
        else:
            wires[name] = tuple(words)
    return wires


def _members(
    raw: Mapping[str, Any],
    options: dict[str, Any],
    stage: Stage[Any],
    seed: int,
    where: tuple[str, ...],
    problems: Problems,
) -> Iterator[Member]:
    for combination in _combinations(raw.get("matrix"), where, problems):
        changed = copy.deepcopy(options)
        own_seed = seed
        for key, value in combination.items():
            if key == "seed":
                own_seed = _seed({"seed": value}, (*where, "matrix", "seed"), problems, seed)
            else:
                _put_(changed, key, value)
        try:
            config = validate(stage.config, changed)
        except Invalid as invalid:
            for loc, message in invalid.problems:
                problems.add((*where, "with", *loc), message)
            return
        yield Member(combination, config, own_seed)


def _put_(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[last] = value


def _combinations(matrix: Any, where: tuple[str, ...], problems: Problems) -> Sequence[Combination]:
    if matrix is None:
        return ({},)
    at = (*where, "matrix")
    if not isinstance(matrix, dict) or not matrix:
        problems.add(at, f"got {matrix!r}; needs a mapping of `seed` or an option to a list")
        return ()
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            problems.add((*at, key), f"got {values!r}; needs a list of at least one value")
            return ()
        if any(isinstance(v, dict | list) for v in values):
            problems.add((*at, key), "needs plain values (they become part of the stage's name)")
            return ()
    keys = sorted(matrix)
    rows = list(itertools.islice(itertools.product(*(matrix[k] for k in keys)), MAX_MEMBERS + 1))
    if len(rows) > MAX_MEMBERS:
        problems.add(at, f"more than {MAX_MEMBERS} combinations; split the pipeline")
        return ()
    return [dict(zip(keys, row, strict=True)) for row in rows]


def member_name(name: str, combination: Combination) -> str:
    """``student[loss=kd,seed=0]``, keys sorted."""
    if not combination:
        return name
    inside = ",".join(f"{k}={combination[k]}" for k in sorted(combination))
    return f"{name}[{inside}]"
