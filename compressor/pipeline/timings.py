"""The engine's side of measuring: every result is stored at once and never measured twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from compressor.core import files
from compressor.core.environment import machine_fingerprint
from compressor.core.hashing import digest_file, digest_json
from compressor.core.source import behind
from compressor.core.store import Store
from compressor.core.types import AA, Timing, TimingProtocol


@dataclasses.dataclass(frozen=True)
class _Profile:
    nodes: dict[str, float]
    digest: str


_TIMING = TypeAdapter(Timing)
_PROFILE = TypeAdapter(_Profile)
_MEASURES = "compressor.runtime.timing:interleave"


class StoredTimings:
    """Measures by ``runtime.timing`` and keeps results by models, machine and protocol.

    Model names do not belong to the key: the same files measured in the same order are the same
    measurement, whatever a pipeline calls them.
    """

    def __init__(self, store: Store, again: bool = False) -> None:
        """Keep results in ``store``; with ``again`` measure anew once in this process."""
        self._store = store
        self._again = again
        self._fresh: set[str] = set()
        self.read: list[str] = []

    def measure(
        self,
        models: Mapping[str, Path],
        protocol: TimingProtocol,
        feed: Mapping[str, Any] | None = None,
    ) -> Timing:
        """See :class:`compressor.core.types.Timings`."""
        key, path = self._place([*models.values()], protocol)
        stored = None if self._again and key not in self._fresh else _load(path)
        if stored is None:
            from compressor.runtime.timing import interleave

            measured = interleave(models, protocol, feed)
            stored = _renamed(measured, {n: str(i) for i, n in enumerate(models)})
            stored = dataclasses.replace(stored, digest="")
            stored = dataclasses.replace(stored, digest=digest_json(dataclasses.asdict(stored)))
            files.write_bytes(path, _TIMING.dump_json(stored) + b"\n")
            self._fresh.add(key)
        self.read.append(stored.digest)
        return _renamed(stored, {str(i): n for i, n in enumerate(models)})

    def profile(
        self, model: Path, protocol: TimingProtocol, feed: Mapping[str, Any] | None = None
    ) -> Mapping[str, float]:
        """See :class:`compressor.core.types.Timings`."""
        key, path = self._place([model], protocol, profile=True)
        found = None if self._again and key not in self._fresh else _load_profile(path)
        if found is None:
            from compressor.runtime.profile import profiled

            found = dict(profiled(model, protocol, feed))
            files.write_json(path, {"nodes": found, "digest": digest_json(found)})
            self._fresh.add(key)
        self.read.append(digest_json(found))
        return found

    def _place(
        self, models: Sequence[Path], protocol: TimingProtocol, **more: bool
    ) -> tuple[str, Path]:
        """Key and file of a measurement."""
        key = digest_json(
            {
                "models": [digest_file(path) for path in models],
                "machine": machine_fingerprint(),
                "protocol": dataclasses.asdict(protocol),
                "code": behind([_MEASURES]).modules,
                **more,
            }
        )
        return key, self._store.root / "timings" / f"{key}.json"


def _load_profile(path: Path) -> dict[str, float] | None:
    """A stored profile; None if absent or damaged."""
    try:
        stored = _PROFILE.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return stored.nodes if digest_json(stored.nodes) == stored.digest else None


def _load(path: Path) -> Timing | None:
    """A stored measurement; None if absent or damaged (its digest says)."""
    try:
        timing = _TIMING.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    bare = dataclasses.replace(timing, digest="")
    return timing if digest_json(dataclasses.asdict(bare)) == timing.digest else None


def _renamed(timing: Timing, names: Mapping[str, str]) -> Timing:
    full = {**names, AA: AA}
    return dataclasses.replace(
        timing,
        calls={full[n]: v for n, v in timing.calls.items()},
        rounds={full[n]: v for n, v in timing.rounds.items()},
    )
