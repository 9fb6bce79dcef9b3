"""Content digests: sha256 of files, folders and JSON values."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def digest_bytes(data: bytes) -> str:
    """Hex sha256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def digest_path(path: Path) -> str:
    """Digest of a file, or of a folder: relative names and contents, sorted, links refused."""
    if not path.is_dir():
        return digest_file(path)
    rows = []
    for root, folders, names in os.walk(path):
        folders.sort()
        for name in names:
            file = Path(root, name)
            if file.is_symlink():
                raise ValueError(f"{file}: a link inside an artifact")
            rows.append((file.relative_to(path).as_posix(), digest_file(file)))
    return digest_json(sorted(rows))


def digest_json(value: Any) -> str:
    """Digest of a JSON-able value; equal values have equal digests whatever their key order."""
    return digest_bytes(canonical(value).encode())


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no blanks, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=str)
