"""Resumable checkpoints: one safetensors file and one JSON file each, the last two kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
from torch import Tensor

from compressor.core import files
from compressor.core.hashing import digest_bytes

_SCHEMA = 1
_KEPT = 2


@dataclass(slots=True)
class Counters:
    """Where a run stands: everything besides tensors that a checkpoint holds.

    Attributes:
        step: Optimizer steps taken.
        loss_sum: Of the steps of the present epoch.
        best_score: On val; None before the first epoch has ended.
        best_epoch: Its epoch, from 1.
        stale: Epochs since then.
        history: One record per finished epoch.
    """

    step: int = 0
    loss_sum: float = 0.0
    best_score: float | None = None
    best_epoch: int = 0
    stale: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Sorts in time; a new one for each state that can be saved."""
        return f"{len(self.history):06d}-{self.step:09d}"


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

    def save(self, tensors: Mapping[str, Tensor], counters: Counters) -> None:
        """Write durably, then drop all but the last two. Raises SystemFault (disk full ...)."""
        name = counters.name
        # Clones, because safetensors refuses tensors that share memory (tied weights).
        plain = {n: v.detach().cpu().contiguous().clone() for n, v in tensors.items()}
        data = safetensors.torch.save(plain)
        files.write_bytes(self._folder / f"{name}.safetensors", data)
        record = {
            "schema": _SCHEMA,
            "identity": self._identity,
            "sha256": digest_bytes(data),
            "counters": asdict(counters),
        }
        files.write_json(self._folder / f"{name}.json", record)
        for old in self._names()[:-_KEPT]:
            self._remove(old)

    def load(self) -> tuple[dict[str, Tensor], Counters] | None:
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
                return safetensors.torch.load(data), Counters(**record["counters"])
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
