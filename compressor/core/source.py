"""Digest of the code behind a stage: what its modules import, transitively, read from source.

Nothing is imported or executed. Comments and docstrings do not count, so that explaining a line
does not retrain a teacher.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from compressor.core import syntax
from compressor.core.hashing import digest_bytes

PACKAGE = "compressor"
# Frame and presentation: they move bytes about but do not compute them.
_OUTSIDE = ("core", "report", "api", "cli", "pipeline", "gates", "testing")


@dataclass(frozen=True, slots=True)
class Code:
    """Source behind some functions.

    Attributes:
        modules: Module name to digest of its syntax tree.
        libraries: Top-level names of everything else that those modules import.
    """

    modules: dict[str, str]
    libraries: frozenset[str]


# Digest of a file's bytes and its module's name -> [digest of its tree, names that it imports].
# Reading a hundred syntax trees takes a second, hashing their files 5 ms.
Memo = MutableMapping[str, list[Any]]


def behind(references: Iterable[str], memo: Memo | None = None) -> Code:
    """Collect the code behind ``module:attribute`` references.

    Ours is followed within ``compressor`` less the frame; a user's within the top-level package
    of the function, or within the folder of a single-file module.

    Args:
        references: What a stage runs: its own function and those that its config selects.
        memo: What earlier calls learnt; grows. A pure function of content, so it may be kept.
    """
    memo = {} if memo is None else memo
    modules: dict[str, str] = {}
    libraries: set[str] = set()
    queue = [ref.partition(":")[0] for ref in references]
    seen: set[str] = set()
    roots = {name.partition(".")[0] for name in queue}
    folders = {f.parent for r in roots if (f := _single_file(r)) is not None}
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        seen.add(name)
        file = _file_of(name) if _inside(name, roots, folders) else None
        if file is None:
            if name.partition(".")[0] not in roots:
                libraries.add(name.partition(".")[0])
            continue
        parent = name.rpartition(".")[0]
        if parent:
            queue.append(parent)
        if _framework(name):
            continue
        modules[name], imports = _parsed(file, name, memo)
        queue.extend(imports)
    return Code(dict(sorted(modules.items())), frozenset(libraries - set(sys.stdlib_module_names)))


def _framework(name: str) -> bool:
    parts = name.split(".")
    return parts[0] == PACKAGE and (len(parts) == 1 or parts[1] in _OUTSIDE)


def _inside(name: str, roots: set[str], folders: set[Path]) -> bool:
    top = name.partition(".")[0]
    if top in roots or top == PACKAGE:
        return True
    return any((folder / f"{top}.py").is_file() or (folder / top).is_dir() for folder in folders)


def _single_file(top: str) -> Path | None:
    """The file of a top-level module that is not a package."""
    if top == PACKAGE:
        return None
    file = _file_of(top)
    return file if file is not None and file.name != "__init__.py" else None


@lru_cache(maxsize=4096)
def _file_of(name: str) -> Path | None:
    """Source file of a module, found without importing any parent."""
    top, *rest = name.split(".")
    if top == PACKAGE:
        base = Path(__file__).parents[1]
    else:
        spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd()), *sys.path])
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return None
        origin = Path(spec.origin)
        if origin.name != "__init__.py":
            return origin if not rest else None
        base = origin.parent
    for part in rest:
        base = base / part
    if (base / "__init__.py").is_file():
        return base / "__init__.py"
    file = base.with_suffix(".py")
    return file if file.is_file() else None


def _parsed(file: Path, name: str, memo: Memo) -> tuple[str, list[str]]:
    """Digest of a module's tree and the absolute names that it imports."""
    data = _read(file)
    key = f"{digest_bytes(data)}:{name}"
    if key not in memo:
        text, imports = syntax.outline(data, str(file), name, file.name == "__init__.py")
        memo[key] = [digest_bytes(text.encode()), imports]
    digest, imports = memo[key]
    return str(digest), list(imports)


@lru_cache(maxsize=4096)
def _read(file: Path) -> bytes:
    """As this process first saw the file: an edit while it runs does not change loaded code."""
    return file.read_bytes()
