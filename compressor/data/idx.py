"""IDX files, the format of MNIST and Fashion-MNIST, plain or gzipped.

Format: http://yann.lecun.com/exdb/mnist/ - two zero bytes, a type code, the number of axes, the
axes as big-endian 32-bit numbers, then the values. Only type 0x08 (unsigned byte) occurs here.
"""

from __future__ import annotations

import gzip
import importlib
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from compressor.core.environment import require
from compressor.core.errors import ConfigError, SystemFault
from compressor.data.dataset import RawDataset, Split

ENVIRONMENT = "COMPRESSOR_FASHION_MNIST"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_UNSIGNED_BYTE = 0x08
_MOST_BYTES = 1 << 32


def fashion_mnist(root: Path | None = None, download: bool = False) -> RawDataset:
    """Zalando's Fashion-MNIST: ten classes, uint8 ``[1, 28, 28]``, 60,000 train and 10,000 test.

    Args:
        root: Folder of the four IDX files; None looks in ``COMPRESSOR_FASHION_MNIST``, then where
            Debian's package ``dataset-fashion-mnist`` puts them.
        download: Fetch what is missing in ``root`` with torchvision, compare checksums, and read
            the gzipped files that were compared, whatever else lies there.

    Raises:
        ConfigError: Files are missing or malformed.
        MissingError: ``download`` without torchvision.
        SystemFault: The download failed.
    """
    files = _downloaded(root) if download else fashion_mnist_files(root)
    splits = {}
    for k, name in enumerate(_FILES):
        images, labels = read_idx(files[2 * k], axes=3), read_idx(files[2 * k + 1], axes=1)
        splits[name] = Split({"image": images[:, None]}, labels.astype(np.int64))
    return RawDataset("fashion_mnist", "classification", CLASSES, {}, splits, source="IDX files")


def fashion_mnist_files(root: Path | None = None) -> Sequence[Path]:
    """The four files that would be read, in fixed order. Raises ConfigError if one is missing."""
    variable = os.environ.get(ENVIRONMENT)
    base = root or Path(variable or DEBIAN)
    said = "root" if root else ENVIRONMENT if variable else "default"
    folders = (base, base / "FashionMNIST" / "raw")
    names = [name for pair in _FILES.values() for name in pair]
    found: list[Path] = []
    for name in names:
        candidates = [f / (name + end) for f in folders for end in ("", ".gz")]
        file = next((c for c in candidates if c.is_file()), None)
        if file is None:
            raise ConfigError(
                f"dataset fashion_mnist: no {name} or {name}.gz in {folders[0]} or {folders[1]} "
                f"({said}); set root or {ENVIRONMENT} to the folder that holds the four IDX "
                "files, or `apt install dataset-fashion-mnist`, or set root and download: true"
            )
        found.append(file)
    return found


def _downloaded(root: Path | None) -> Sequence[Path]:
    """The four ``.gz`` files in ``root``, in the order of ``fashion_mnist_files``.

    Those that are missing or damaged are fetched; the checksums are torchvision's.
    """
    if root is None:
        raise ConfigError("dataset fashion_mnist: download: true needs root, a folder to fill")
    require(["torchvision"], "train", "dataset fashion_mnist with download: true")
    known = importlib.import_module("torchvision.datasets").FashionMNIST
    fetch = importlib.import_module("torchvision.datasets.utils").download_url
    for name, md5 in known.resources:
        errors = []
        for mirror in known.mirrors:
            try:
                fetch(mirror + name, root=str(root), filename=name, md5=md5)
                break
            except (OSError, RuntimeError) as error:
                errors.append(f"{mirror}{name}: {error}")
        else:
            raise SystemFault(
                f"dataset fashion_mnist: cannot fetch into {root}: {'; '.join(errors)}; check the "
                f"network, or copy the files there by hand"
            )
    return [root / f"{name}.gz" for pair in _FILES.values() for name in pair]


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """Read one file.

    Args:
        path: Plain, or gzipped if it ends in ``.gz``.
        axes: How many axes it must have.

    Raises:
        ConfigError: Another type, another number of axes, too short, too long, or not an IDX file.
    """
    try:
        with open(path, "rb") as plain:
            if path.suffix == ".gz":
                with gzip.open(plain) as file:
                    return _read(file, path, axes)  # type: ignore[arg-type]
            return _read(plain, path, axes)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: not there") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path}: damaged gzip file ({error}); fetch it again") from error


def _read(file: BinaryIO, path: Path, axes: int) -> NDArray[np.uint8]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise ConfigError(f"{path}: not an IDX file (begins with {head.hex()!r})")
    if head[2] != _UNSIGNED_BYTE or head[3] != axes:
        raise ConfigError(
            f"{path}: type 0x{head[2]:02x} with {head[3]} axes; unsigned bytes (0x08) with "
            f"{axes} were expected"
        )
    sizes = file.read(4 * axes)
    if len(sizes) < 4 * axes:
        raise ConfigError(f"{path}: ends inside its header; fetch it again")
    shape = struct.unpack(f">{axes}I", sizes)
    want = math.prod(shape)
    if want > _MOST_BYTES:
        raise ConfigError(f"{path}: declares {list(shape)} = {want} bytes; at most {_MOST_BYTES}")
    data = file.read(want + 1)  # one more than declared, so that a longer file is noticed
    if len(data) != want:
        more = "more" if len(data) > want else f"{len(data)}"
        raise ConfigError(f"{path}: declares {list(shape)} = {want} bytes and holds {more}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
