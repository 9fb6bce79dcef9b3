"""From a word in a config to the object it names.

A word is either a short name in one of our tables or ``package.module:attribute`` in the user's
code. Only configs are resolved; nothing read from an artifact ever is.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.core.errors import ConfigError, suggestion


def reference(word: str, table: Mapping[str, str], where: str) -> str:
    """The ``module:attribute`` behind ``word``, without importing it.

    Args:
        word: A key of ``table`` or a reference itself.
        table: Short name to reference.
        where: Config key for the error message, e.g. ``stages.teacher.with.model``.

    Raises:
        ConfigError: An unknown name, or a malformed reference.
    """
    if word in table:
        return table[word]
    module, colon, attribute = word.partition(":")
    if not colon:
        raise ConfigError(f"{where}: unknown name {word!r}{suggestion(word, table)}")
    parts = module.split(".")
    if not (all(p.isidentifier() for p in parts) and attribute.isidentifier()):
        raise ConfigError(f"{where}: {word!r} is not of the form package.module:attribute")
    return word


def load(ref: str, where: str) -> Any:
    """Import and return the object of a reference. The working folder is importable.

    Raises:
        ConfigError: The module or attribute does not exist.
        ImportError: The module exists and fails on an import of its own (a missing extra).
    """
    module_name, _, attribute = ref.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigError(
                f"{where}: no module {error.name!r} (looked in {here} and the installed packages)"
            ) from error
        raise
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(
            f"{where}: {module_name} has no {attribute!r}{suggestion(attribute, public)}"
        )
    return getattr(module, attribute)
