"""From a word in a config to a dataset: names, options, the files that are read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import create_model

from compressor.core.config import Config, Invalid, validate
from compressor.core.errors import ConfigError, suggestion
from compressor.core.resolve import load, reference
from compressor.data.dataset import RawDataset

DATASETS: dict[str, str] = {
    "digits": "compressor.data.digits:digits",
    "fashion_mnist": "compressor.data.idx:fashion_mnist",
    "cifar10": "compressor.data.vision:cifar10",
    "image_folder": "compressor.data.vision:image_folder",
    "arrays": "compressor.data.arrays:arrays",
}
_FILES = {
    "fashion_mnist": "compressor.data.idx:fashion_mnist_files",
    "cifar10": "compressor.data.vision:cifar10_files",
    "image_folder": "compressor.data.vision:image_folder_files",
}
_STARRED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_OWN_KEYS = ("root", "download")  # keys of the stage, not of the dataset's options


def resolve_options(
    dataset: str, root: Path | None, download: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Check what a config says about a dataset, without reading any data.

    Args:
        dataset: A key of ``DATASETS`` or ``package.module:function``.
        root: Where the data are, if the config says so.
        download: Whether the dataset may be fetched.
        options: The dataset's own arguments.

    Returns:
        The options with every default filled in. A user's function is not imported: its options
        are returned as they are and meet it when the stage runs.

    Raises:
        ConfigError: Everything that is wrong, all at once.
    """
    ref = reference(dataset, DATASETS, "dataset")
    if dataset not in DATASETS:
        return dict(options)
    parameters = _parameters(load(ref, "dataset"))
    problems = _misplaced(dataset, parameters, root, download, options)
    fields = {k: p for k, p in parameters.items() if k not in _OWN_KEYS}
    unknown = [k for k in options if k not in fields and k not in _OWN_KEYS]
    problems += [f"options.{k}: {dataset} has none{suggestion(k, fields)}" for k in unknown]
    shape: dict[str, Any] = {k: (p.annotation, p.default) for k, p in fields.items()}
    given = {k: v for k, v in options.items() if k in fields}
    try:
        model = create_model("Options", __base__=Config, **shape)
        checked = validate(model, given)
    except Invalid as invalid:
        problems += [f"options.{'.'.join(map(str, loc))}: {why}" for loc, why in invalid.problems]
    if problems:
        raise ConfigError(*problems)
    filled: dict[str, Any] = checked.model_dump(mode="json")
    return filled


def files(dataset: str, root: Path | None, download: bool) -> Sequence[Path]:
    """The files that the dataset will read, for the stage's key.

    With ``download`` there are none: ours are pinned by checksums, and a user's function has to
    do the same. Without, a user's function is taken to read everything below ``root``.

    Raises:
        ConfigError: They are not there.
    """
    if download:
        return ()
    if dataset in _FILES:
        lister = load(_FILES[dataset], "dataset")
        found: Sequence[Path] = lister(None if root is None else root.expanduser())
        return found
    if root is None:
        return ()
    root = root.expanduser()
    if not root.exists():
        raise ConfigError(f"dataset {dataset}: root: {root} is not there")
    return [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())


def read(dataset: str, root: Path | None, download: bool, options: Mapping[str, Any]) -> RawDataset:
    """Call the dataset function.

    Raises:
        ConfigError: It does not exist, does not take these arguments, does not return a
            :class:`RawDataset`, or the data are not there.
    """
    function = load(reference(dataset, DATASETS, "dataset"), "dataset")
    parameters = _parameters(function)
    arguments = dict(options)
    if root is not None:
        arguments["root"] = root.expanduser()
    if download:
        arguments["download"] = True
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        unknown = [k for k in arguments if k not in parameters]
        if unknown:
            raise ConfigError(
                f"dataset {dataset}: it takes no {unknown[0]!r}{suggestion(unknown[0], parameters)}"
            )
    missing = [
        k
        for k, p in parameters.items()
        if p.default is p.empty and k not in arguments and p.kind not in _STARRED
    ]
    if missing:
        raise ConfigError(f"dataset {dataset}: {', '.join(missing)} must be given")
    try:
        raw = function(**arguments)
    except PermissionError as error:
        raise ConfigError(f"dataset {dataset}: {error.filename}: {error.strerror}") from error
    if not isinstance(raw, RawDataset):
        raise ConfigError(
            f"dataset {dataset}: returned {type(raw).__name__}; return compressor.data.RawDataset"
        )
    return raw


def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function, eval_str=True).parameters


def _misplaced(
    dataset: str,
    parameters: Mapping[str, inspect.Parameter],
    root: Path | None,
    download: bool,
    options: Mapping[str, Any],
) -> list[str]:
    """Problems with ``root`` and ``download``."""
    problems = [f"options.{k}: write it beside dataset" for k in _OWN_KEYS if k in options]
    if root is not None and "root" not in parameters:
        problems.append(f"root: dataset {dataset} reads no folder; leave it out")
    if download and "download" not in parameters:
        problems.append(f"download: dataset {dataset} cannot be downloaded; leave it out")
    needed = "root" in parameters and parameters["root"].default is inspect.Parameter.empty
    if root is None and (needed or (download and "download" in parameters)):
        problems.append(f"root: dataset {dataset} needs to know where the data are")
    return problems
