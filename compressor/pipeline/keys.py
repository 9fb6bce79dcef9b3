"""What a stage's result depends on, as readable parts and one digest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.core import source
from compressor.core.config import Config
from compressor.core.environment import (
    feature_class,
    machine_fingerprint,
    onnxruntime_packages,
    version,
)
from compressor.core.errors import ConfigError
from compressor.core.hashing import digest_json
from compressor.core.store import Store
from compressor.core.types import Artifact, Inputs, ModelSpec
from compressor.pipeline.graph import Node

# import name -> distribution, for libraries whose version is part of the result
_DISTRIBUTIONS = {
    "numpy": "numpy",
    "torch": "torch",
    "torchvision": "torchvision",
    "torch_pruning": "torch-pruning",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "google": "protobuf",
}
# Libraries that compute: threads, device and CPU class can change their numbers.
_COMPUTE = {"torch", "onnxruntime"}

Parts = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line fixes for all stages: device and CPU threads."""

    device: str
    threads: int


def parts(
    node: Node,
    inputs: Inputs,
    spec: ModelSpec | None,
    store: Store,
    s: Settings,
    memo: source.Memo | None = None,
) -> Parts:
    """Everything that can change the bytes of ``node``, readable; ``memo`` as ``source`` has it.

    Raises:
        ConfigError: An external file is missing.
    """
    references = [node.reference, *node.stage.code(node.config), *_factories(inputs, spec)]
    code = source.behind(references, memo)
    found: dict[str, Any] = {
        "stage": node.stage.name,
        "config": node.config.model_dump(mode="json"),
        "inputs": {name: [a.digest for a in _each(got)] for name, got in sorted(inputs.items())},
        "specs": [_plain(a.spec) for _, got in sorted(inputs.items()) for a in _each(got)],
        "spec": _plain(spec),
        "externals": externals(node, store),
        "seed": node.seed,
        "libraries": _versions(code.libraries),
        "code": code.modules,
    }
    if code.libraries & _COMPUTE:
        found |= {"device": s.device, "threads": s.threads, "cpu": feature_class()}
    if node.stage.measures_with(node.config):
        found["machine"] = machine_fingerprint()
    return found


def digest(found: Parts) -> str:
    """The store key of some parts."""
    return digest_json(found)


def externals(node: Node, store: Store) -> dict[str, str]:
    """Path to content digest of the files outside the store. Raises ConfigError."""
    where = f"stages.{node.stem}.with"
    found = {}
    try:
        for path in node.stage.externals(node.config):
            found[str(path)] = store.external(path)
    except ConfigError as error:
        raise ConfigError(*(f"{where}: {problem}" for problem in error.problems)) from error
    except IsADirectoryError as error:
        raise ConfigError(f"{where}: {error.filename} is a folder; give a file") from None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{where}: {error.filename}: no such file") from None
    except PermissionError as error:
        raise ConfigError(f"{where}: {error.filename}: {error.strerror}") from None
    return found


def differences(old: Parts, new: Parts) -> Iterator[str]:
    """Why two keys differ, most specific first: ``with.epochs 3 -> 5``, a file, an input."""
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if name == "config":
            yield from _config_differences(before, after, "with")
        elif name in _NAMED:
            yield _NAMED[name] + ", ".join(_changed(name, before or {}, after or {}))
        elif name in {"spec", "specs"}:
            yield "network changed"
        else:
            yield f"{name} {before} -> {after}"


_NAMED = {
    "code": "code changed: ",
    "inputs": "input changed: ",
    "externals": "file changed: ",
    "libraries": "library changed: ",
}


def _changed(part: str, old: Parts, new: Parts) -> Iterator[str]:
    """The names below one part whose values differ, readable."""
    for name in {**old, **new}:
        if old.get(name) == new.get(name):
            continue
        if part == "code":
            yield name.replace(".", "/") + ".py"
        elif part == "libraries":
            yield f"{name} {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        else:
            yield name


def _config_differences(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                yield from _config_differences(old.get(key), new.get(key), f"{where}.{key}")
    else:
        yield f"{where} {old} -> {new}"


def resolved(config: Config) -> dict[str, Any]:
    """A config as plain values with every default spelled out."""
    return config.model_dump(mode="json")


def _each(got: Artifact | tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    return got if isinstance(got, tuple) else (got,)


def _plain(spec: ModelSpec | None) -> Any:
    """As it will be read back: JSON has no tuples, and stored parts are compared with new ones."""
    return None if spec is None else json.loads(json.dumps(dataclasses.asdict(spec)))


def _factories(inputs: Inputs, spec: ModelSpec | None) -> Iterator[str]:
    specs = [a.spec for got in inputs.values() for a in _each(got)]
    yield from dict.fromkeys(s.factory for s in [*specs, spec] if s is not None)


def _versions(libraries: frozenset[str]) -> dict[str, str]:
    found = {}
    for name in sorted(libraries):
        if name == "onnxruntime":
            found[name] = ", ".join(f"{p} {version(p)}" for p in onnxruntime_packages())
        elif name in _DISTRIBUTIONS:
            found[name] = version(_DISTRIBUTIONS[name])
        elif name not in _FRAME and name in _known_distributions():
            found[name] = ", ".join(version(d) for d in _known_distributions()[name])
    return found


# Libraries of the frame: they parse and print.
_FRAME = {"pydantic", "yaml", "rich", "click", "jinja2", "matplotlib", "zstandard", "compressor"}


def _known_distributions() -> Mapping[str, list[str]]:
    """Import name to distributions; slow, so only asked for libraries of users' code."""
    global _packages
    if _packages is None:
        from importlib.metadata import packages_distributions

        _packages = packages_distributions()
    return _packages


_packages: Mapping[str, list[str]] | None = None
