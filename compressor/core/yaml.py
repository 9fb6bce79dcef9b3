"""Strict YAML: what a person wrote is what a program gets, or an error with its line.

A subclass of PyYAML's safe loader that refuses duplicate keys, custom tags, alias bombs and files
over 1 MB, reads ``1e-3`` as a number and ``no`` as a string (YAML 1.2), and remembers the line of
every key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from compressor.core.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 50

Where = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file.

    Attributes:
        value: Plain dicts, lists and scalars.
        lines: Path of keys to 1-based line.
        source: Name for messages.
    """

    value: Any
    lines: dict[Where, int] = field(default_factory=dict)
    source: str = "<text>"

    def locate(self, where: Where) -> str:
        """``file:line: a.b.c`` of the nearest known ancestor of ``where``."""
        path = where
        while path and path not in self.lines:
            path = path[:-1]
        line = self.lines.get(path)
        dotted = ".".join(str(p) for p in where)
        head = f"{self.source}:{line}" if line else self.source
        return f"{head}: {dotted}" if dotted else head


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2 scalars."""


_Loader.yaml_implicit_resolvers = {}
_RESOLVERS = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
]
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))
# an empty scalar is null; the table above cannot say "no first character"
_Loader.yaml_implicit_resolvers.setdefault("", []).append(
    ("tag:yaml.org,2002:null", re.compile(r"^$"))
)


def load_file(path: Path) -> Document:
    """Read a YAML file. Raises ConfigError: missing, too large, not UTF-8, or malformed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: a folder; give the YAML file in it") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: {len(data):,} bytes; a pipeline file is at most {MAX_BYTES:,}")
    try:
        return load_text(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: not UTF-8 at byte {error.start}; give a pipeline file in YAML"
        ) from None


def load_text(text: str, source: str = "<text>") -> Document:
    """Parse YAML text. Raises ConfigError with file and line."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        builder = _Builder(loader, source)
        value = None if node is None else builder.build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        why = str(error.problem or error.context)
        hint = "; indent with spaces" if r"'\t'" in why else ""
        raise ConfigError(f"{source}{line}: not YAML: {why}{hint}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    finally:
        loader.dispose()
    return Document(value, builder.lines, source)


def scalar(text: str) -> Any:
    """The value of one YAML expression, as ``--set key=VALUE`` takes it."""
    return load_text(text, "--set").value


class _Builder:
    """Turns nodes into plain values, counting them: an alias is paid for at each use."""

    def __init__(self, loader: _Loader, source: str) -> None:
        self._loader = loader
        self._source = source
        self._nodes = 0
        self.lines: dict[Where, int] = {}

    def _refuse(self, node: yaml.Node, why: str) -> ConfigError:
        return ConfigError(f"{self._source}:{node.start_mark.line + 1}: {why}")

    def build(self, node: yaml.Node, where: Where) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(where) > MAX_DEPTH:
            raise self._refuse(node, "too many values (an alias bomb?); write them out")
        self.lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != "tag:yaml.org,2002:seq":
                raise self._refuse(node, f"tag {node.tag} is not allowed")
            return [self.build(child, (*where, i)) for i, child in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, where: Where) -> dict[str, Any]:
        if node.tag != "tag:yaml.org,2002:map":
            raise self._refuse(node, f"tag {node.tag} is not allowed")
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refuse(key_node, "a key must be a plain word")
            key = str(key_node.value)
            if key == "<<":
                raise self._refuse(key_node, "merge keys (<<) are not supported; write them out")
            if key in result:
                raise self._refuse(key_node, f"duplicate key {key!r}")
            self.lines[(*where, key)] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, (*where, key))
        return result

    def _scalar(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        text = str(node.value)
        if kind == "str":
            return text
        if kind == "int":
            return int(text.replace("_", ""))
        if kind == "float":
            return self._float(node, text)
        if kind == "bool":
            return text.lower() == "true"
        if kind == "null":
            return None
        raise self._refuse(node, f"tag {node.tag} is not allowed")

    def _float(self, node: yaml.Node, text: str) -> float:
        word = text.replace("_", "").lower()
        if "inf" in word or "nan" in word:
            raise self._refuse(node, f"{text}: not a finite number")
        return float(word)


def dump(value: Any) -> str:
    """Plain values as YAML in insertion order."""
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100))
