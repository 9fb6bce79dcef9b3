"""From entries to nodes: who feeds whom, matrix members spelled out, evaluations added."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressor.core import resolve
from compressor.core.config import validate
from compressor.core.errors import suggestion
from compressor.core.types import DATASET, MODEL_KINDS, PREDICTIONS, Need, Stage
from compressor.pipeline.file import (
    Combination,
    Entry,
    Problems,
    check_top,
    entries,
    member_name,
    read,
)
from compressor.pipeline.graph import Node, Pipeline, Ref
from compressor.stages import STAGES

__all__ = ["Node", "Pipeline", "Ref", "load"]

SPLITS = ("val", "test")


def load(
    path: Path,
    overrides: Sequence[str] = (),
    check_gates: Callable[[Sequence[Any], Sequence[str]], Sequence[tuple[int, str]]] | None = None,
) -> Pipeline:
    """Read, check and wire a pipeline file.

    Args:
        path: The YAML file.
        overrides: ``a.b=value`` texts of ``--set``.
        check_gates: Given the raw gates and the stage names; returns (index, problem) pairs.

    Raises:
        ConfigError: With every problem of the file, each with its line.
    """
    document = read(path, overrides)
    problems = Problems(document)
    name, seed = check_top(document, problems)
    stages = document.value.get("stages")
    written = list(stages) if isinstance(stages, dict) else []
    wired = _Wiring(problems, written)
    for entry in entries(document, seed, problems):
        wired.add(entry)
    gates = document.value.get("gates") or []
    if not isinstance(gates, list):
        problems.add(("gates",), f"got {gates!r}; needs a list")
        gates = []
    elif check_gates is not None:
        for index, message in check_gates(gates, written):
            problems.add(("gates", index), message)
    problems.raise_if_any()
    return Pipeline(name, seed, tuple(wired.nodes), document, gates)


class _Wiring:
    """Grows the list of nodes entry by entry; an input may only name what stands above."""

    def __init__(self, problems: Problems, written: Sequence[str]) -> None:
        self.nodes: list[Node] = []
        self._by_name: dict[str, Node] = {}
        self._problems = problems
        self._written = written
        self._broken: set[str] = set()

    def add(self, entry: Entry) -> None:
        """Wire one entry, all its members, and their evaluations."""
        above = self._written[: self._written.index(entry.name)]
        self._broken.update(set(above) - {node.stem for node in self.nodes})
        wires = self._complete(entry)
        if wires is None:
            self._broken.add(entry.name)
            return
        for member in self._expand(entry, wires):
            self._append(member)
            for node in self._evaluations(member):
                self._append(node)

    def _append(self, node: Node) -> None:
        self.nodes.append(node)
        self._by_name[node.name] = node

    # -- names to outputs -----------------------------------------------------------------------

    def _complete(self, entry: Entry) -> dict[str, tuple[tuple[Ref, ...], ...]] | None:
        """Per input: one group of refs for each name written (a matrix stage gives several)."""
        wires: dict[str, tuple[tuple[Ref, ...], ...]] = {}
        good = True
        for name, need in entry.stage.needs.items():
            if name in entry.wires:
                groups = [self._find(entry, name, need, word) for word in entry.wires[name]]
                good = good and all(groups)
                wires[name] = tuple(g for g in groups if g)
            elif not need.optional:
                guess = self._guess(entry, name, need)
                good = good and guess is not None
                wires[name] = (guess,) if guess else ()
        return wires if good else None

    def _find(self, entry: Entry, name: str, need: Need, word: str) -> tuple[Ref, ...]:
        """The outputs of the kind that ``word`` names; empty after noting a problem."""
        where = ("stages", entry.name, "in", name)
        above = [n for n in self.nodes if not n.evaluates]
        stem, output = self._split(word, above)
        nodes = [n for n in above if n.name == stem] or [n for n in above if n.stem == stem]
        if not nodes:
            if stem not in self._broken:
                later = stem in self._written and stem != entry.name
                known = dict.fromkeys([*(n.stem for n in above), *(n.name for n in above)])
                hint = "; it must stand above" if later else suggestion(stem, known)
                self._problems.add(where, f"no stage {word!r} above{hint}")
            return ()
        makes = nodes[0].stage.makes
        if output and output not in makes:
            self._problems.add(where, f"{stem} has no output {output!r}{suggestion(output, makes)}")
            return ()
        fitting = [o for o, kind in makes.items() if kind == need.kind and output in ("", o)]
        if not fitting:
            kinds = ", ".join(f"{o} ({k})" for o, k in makes.items()) or "nothing"
            self._problems.add(where, f"needs a {need.kind}; {word} makes {kinds}")
            return ()
        if len(fitting) > 1:
            self._problems.add(where, f"{stem} makes several: {stem}.{f', {stem}.'.join(fitting)}")
            return ()
        return tuple(Ref(n.name, fitting[0]) for n in nodes)

    @staticmethod
    def _split(word: str, above: Sequence[Node]) -> tuple[str, str]:
        """``stage`` or ``stage.output``; a member's brackets may hold dots."""
        if any(word in (n.name, n.stem) for n in above):
            return word, ""
        cut = word.find(".", word.find("]") + 1)
        return (word, "") if cut < 0 else (word[:cut], word[cut + 1 :])

    def _guess(self, entry: Entry, name: str, need: Need) -> tuple[Ref, ...] | None:
        """A required input that was left out: the only output above that fits."""
        where = ("stages", entry.name, "in")
        fitting: dict[str, list[Ref]] = {}
        for node in self.nodes:
            for output, kind in node.stage.makes.items():
                if kind == need.kind and not node.evaluates:
                    fitting.setdefault(f"{node.stem}.{output}", []).append(Ref(node.name, output))
        if need.many:
            words = ", ".join(fitting) or "none above"
            self._problems.add(where, f"{name} is required (a list of {need.kind}: {words})")
            return None
        if len(fitting) == 1:
            return tuple(next(iter(fitting.values())))
        if not self._broken or fitting:
            words = ", ".join(fitting) or "nothing above makes one"
            self._problems.add(where, f"{name} (a {need.kind}) is required; candidates: {words}")
        return None

    # -- matrix ---------------------------------------------------------------------------------

    def _expand(
        self, entry: Entry, wires: Mapping[str, tuple[tuple[Ref, ...], ...]]
    ) -> Iterator[Node]:
        """Natural join of the entry's own combinations with those of its single inputs."""
        needs = entry.stage.needs
        rows: list[tuple[Combination, Any, dict[str, tuple[Ref, ...]]]] = [
            (m.combination, m, {}) for m in entry.members
        ]
        for name, groups in wires.items():
            if needs[name].many:
                everything = tuple(ref for group in groups for ref in group)
                rows = [(c, m, {**i, name: everything}) for c, m, i in rows]
                continue
            rows = [
                ({**c, **self._by_name[ref.node].combination}, m, {**i, name: (ref,)})
                for c, m, i in rows
                for ref in groups[0]
                if _agree(c, self._by_name[ref.node].combination)
            ]
        if not rows:
            self._problems.add(
                ("stages", entry.name), "its matrix inputs share keys but no combination of values"
            )
        for combination, member, inputs in rows:
            yield Node(
                member_name(entry.name, combination),
                entry.name,
                entry.reference,
                entry.stage,
                member.config,
                member.seed,
                self._with_val(entry, inputs),
                combination,
            )

    def _with_val(
        self, entry: Entry, inputs: dict[str, tuple[Ref, ...]]
    ) -> dict[str, tuple[Ref, ...]]:
        """Add the validation predictions of the inputs that the stage chooses among."""
        complete = dict(inputs)
        for name, refs in inputs.items():
            if not entry.stage.needs[name].val:
                continue
            missing = [r.node for r in refs if f"{r.node}@val" not in self._by_name]
            if missing:
                self._problems.add(
                    ("stages", entry.name, "in", name),
                    f"{missing[0]} has no data to be judged on; put a `data` stage above it",
                )
            complete[f"{name}.val"] = tuple(Ref(f"{r.node}@val", PREDICTIONS) for r in refs)
        return complete

    # -- evaluations ----------------------------------------------------------------------------

    def _evaluations(self, node: Node) -> Iterator[Node]:
        """``NAME@val`` and ``NAME@test`` for the first model that a node makes."""
        output = next((o for o, k in node.stage.makes.items() if k in MODEL_KINDS), None)
        data = self._dataset(node)
        if output is None or data is None:
            return
        reference = STAGES["evaluate"]
        stage: Stage[Any] = resolve.load(reference, "evaluate")
        for split in SPLITS:
            yield Node(
                f"{node.name}@{split}",
                node.stem,
                reference,
                stage,
                validate(stage.config, {"split": split}),
                node.seed,
                {"model": (Ref(node.name, output),), "data": (data,)},
                node.combination,
                evaluates=node.name,
                split=split,
            )

    def _dataset(self, node: Node) -> Ref | None:
        """The dataset a model is judged on: its own input, else that of the model it came from."""
        for refs in node.inputs.values():
            for ref in refs:
                source = self._by_name[ref.node]
                if source.stage.makes.get(ref.output) == DATASET:
                    return ref
        for refs in node.inputs.values():
            for ref in refs:
                found = self._dataset(self._by_name[ref.node])
                if found is not None:
                    return found
        return None


def _agree(left: Combination, right: Combination) -> bool:
    return all(left[k] == right[k] for k in left.keys() & right.keys())
