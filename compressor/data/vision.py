"""Images from elsewhere: CIFAR-10, and folders of image files."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from compressor.core.environment import require
from compressor.core.errors import ConfigError, SystemFault
from compressor.data.dataset import Array, RawDataset, Split

if TYPE_CHECKING:
    from PIL import Image

_BINARY = "cifar-10-batches-bin"
_PYTHON = "cifar-10-batches-py"
_TRAIN = tuple(f"data_batch_{k}.bin" for k in range(1, 6))
_TEST = ("test_batch.bin",)
_NAMES = "batches.meta.txt"
_RECORD = 1 + 3 * 32 * 32

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_SPLIT_FOLDERS = frozenset({"train", "val", "test"})
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits begin so
_ORIENTATION = 0x0112  # EXIF's tag


def cifar10(root: Path, download: bool = False) -> RawDataset:
    """CIFAR-10 (Krizhevsky 2009): ten classes, uint8 ``[3, 32, 32]``, 50,000 train, 10,000 test.

    Args:
        root: Folder with the *binary version* (``cifar-10-binary.tar.gz``, unpacked), which is
            read here; or with the *python version*, which consists of pickles and is left to
            torchvision, because that compares their checksums first.
        download: Let torchvision fetch the python version into ``root``.

    Raises:
        ConfigError: Files are missing or malformed.
        MissingError: torchvision is needed and not installed.
        SystemFault: The download failed.
    """
    folder = None if download else _binary_folder(root)
    if folder is None:
        return _cifar10_torchvision(root, download)
    lines = (folder / _NAMES).read_text(encoding="utf-8").split()
    if len(lines) < 2:
        raise ConfigError(f"{folder / _NAMES}: {len(lines)} class names; fetch it again")
    splits = {
        "train": _records([folder / name for name in _TRAIN], len(lines)),
        "test": _records([folder / name for name in _TEST], len(lines)),
    }
    return RawDataset(
        "cifar10", "classification", tuple(lines), {}, splits, source="binary version"
    )


def cifar10_files(root: Path) -> Sequence[Path]:
    """The files that would be read. Raises ConfigError if there are none."""
    folder = _binary_folder(root)
    if folder is not None:
        return [folder / name for name in (*_TRAIN, *_TEST, _NAMES)]
    return sorted(p for p in (root / _PYTHON).iterdir() if p.is_file())


def _binary_folder(root: Path) -> Path | None:
    """Where the binary version is complete; None if the python version is there instead."""
    for folder in (root / _BINARY, root):
        missing = [n for n in (*_TRAIN, *_TEST, _NAMES) if not (folder / n).is_file()]
        if not missing:
            return folder
        if (folder / _TRAIN[0]).is_file():
            raise ConfigError(f"dataset cifar10: {folder} has no {', '.join(missing)}")
    if (root / _PYTHON).is_dir():
        return None
    raise ConfigError(
        f"dataset cifar10: neither {_BINARY}/ nor {_PYTHON}/ in {root}; unpack "
        "cifar-10-binary.tar.gz there, or set download: true"
    )


def _records(files: Sequence[Path], classes: int) -> Split:
    """One byte of label, then 3,072 bytes of CHW pixels, again and again."""
    blocks = []
    for file in files:
        data = np.fromfile(file, dtype=np.uint8)
        if len(data) == 0 or len(data) % _RECORD:
            raise ConfigError(
                f"{file}: {len(data)} bytes; whole records of {_RECORD} were expected, fetch it "
                "again"
            )
        block = data.reshape(-1, _RECORD)
        wrong = np.flatnonzero(block[:, 0] >= classes)
        if len(wrong):
            raise ConfigError(
                f"{file}: label {block[wrong[0], 0]} in record {wrong[0]}, there are {classes} "
                "classes; fetch it again"
            )
        blocks.append(block)
    whole = np.concatenate(blocks)
    return Split({"image": whole[:, 1:].reshape(-1, 3, 32, 32)}, whole[:, 0].astype(np.int64))


def _cifar10_torchvision(root: Path, download: bool) -> RawDataset:
    require(["torchvision"], "train", "dataset cifar10 in its python version")
    known = importlib.import_module("torchvision.datasets").CIFAR10
    splits = {}
    for name in ("train", "test"):
        try:
            part = known(str(root), train=name == "train", download=download)
        except (OSError, RuntimeError) as error:
            kind = SystemFault if download else ConfigError
            raise kind(
                f"dataset cifar10: torchvision cannot read {root / _PYTHON}: {error}"
            ) from error
        pixels = np.ascontiguousarray(np.asarray(part.data).transpose(0, 3, 1, 2))
        splits[name] = Split({"image": pixels}, np.asarray(part.targets, dtype=np.int64))
        classes = tuple(str(c) for c in part.classes)
    return RawDataset("cifar10", "classification", classes, {}, splits, source="python version")


def image_folder(
    root: Path, channels: Literal[1, 3] = 3, size: tuple[int, int] | None = None
) -> RawDataset:
    """``root/CLASS/*.png`` or ``root/{train,test}/CLASS/*.png`` (and ``val``), also jpg, bmp, webp.

    Args:
        root: The folder. Classes are its sub-folders, in alphabetical order.
        channels: 3 for colour, 1 for grey; images are converted, transparency is dropped.
        size: ``[height, width]`` to resize to (bilinear); None wants all images of one size.

    Raises:
        ConfigError: An empty class, unequal sizes, classes that differ between splits, an
            unreadable image or one of more than 8 bits per channel.
        MissingError: Pillow is not installed.
    """
    require(["PIL"], "train", "dataset image_folder")
    parts = _parts(root)
    first = next(iter(parts.values()))
    classes = tuple(sorted(p.name for p in _folders(first)))
    if not classes:
        raise ConfigError(f"dataset image_folder: no folders in {first}; give one per class")
    for folder in parts.values():
        here = {p.name for p in _folders(folder)}
        if here != set(classes):
            odd = ", ".join(sorted(here.symmetric_difference(classes)))
            raise ConfigError(f"dataset image_folder: {folder} and {first} differ in {odd}")
    files = {name: _labelled(folder, classes) for name, folder in parts.items()}
    shape = size or _common_size([f for rows in files.values() for f, _ in rows])
    splits = {
        name: Split(
            {"image": _pixels([f for f, _ in rows], channels, shape, size is not None)},
            np.array([label for _, label in rows], dtype=np.int64),
        )
        for name, rows in files.items()
    }
    return RawDataset(root.name, "classification", classes, {}, splits, source="image folder")


def image_folder_files(root: Path) -> Sequence[Path]:
    """Every image below ``root``, sorted. Raises ConfigError if it is not a folder."""
    return [
        file
        for folder in _parts(root).values()
        for each in _folders(folder)
        for file in _images(each)
    ]


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith(".")
    )


def _parts(root: Path) -> dict[str, Path]:
    """Split name to the folder that holds its classes.

    Folders train, test, val are splits only if there is nothing else beside train and they hold
    folders themselves: a railway's data may well have a class called train.
    """
    if not root.is_dir():
        raise ConfigError(f"dataset image_folder: {root} is not a folder; set root to one")
    names = {p.name for p in _folders(root)}
    if "train" in names and names <= _SPLIT_FOLDERS and _folders(root / "train"):
        return {name: root / name for name in ("train", "val", "test") if name in names}
    return {"all": root}


def _labelled(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    rows = []
    for label, name in enumerate(classes):
        images = _images(folder / name)
        if not images:
            raise ConfigError(
                f"dataset image_folder: class {name!r}: no images in {folder / name} "
                f"({', '.join(IMAGES)} are read); add some or remove the folder"
            )
        rows += [(file, label) for file in images]
    return rows


@contextlib.contextmanager
def _image(file: Path) -> Iterator[Image.Image]:
    """The image as stored, not yet decoded. Raises ConfigError, for the body's decoding too."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{file}: not a readable image ({error})") from error


def _common_size(files: Sequence[Path]) -> tuple[int, int]:
    """Height and width of all images, upright; from headers, so that nothing is decoded twice."""
    from PIL import Image

    first: tuple[Path, tuple[int, int]] | None = None
    for file in files:
        with _image(file) as image:
            # From 5 on, a camera's orientation turns the image by a quarter (EXIF 2.32, 0x0112).
            # The base class's getexif, since that of PNG decodes the whole image to look for more.
            turned = Image.Image.getexif(image).get(_ORIENTATION, 1) in range(5, 9)
            size = (image.width, image.height) if turned else (image.height, image.width)
        if first is None:
            first = (file, size)
        elif size != first[1]:
            raise ConfigError(
                f"dataset image_folder: {first[0]} is {first[1][0]} x {first[1][1]} and {file} is "
                f"{size[0]} x {size[1]} (height x width); make them alike or set size: [h, w]"
            )
    if first is None:
        raise ConfigError("dataset image_folder: no images")
    return first[1]


def _pixels(files: Sequence[Path], channels: int, size: tuple[int, int], resize: bool) -> Array:
    """``[n, channels, *size]`` uint8."""
    from PIL import Image

    out = np.empty((len(files), channels, *size), dtype=np.uint8)
    for k, file in enumerate(files):
        with _image(file) as image:
            flat = _upright(file, image, "RGB" if channels == 3 else "L")
            if flat.size != size[::-1]:
                if not resize:  # a PNG whose orientation comes after its pixels
                    raise ConfigError(
                        f"{file}: decoded, it is {flat.height} x {flat.width}, its header said "
                        f"{size[0]} x {size[1]} (height x width); store it upright, or set size"
                    )
                flat = flat.resize(size[::-1], Image.Resampling.BILINEAR)
        pixels = np.asarray(flat)
        out[k] = pixels.transpose(2, 0, 1) if channels == 3 else pixels
    return out


def _upright(file: Path, image: Image.Image, mode: str) -> Image.Image:
    from PIL import ImageOps

    if image.mode.startswith(_DEEP):
        raise ConfigError(
            f"{file}: mode {image.mode} has more than 8 bits per channel; convert it, or use "
            "dataset arrays with floats"
        )
    return ImageOps.exif_transpose(image).convert(mode)
