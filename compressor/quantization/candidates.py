"""Models by placement: each written once, judged once, whatever kills the process in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnx

from compressor.core import files
from compressor.core.hashing import digest_json
from compressor.quantization import qdq, regions
from compressor.quantization.calibrate import Calibration
from compressor.quantization.graph import Array, Graph
from compressor.quantization.placement import Floats
from compressor.quantization.plain import Options, describe_
from compressor.quantization.qdq import Written
from compressor.quantization.quality import Judge, Quality
from compressor.quantization.recipe import Recipe
from compressor.quantization.regions import Region
from compressor.quantization.select import Selection, select
from compressor.quantization.target import Target

_JOURNAL, _ARRAYS = "journal.json", "arrays"


class Journal:
    """What a search has found out so far, in a folder that survives a kill.

    A search is a function of what it reads, so it goes on after a kill by starting again: what
    costs time is read from here, and from the stored timings.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        """Open ``folder``; what another ``identity`` (model, samples, options) left is dropped."""
        self._folder, self._identity = folder, identity
        self._qualities: dict[str, dict[str, Any]] = {}
        try:
            found = json.loads((folder / _JOURNAL).read_text())
            if found["identity"] == identity:
                self._qualities = dict(found["qualities"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # absent or damaged: nothing is known yet
        if not self._qualities:
            files.remove(folder / "candidates")
            files.remove(folder / _ARRAYS)

    @property
    def folder(self) -> Path:
        """Where candidates are written."""
        return self._folder / "candidates"

    def quality(self, key: str) -> Quality | None:
        """What was found under ``key``."""
        found = self._qualities.get(key)
        return None if found is None else Quality(**found)

    def keep(self, key: str, quality: Quality) -> None:
        """Remember at once."""
        self._qualities[key] = asdict(quality)
        files.write_json(
            self._folder / _JOURNAL, {"identity": self._identity, "qualities": self._qualities}
        )

    def arrays(self, key: str, compute: Callable[[], Mapping[str, Array]]) -> dict[str, Array]:
        """Named arrays that take long to compute: computed once, then read.

        Args:
            key: Says what they are.
            compute: Asked if nothing, or nothing whole, was kept under ``key``.
        """
        path = self._folder / _ARRAYS / f"{digest_json([self._identity, key])[:16]}.npz"
        found = _read(path)
        if found is None:
            found = dict(compute())
            # Numbered, as names of nodes may be anything.
            numbered: dict[str, Any] = {f"{i}": array for i, array in enumerate(found.values())}
            stream = BytesIO()
            np.savez(stream, names=np.array(list(found), np.str_), **numbered)
            files.write_bytes(path, stream.getvalue())
        return found

    def keep_best(self, model: bytes, facts: Mapping[str, Any]) -> None:
        """Keep ``best.onnx``, always a whole model that may be used, unless a better one is there.

        Args:
            model: Bytes of the file.
            facts: JSON-able, with ``speedup`` over fp32.
        """
        try:
            known = json.loads((self._folder / "best.json").read_text())
            if known["identity"] == self._identity and known["speedup"] >= facts["speedup"]:
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        files.write_bytes(self._folder / "best.onnx", model)
        files.write_json(self._folder / "best.json", {**facts, "identity": self._identity})


class Candidates:
    """Writes and judges models of one network, one recipe and one target.

    Attributes:
        graph: Prepared float graph, as it was given; all of it float is this very graph.
        selection: Everything that can be int8.
        regions: Its partition.
        parts: The regions and, behind them, the parts of those with several layers; what is told
            apart by index below may name parts, too.
        inside: Region to its parts, for those that have any.
        edges: Where borders may be.
        recipe: What int8 layers are written from.
        target: Decides the integers.
    """

    def __init__(
        self, graph: Graph, selection: Selection, recipe: Recipe, target: Target,
        options: Options, judge: Judge, journal: Journal,
    ) -> None:  # fmt: skip
        """Divide ``selection`` into regions."""
        self.graph, self.selection, self.recipe, self.target = graph, selection, recipe, target
        self.regions: tuple[Region, ...] = regions.divide(graph, selection)
        self.parts, self.inside = regions.parts(graph, self.regions)
        self.edges = regions.edges(graph, selection, self.regions)
        self._options, self._judge, self._journal = options, judge, journal
        self._cache: qdq.WeightCache = {}
        inside = {name for region in self.regions for name in region.nodes}
        self._never = frozenset(n.name for n in graph.nodes) - inside

    def of(self, recipe: Recipe) -> Candidates:
        """The same by another recipe, whose graph has the same nodes."""
        return Candidates(self.graph, self.selection, recipe, self.target, self._options,
                          self._judge, self._journal)  # fmt: skip

    @property
    def found(self) -> Calibration:
        """The calibration."""
        return self.recipe.found

    @property
    def all_float(self) -> Floats:
        """Every region."""
        return frozenset(range(len(self.regions)))

    def weighted(self, floats: Collection[int]) -> bool:
        """Whether any layer with weights is int8."""
        return any(r.weighted for i, r in enumerate(self.regions) if i not in floats)

    def written(self, floats: Collection[int]) -> tuple[Selection, Written]:
        """The model in which the regions ``floats`` are float."""
        chosen = select(self.graph, self._never | regions.excluded(self.parts, floats))
        chosen = replace(chosen, floats={**chosen.floats, **self.selection.floats})
        made = self.recipe.write(chosen, self.target, self._cache)
        options = replace(self._options, method=self.recipe.method)
        describe_(made.model, self.target, options, self.found.samples, steps=self.recipe.steps)
        return chosen, made

    def file(self, floats: Collection[int]) -> Path:
        """The candidate as a file, written if it is not there."""
        path = self.file_of(floats)
        if not path.exists():
            model = self.written(floats)[1].model if self.weighted(floats) else self.graph.model
            files.write_bytes(path, model.SerializeToString(deterministic=True))
        return path

    def drop(self, floats: Collection[int]) -> None:
        """Remove the file; :meth:`file` writes the same one again."""
        self.file_of(floats).unlink(missing_ok=True)

    def file_of(self, floats: Collection[int]) -> Path:
        """Where the candidate is, or would be."""
        return self._journal.folder / f"{self._key(floats)}.onnx"

    def quality(
        self, floats: Collection[int], count: int | None = None, keep: bool = True
    ) -> Quality:
        """What the candidate loses, from the journal if it was looked at before.

        Args:
            floats: Regions that are float.
            count: Samples to look at; None for all.
            keep: Leave the file for what comes later.
        """
        key = f"{self._key(floats)}/{count or len(self._judge)}"
        found = self._journal.quality(key)
        if found is None:
            found = self._judge.look(self.file(floats), count)
            self._journal.keep(key, found)
            if not keep:
                self.drop(floats)
        return found

    def _key(self, floats: Collection[int]) -> str:
        return digest_json([sorted(floats), *self.recipe.steps])[:16]

    def sizes(self, batch: int) -> dict[str, int]:
        """Tensor name to elements at a batch size."""
        return {name: count * batch for name, count in self.found.sizes.items()}

    @property
    def weight_bytes(self) -> int:
        """Of the float model, about what a candidate costs to write and load."""
        return sum(_bytes(tensor) for tensor in self.graph.constants.values())


def _bytes(tensor: onnx.TensorProto) -> int:
    return 4 * int(np.prod(tensor.dims, dtype=np.int64))


def _read(path: Path) -> dict[str, Array] | None:
    """Arrays as :meth:`Journal.arrays` keeps them; None if absent or damaged."""
    try:
        found = np.load(BytesIO(path.read_bytes()), allow_pickle=False)
        return {str(name): found[f"{i}"] for i, name in enumerate(found["names"])}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
