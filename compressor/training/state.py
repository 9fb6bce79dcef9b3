"""Resumable checkpoints: one safetensors file and one JSON file each, the last two kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from compressor.core import files
from compressor.core.hashing import digest_bytes

_SCHEMA = 1
_KEPT = 2


def snapshot(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every tensor."""
    return {name: value.detach().clone() for name, value in live.items()}


@torch.no_grad()
def restore_(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Overwrite every tensor of ``live`` in place by the one of the same name."""
    for name, value in live.items():
        value.copy_(saved[name])


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``prefix.name`` for each name."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def section(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of :func:`prefixed`, names without the prefix."""
    cut = len(prefix) + 1
    return {n[cut:]: v for n, v in tensors.items() if n.startswith(prefix + ".")}


class Checkpoints:
    """The checkpoints of one run in one folder.

    The JSON file is written last and holds the sha256 of the other, so a checkpoint is either
    whole or is not used; the one before it is, and the next steps are simply taken again.
    """

    def __init__(self, folder: Path, identity: str, say: Callable[[str], None]) -> None:
        """Use ``folder``; checkpoints of another ``identity`` are not ours and are removed."""
        self._folder = folder
        self._identity = identity
        self._say = say

    def save(self, name: str, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Write durably, then drop all but the last two.

        Args:
            name: Sorts in time; equal names are equal states.
            tensors: Everything that is not a number.
            counters: JSON-able.

        Raises:
            SystemFault: Disk full or read-only.
        """
        # Clones, because safetensors refuses tensors that share memory (tied weights).
        plain = {n: v.detach().cpu().contiguous().clone() for n, v in tensors.items()}
        data = safetensors.torch.save(plain)
        files.write_bytes(self._folder / f"{name}.safetensors", data)
        record = {
            "schema": _SCHEMA,
            "identity": self._identity,
            "sha256": digest_bytes(data),
            "counters": dict(counters),
        }
        files.write_json(self._folder / f"{name}.json", record)
        for old in self._names()[:-_KEPT]:
            self._remove(old)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole checkpoint, or None. Broken ones are named and removed."""
        for name in reversed(self._names()):
            try:
                record = json.loads((self._folder / f"{name}.json").read_bytes())
                if (record["schema"], record["identity"]) != (_SCHEMA, self._identity):
                    self._remove(name)
                    continue
                data = (self._folder / f"{name}.safetensors").read_bytes()
                if digest_bytes(data) != record["sha256"]:
                    raise ValueError("its bytes are not what was written")
                return safetensors.torch.load(data), record["counters"]
            except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
                self._say(f"checkpoint {name} is broken ({error}); going back to the one before")
                self._remove(name)
        return None

    def _names(self) -> list[str]:
        """Names that have a JSON file, oldest first."""
        return sorted(f.stem for f in self._folder.glob("*.json") if not f.name.startswith("."))

    def _remove(self, name: str) -> None:
        for ending in (".json", ".safetensors"):
            files.remove(self._folder / f"{name}{ending}")
