"""Write beside, fsync, rename: a reader never sees half a file. The only module that publishes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compressor.core.errors import SystemFault

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST}
# NumPy's short writes carry no number, and the Rust side of safetensors has its own exception.
_FULL_WORDS = re.compile(r"\b\d+ requested and \d+ written|StorageFull|No space left on device")


@contextlib.contextmanager
def faults(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals while writing ``path`` into :class:`SystemFault`."""
    try:
        yield
    except SystemFault:
        raise
    except Exception as error:  # NumPy, safetensors and zipfile each wrap a full disk in their own
        fault = fault_of(error, path)
        if fault is None:
            raise
        raise fault from error


def fault_of(error: Exception, path: Path) -> SystemFault | None:
    """The operating system's refusal behind ``error`` as a sentence; None if it is none.

    Args:
        error: Whatever was raised while writing.
        path: What was being written, for errors that do not name their own file.
    """
    number = error.errno if isinstance(error, OSError) else None
    named = getattr(error, "filename", None)
    where = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else path
    if number in _FULL or (number is None and _FULL_WORDS.search(str(error))):
        return SystemFault(
            f"{path}: the disk is full ({_free_mib(path)} MiB free); nothing half-written was "
            "kept. Free space (`compressor cache gc` drops old results) and run again."
        )
    if where.parent == path.parent:  # a file written beside, under a name of our own
        where = path
    if number in _REFUSED:
        why = os.strerror(number or 0)
        return SystemFault(
            f"{where}: cannot be opened or written ({why}); check its permissions, or give a "
            "folder you may write to (--store, COMPRESSOR_STORE or another working folder)."
        )
    if number in _IN_THE_WAY:
        return SystemFault(
            f"{path}: cannot be made, {_existing(path)} is a file; give another folder "
            "(--store, COMPRESSOR_STORE or another working folder)."
        )
    return None


def _free_mib(path: Path) -> str:
    try:
        return str(shutil.disk_usage(_existing(path)).free >> 20)
    except OSError:
        return "?"


def _existing(path: Path) -> Path:
    """``path`` or its nearest ancestor that is there."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def check_writable(folder: Path) -> None:
    """Raise SystemFault if ``folder`` cannot be made or written; leaves nothing behind."""
    with faults(folder):
        try:
            with tempfile.TemporaryFile(dir=_existing(folder)):
                pass
        except FileNotFoundError as error:  # folders that no program can write to, as in /proc
            raise PermissionError(errno.EACCES, "", str(folder)) from error


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` durable, where the platform can."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data`` atomically and durably. Raises SystemFault."""
    with faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """As :func:`write_bytes`, UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """As :func:`write_text`; keys sorted, so that equal values are equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def sync_tree(folder: Path) -> None:
    """Flush every file below ``folder`` and the folders, before the folder is renamed."""
    for root, _, names in os.walk(folder):
        for name in names:
            with open(Path(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))


def publish(source: Path, target: Path) -> None:
    """Rename a finished file or folder to ``target``, which must be on the same file system.

    If ``target`` exists already (another run published the same content), ``source`` is removed.
    """
    with faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            sync_tree(source)
        else:
            with open(source, "rb") as file:
                os.fsync(file.fileno())
        try:
            if target.exists():
                raise FileExistsError(target)
            os.rename(source, target)
        except OSError as error:
            if not target.exists() or error.errno not in {errno.EEXIST, errno.ENOTEMPTY, None}:
                raise
            remove(source)
        sync_folder(target.parent)


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder to ``target`` (not atomic: for files inside a folder to publish)."""
    with faults(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
