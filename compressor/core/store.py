"""The content-addressed store: results by key, bytes by digest, verified at every hit.

Layout below the root::

    keys/ab/KEY.json      what a stage made under that key: outputs, metrics, the parts of the key
    objects/ab/DIGEST     a file or folder, named by its content
    recent/PIPELINE/STAGE.json   the parts of the last key, to say why a stage is stale
    resume/KEY/           what an interrupted stage left to go on from
    timings/KEY.json      measurements
    locks/  tmp/  externals.json  sources.json

A key file is written last, so an entry is complete or absent. Nothing here unpickles or imports.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compressor.core import files
from compressor.core.hashing import digest_file, digest_path
from compressor.core.locks import held
from compressor.core.types import Metric

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Stored:
    """One output in the store: its kind, content digest and size in bytes."""

    kind: str
    digest: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known about one key.

    Attributes:
        key: The store key.
        uses: Name of the stage.
        outputs: Output name to stored object.
        metrics: As the stage returned them.
        parts: The parts of the key, readable.
        seconds: Wall time of the computation.
        notes: Lines that the stage said.
        timings: Digests of the measurements it read.
        schema: Of this record.
    """

    key: str
    uses: str
    outputs: Mapping[str, Stored]
    metrics: Mapping[str, Metric]
    parts: Mapping[str, Any]
    seconds: float
    notes: tuple[str, ...] = ()
    timings: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA)


_ENTRY = TypeAdapter(Entry)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size


class Store:
    """Results by key and bytes by digest below one folder; several processes may share it."""

    def __init__(self, root: Path, warn: Callable[[str], None] | None = None) -> None:
        """Use ``root``; ``warn`` gets one line whenever stored bytes turn out to be damaged."""
        self.root = root.absolute()
        self._warn = warn or (lambda line: None)

    def _sharded(self, room: str, digest: str, tail: str = "") -> Path:
        return self.root / room / digest[:2] / (digest + tail)

    def object(self, digest: str) -> Path:
        """Where the bytes of that digest live."""
        return self._sharded("objects", digest)

    def resume(self, key: str) -> Path:
        """Folder that survives a kill of the stage with this key."""
        return self.root / "resume" / key

    def read(self, key: str) -> Entry | None:
        """The entry of a key without looking at its bytes; None if absent or unreadable."""
        path = self._sharded("keys", key, ".json")
        try:
            entry = _ENTRY.validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            self._warn(f"{path}: unreadable, computing again ({type(error).__name__})")
            return None
        if entry.key != key or entry.schema != SCHEMA:
            self._warn(f"{path}: belongs to another key, computing again")
            return None
        return (
            entry if all(self.object(o.digest).exists() for o in entry.outputs.values()) else None
        )

    def lookup(self, key: str) -> Entry | None:
        """The entry of a key if every output's bytes still hash to their digest."""
        entry = self.read(key)
        if entry is None:
            return None
        for name, output in entry.outputs.items():
            if not self.intact(output.digest):
                self._warn(f"{entry.uses}.{name}: stored bytes are damaged, computing again")
                files.remove(self.object(output.digest))
                return None
        return entry

    def intact(self, digest: str) -> bool:
        """Whether the object of that digest is there and has that content."""
        path = self.object(digest)
        try:
            return path.exists() and digest_path(path) == digest
        except (OSError, ValueError):
            return False

    @contextlib.contextmanager
    def workdir(self) -> Iterator[Path]:
        """A fresh folder on the store's file system, removed afterwards."""
        parent = self.root / "tmp"
        with files.faults(parent):
            parent.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="stage-", dir=parent))
        try:
            yield folder
        finally:
            files.remove(folder)

    def put(self, path: Path) -> Stored:
        """Move a finished file or folder into the store; ``kind`` is left empty."""
        size = size_of(path)
        digest = digest_path(path)
        target = self.object(digest)
        if target.exists() and not self.intact(digest):
            files.remove(target)
        files.publish(path, target)
        return Stored("", digest, size)

    def commit(self, entry: Entry) -> None:
        """Write the key file; its objects must be in the store already."""
        data = _ENTRY.dump_json(entry, indent=1)
        files.write_bytes(self._sharded("keys", entry.key, ".json"), data + b"\n")

    def lock(
        self, key: str, waiting: Callable[[], None] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the key while computing it, so that two runs share one computation."""
        return held(self.root / "locks" / f"{key}.lock", waiting)

    # -- the last key of each stage of each pipeline ------------------------------------------

    def _recent(self, pipeline: str, stage: str) -> Path:
        return self.root / "recent" / pipeline / (stage.replace("/", "_") + ".json")

    def remember(self, pipeline: str, stage: str, key: str) -> None:
        """Note that ``stage`` of ``pipeline`` last had this key."""
        path = self._recent(pipeline, stage)
        if not (path.exists() and path.read_text() == f'"{key}"\n'):
            files.write_json(path, key)

    def recent(self, pipeline: str, stage: str) -> Entry | None:
        """The entry under the stage's last key, if it is still there."""
        try:
            key = json.loads(self._recent(pipeline, stage).read_text())
        except (OSError, ValueError):
            return None
        return self.read(str(key))

    def recent_keys(self) -> set[str]:
        """The last key of every stage of every pipeline."""
        found = set()
        for path in (self.root / "recent").glob("*/*.json"):
            with contextlib.suppress(OSError, ValueError):
                found.add(str(json.loads(path.read_text())))
        return found

    # -- files outside the store ----------------------------------------------------------------

    def external(self, path: Path) -> str:
        """Content digest of a file outside, remembered by size, mtime and inode.

        Raises FileNotFoundError.
        """
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        memo = self.recall("externals")
        name = str(path.absolute())
        known = memo.get(name)
        if isinstance(known, list) and known[:3] == mark:
            return str(known[3])
        digest = digest_file(path)
        self.memorize("externals", {name: [*mark, digest]})
        return digest

    def recall(self, name: str) -> dict[str, Any]:
        """A memo: what was worth keeping but can be found out again; empty if damaged."""
        try:
            memo = json.loads((self.root / f"{name}.json").read_text())
        except (OSError, ValueError):
            return {}
        return memo if isinstance(memo, dict) else {}

    def memorize(self, name: str, rows: Mapping[str, Any]) -> None:
        """Add rows to a memo. Two writers may lose each other's; it is only a memo."""
        files.write_json(self.root / f"{name}.json", {**self.recall(name), **rows})

    # -- housekeeping ---------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Every readable entry."""
        for path in sorted((self.root / "keys").glob("??/*.json")):
            entry = self.read(path.stem)
            if entry is not None:
                yield entry

    def damaged(self) -> Sequence[str]:
        """Digests of objects whose bytes do not match their name."""
        objects = sorted((self.root / "objects").glob("??/*"))
        return [p.name for p in objects if not self.intact(p.name)]

    def collect(self, keep: Callable[[Entry], bool]) -> tuple[int, int]:
        """Drop the entries that ``keep`` refuses, then objects that nobody names, and leftovers.

        Returns (objects removed, bytes freed).
        """
        needed: set[str] = set()
        for entry in list(self.entries()):
            if keep(entry):
                needed.update(o.digest for o in entry.outputs.values())
            else:
                files.remove(self._sharded("keys", entry.key, ".json"))
        removed = freed = 0
        for path in sorted((self.root / "objects").glob("??/*")):
            if path.name not in needed:
                freed += size_of(path)
                removed += 1
                files.remove(path)
        for leftover in (self.root / "tmp").glob("*"):
            if _is_old(leftover):
                freed += size_of(leftover)
                files.remove(leftover)
        return removed, freed


def _is_old(path: Path, hours: float = 24.0) -> bool:
    """Not touched for a day: nobody works in it any more."""
    import time

    with contextlib.suppress(OSError):
        return time.time() - os.stat(path).st_mtime > hours * 3600
    return False
