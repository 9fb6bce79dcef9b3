"""Which regions stay float: a cost model, its exact optimum, and moves around a choice.

Everything here is a pure function of numbers that were measured elsewhere. The choice of a form
per region with a price at every border is a minimum cut: source side float, sink side int8.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from compressor.quantization.regions import Edge

Floats = frozenset[int]  # indexes of the regions that stay float
_STEPS = 1000  # integers per microsecond, so that flows end exactly
_SCALES = tuple(0.25 * 2 ** (i / 2) for i in range(11))  # 0.25 to 8


@dataclass(frozen=True, slots=True)
class Costs:
    """What the cost model knows; times in microseconds of one call.

    Attributes:
        floats: Per region, in float.
        int8: Per region, in int8.
        edges: Where borders may be.
        borders: Per edge, the cost of a Q or DQ there.
        scale: Of the borders, fitted to measurements of whole candidates.
    """

    floats: tuple[float, ...]
    int8: tuple[float, ...]
    edges: tuple[Edge, ...]
    borders: tuple[float, ...]
    scale: float = 1.0

    def total(self, floats: Collection[int]) -> float:
        """Predicted microseconds of all regions and borders."""
        own = sum(self.floats[i] if i in floats else self.int8[i] for i in range(len(self.floats)))
        return own + self.scale * self.crossings(floats)

    def crossings(self, floats: Collection[int]) -> float:
        """Microseconds of the borders before scaling."""
        pairs = zip(self.edges, self.borders, strict=True)
        return sum(us * (e.quantized(floats) + e.dequantized(floats)) for e, us in pairs)

    @property
    def everything(self) -> Floats:
        """All regions float."""
        return frozenset(range(len(self.floats)))


def guess(costs: Costs, forced: Collection[int] = ()) -> Floats:
    """The choice of least predicted cost; ``forced`` regions are float. Ties go to int8."""
    count = len(costs.floats)
    source, sink = count, count + 1
    network = _Network(count + 2)
    for i in range(count):
        network.add(i, sink, costs.floats[i])  # cut where i is float
        network.add(source, i, math.inf if i in forced else costs.int8[i])
    for edge, us in zip(costs.edges, costs.borders, strict=True):
        price = us * costs.scale
        maker = source if edge.producer is None else edge.producer
        if edge.readers:  # Q: paid if the maker is float and a reader is int8
            middle = network.node()
            network.add(maker, middle, price)
            for reader in edge.readers:
                network.add(middle, reader, math.inf)
        if edge.producer is None or edge.free:
            continue
        for reader in (*edge.readers, *[source] * edge.outside):
            network.add(reader, maker, price)  # DQ: paid by a float reader of an int8 maker
    side = network.cut(source, sink)
    return frozenset(i for i in range(count) if i in side)


class _Network:
    """Maximum flow by shortest augmenting paths (Edmonds and Karp)."""

    def __init__(self, nodes: int) -> None:
        self._arcs: list[dict[int, int]] = [{} for _ in range(nodes)]

    def node(self) -> int:
        self._arcs.append({})
        return len(self._arcs) - 1

    def add(self, start: int, end: int, capacity: float) -> None:
        steps = 10**15 if math.isinf(capacity) else round(capacity * _STEPS)
        self._arcs[start][end] = self._arcs[start].get(end, 0) + steps
        self._arcs[end].setdefault(start, 0)

    def cut(self, source: int, sink: int) -> set[int]:
        """The smallest source side of a minimum cut."""
        while True:
            before = self._reach(source, sink)
            if sink not in before:
                return set(before)
            path = [sink]
            while path[-1] != source:
                path.append(before[path[-1]])
            arcs = list(zip(path[1:], path[:-1], strict=True))
            flow = min(self._arcs[a][b] for a, b in arcs)
            for a, b in arcs:
                self._arcs[a][b] -= flow
                self._arcs[b][a] += flow

    def _reach(self, source: int, sink: int) -> dict[int, int]:
        before = {source: source}
        queue = deque([source])
        while queue and sink not in before:
            now = queue.popleft()
            for end, left in self._arcs[now].items():
                if left > 0 and end not in before:
                    before[end] = now
                    queue.append(end)
        return before


def fit(costs: Costs, measured: Sequence[tuple[Floats, float]]) -> float:
    """The border scale that explains measured speed-ups over all-float best.

    Args:
        costs: The model.
        measured: (choice, speed-up over float), at least one.
    """
    base = costs.total(costs.everything)

    def error(scale: float) -> float:
        shifted = Costs(costs.floats, costs.int8, costs.edges, costs.borders, scale)
        return sum(
            (math.log(base / max(shifted.total(choice), 1e-9)) - math.log(speed)) ** 2
            for choice, speed in measured
        )

    return min(_SCALES, key=lambda scale: (error(scale), abs(math.log(scale))))


def first(costs: Costs, forced: Floats) -> list[Floats]:
    """What to measure first: as much int8 as allowed, and the guesses for dear and cheap borders.

    Distinct, and never all float.
    """
    found = [forced]
    for scale in (1.0, 0.0, 0.5, 2.0, 4.0):
        scaled = Costs(costs.floats, costs.int8, costs.edges, costs.borders, scale)
        found.append(guess(scaled, forced))
    return [choice for choice in dict.fromkeys(found) if choice != costs.everything]


def moves(costs: Costs, best: Floats, forced: Floats, tried: Collection[Floats]) -> list[Floats]:
    """Untried choices near ``best``, the most promising first.

    The model's own optimum, then every single region, every two neighbours and every run of
    neighbours of one form turned over.
    """
    found = dict.fromkeys(
        best.symmetric_difference(turned) | forced for turned in _turned(costs, best)
    )
    ranked = sorted(found, key=lambda choice: (costs.total(choice), sorted(choice)))
    optimum = guess(costs, forced)
    out = {*tried, best, costs.everything}
    return [choice for choice in dict.fromkeys([optimum, *ranked]) if choice not in out]


def _turned(costs: Costs, best: Floats) -> Iterator[Floats]:
    near = neighbours(costs)
    count = len(costs.floats)
    for i in range(count):
        yield frozenset({i})
        yield from (frozenset({i, j}) for j in near[i] if j > i)
    done: set[int] = set()
    for i in range(count):
        if i in done:
            continue
        run, front = {i}, [i]
        while front:
            ends = [j for k in front for j in near[k] if (j in best) == (i in best)]
            front = sorted({*ends} - run)
            run.update(front)
        done |= run
        yield frozenset(run)


def neighbours(costs: Costs) -> list[list[int]]:
    """Per region, those that share a tensor with it."""
    near: list[set[int]] = [set() for _ in costs.floats]
    for edge in costs.edges:
        touching = [*edge.readers, *([] if edge.producer is None else [edge.producer])]
        for one, two in combinations(touching, 2):
            near[one].add(two)
            near[two].add(one)
    return [sorted(ends) for ends in near]
