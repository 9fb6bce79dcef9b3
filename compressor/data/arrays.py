"""A dataset in one ``.npz`` file: the simplest way to bring data of your own.

Keys: one array per input, ``[n, ...]`` (default one input, ``x``), and ``y`` ``[n]``. With
``x_test`` and ``y_test`` (and ``x_val``, ``y_val``) the file brings its own splits; otherwise they
are cut. ``classes`` may hold the names; other keys are not used. Write it with
``np.savez_compressed("plankton.npz", x=images, y=labels)``.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from compressor.core.errors import ConfigError, suggestion
from compressor.data.dataset import Array, RawDataset, Split

_SUFFIXES = {"val": "_val", "test": "_test"}


def arrays(
    root: Path,
    task: Literal["classification", "regression"] = "classification",
    inputs: Annotated[tuple[str, ...], Field(min_length=1)] = ("x",),
    labels: str = "y",
    channels_last: bool = False,
    max_gib: Annotated[float, Field(gt=0)] = 4.0,
) -> RawDataset:
    """Read ``root``, the ``.npz`` file.

    Args:
        root: The file itself.
        task: ``classification`` (whole-number labels) or ``regression`` (any numbers).
        inputs: Keys of the inputs, in the order in which the model takes them.
        labels: Key of the labels.
        channels_last: Images are ``[n, height, width, channels]`` and are turned round.
        max_gib: Refuse a file whose arrays are larger than this when unpacked.

    Images without a channel axis (uint8 ``[n, h, w]``) get one. A file never makes this function
    unpickle anything: object arrays are refused.

    Raises:
        ConfigError: Missing, malformed, too large, or a key is not there.
    """
    file = read_npz(root, int(max_gib * 2**30), "option max_gib")
    names = [f"{key}{end}" for end in ("", *_SUFFIXES.values()) for key in (*inputs, labels)]
    needed = names[: len(inputs) + 1]
    missing = [key for key in needed if key not in file]
    if missing:
        raise ConfigError(
            f"{root}: no key {missing[0]!r}{suggestion(missing[0], file)}; "
            "say which keys to use with options inputs and labels"
        )
    whole = _split(file, inputs, labels, "", channels_last)
    splits = {"all": whole}
    own = [k for k, end in _SUFFIXES.items() if labels + end in file]
    if own:
        splits = {"train": whole}
        for name in own:
            end = _SUFFIXES[name]
            lost = [key + end for key in inputs if key + end not in file]
            if lost:
                raise ConfigError(f"{root}: {labels + end} is there and {lost[0]} is not")
            splits[name] = _split(file, inputs, labels, end, channels_last)
    classes = _classes(file, splits, labels, root) if task == "classification" else ()
    return RawDataset(Path(root).stem, task, classes, {}, splits, source=".npz")


def _split(
    file: Mapping[str, Array], inputs: Sequence[str], labels: str, end: str, channels_last: bool
) -> Split:
    return Split({k: _image(file[k + end], channels_last) for k in inputs}, file[labels + end])


def _image(array: Array, channels_last: bool) -> Array:
    if channels_last and array.ndim == 4:
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    return array[:, None] if array.dtype == np.uint8 and array.ndim == 3 else array


def _classes(
    file: Mapping[str, Array], splits: Mapping[str, Split], labels: str, root: Path
) -> tuple[str, ...]:
    """The names under ``classes``, or the numbers up to the largest label of any split."""
    if "classes" in file:
        names = file["classes"]
        if names.dtype.kind != "U" or names.ndim != 1:
            raise ConfigError(
                f"{root}: classes is {names.dtype} {list(names.shape)}; give a list of strings"
            )
        return tuple(str(n) for n in names)
    tops = [
        s.labels.max() for s in splits.values() if s.labels.size and s.labels.dtype.kind in "iu"
    ]
    top = max(1, *map(int, tops))
    most = sum(len(s.labels) for s in splits.values())
    if top >= most:
        raise ConfigError(
            f"{root}: {labels} holds class number {top} and only {most} samples; number the "
            "classes from 0 on without gaps, or set task: regression"
        )
    return tuple(str(k) for k in range(top + 1))


def read_npz(path: Path, max_bytes: int, limit: str = "the limit") -> dict[str, Array]:
    """Read arrays of an ``.npz`` file that may come from anywhere.

    Sizes are compared with what zip and array headers declare before anything is unpacked: 195 KB
    of zeros become 200 MB otherwise.

    Args:
        path: The file.
        max_bytes: Limit for all arrays together.
        limit: What to call it in a message.

    Raises:
        ConfigError: Not an ``.npz`` file, object arrays, duplicate keys, or over the limit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _members(archive, path, max_bytes, limit)
    except (FileNotFoundError, IsADirectoryError) as error:
        there = "a folder; give the .npz file itself" if path.is_dir() else "no such file"
        raise ConfigError(f"{path}: {there}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ConfigError(
            f"{path}: not a readable .npz file ({error}); numpy.savez writes one"
        ) from error


def _members(archive: zipfile.ZipFile, path: Path, max_bytes: int, limit: str) -> dict[str, Array]:
    infos = archive.infolist()
    keys = [info.filename.removesuffix(".npy") for info in infos]
    twice = sorted({k for k in keys if keys.count(k) > 1})
    if twice:
        raise ConfigError(f"{path}: key {twice[0]!r} occurs twice")
    total = sum(info.file_size for info in infos)
    if total > max_bytes:
        raise ConfigError(
            f"{path}: {path.stat().st_size} bytes unpack to {total}; {limit} is {max_bytes}"
        )
    return {k: _array(archive, i, f"{path}, key {k}") for k, i in zip(keys, infos, strict=True)}


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Array:
    """Unpack one member whose header agrees with its size."""
    try:
        with archive.open(info) as file:
            version = np.lib.format.read_magic(file)
            read = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read(file)
            size = math.prod(shape) * dtype.itemsize
            if dtype.hasobject:
                raise ConfigError(f"{where}: holds Python objects; save numbers or strings")
            if size + file.tell() != info.file_size:
                raise ConfigError(
                    f"{where}: header says {size} bytes, the file has {info.file_size}"
                )
        with archive.open(info) as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
    except (ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{where}: not a readable array ({error})") from error
