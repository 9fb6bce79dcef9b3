"""What each region costs in either form: signal, agreement or accuracy, and time.

Signal and accuracy come from real kernels: the region alone int8 in a float network, and alone
float in an int8 one. Times come from profiles of the whole network in float, in int8, and in a
mixture whose borders say what a border costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.core.types import TimingProtocol, Timings
from compressor.quantization.candidates import Candidates
from compressor.quantization.placement import Costs, Floats
from compressor.quantization.quality import Quality
from compressor.quantization.times import border_rate, region_times

_COUNTS = (256, 128, 64, 32, 16)  # samples per look
# Opening a session and running it once; writing and loading weights at 50 MB/s.
_LOOK_S, _BYTES_PER_S = 0.15, 50e6


@dataclass(frozen=True, slots=True)
class Row:
    """One region of the table.

    Attributes:
        name: Of the region.
        nodes: Its operators.
        float_us: Time in the float network, in microseconds.
        int8_us: Time in the int8 network.
        alone_int8: What the network loses when this region alone is int8; None if the budget
            did not allow to look.
        alone_float: What it still loses when this region alone is float.
    """

    name: str
    nodes: tuple[str, ...]
    float_us: float
    int8_us: float
    alone_int8: Quality | None
    alone_float: Quality | None

    @property
    def noise(self) -> float:
        """Noise over signal of the worst output when this region alone is int8; -1 if unknown."""
        return -1.0 if self.alone_int8 is None else float(10 ** (-self.alone_int8.worst / 10))

    def plain(self, form: str, reason: str) -> dict[str, Any]:
        """JSON-able, with the form that was chosen."""
        return {**asdict(self), "nodes": list(self.nodes), "form": form, "reason": reason}


def costs(
    candidates: Candidates, timings: Timings, protocol: TimingProtocol, feed: Mapping[str, Any]
) -> Costs:
    """The cost model from three profiles.

    Args:
        candidates: Writes the models to profile.
        timings: Profiles them.
        protocol: How; its batch is the one that the borders are priced for.
        feed: Samples.
    """
    graph, parts = candidates.graph, candidates.regions
    everything = candidates.all_float

    def profile(floats: Floats) -> tuple[Any, Mapping[str, float]]:
        path = candidates.file(floats)
        return _executed(path, protocol), timings.profile(path, protocol, feed)

    in_float, in_int8 = profile(everything), profile(frozenset())
    mixed = frozenset(range(1, len(parts), 2))
    in_mixture = profile(mixed) if mixed and candidates.weighted(mixed) else in_int8
    fixed, slope = border_rate(*in_mixture, graph, sizes := candidates.sizes(protocol.batch))
    borders = tuple(fixed + slope * sizes.get(edge.tensor, 0) for edge in candidates.edges)
    return Costs(
        region_times(*in_float, graph, parts), region_times(*in_int8, graph, parts),
        candidates.edges, borders,
    )  # fmt: skip


def _executed(path: Path, protocol: TimingProtocol) -> Any:
    from compressor.runtime.profile import optimized_graph

    return optimized_graph(path, threads=protocol.threads)


def look_seconds(candidates: Candidates, sample_us: float, count: int) -> float:
    """What one look at ``count`` samples is expected to take: a function of timings alone."""
    return _LOOK_S + candidates.weight_bytes / _BYTES_PER_S + count * sample_us / 1e6


def rows(
    candidates: Candidates, model: Costs, sample_us: float, samples: int, budget: float
) -> tuple[tuple[Row, ...], float]:
    """The table, and the seconds that its looks are expected to have taken.

    The regions that take longest in float come first; those that do not fit ``budget`` keep
    their times only.

    Args:
        candidates: Writes and judges.
        model: Times per region.
        sample_us: Of the float network.
        samples: How many there are to look at.
        budget: Seconds.
    """
    count = len(candidates.regions)
    fitting = (n for n in _COUNTS if n <= samples
               and 2 * count * look_seconds(candidates, sample_us, n) <= budget)  # fmt: skip
    looked = min(next(fitting, _COUNTS[-1]), samples)
    each = look_seconds(candidates, sample_us, looked)
    order = sorted(range(count), key=lambda i: (-model.floats[i], i))[: int(budget / (2 * each))]
    found: dict[int, tuple[Quality, Quality]] = {}
    for i in order:
        alone = frozenset({i})
        rest = candidates.all_float - alone
        found[i] = (
            candidates.quality(rest, looked, keep=False),
            candidates.quality(alone, looked, keep=False),
        )
    table = tuple(
        Row(region.name, region.nodes, model.floats[i], model.int8[i], *found.get(i, (None, None)))
        for i, region in enumerate(candidates.regions)
    )
    return table, 2 * len(order) * each


def by_noise(table: tuple[Row, ...]) -> tuple[int, ...]:
    """Regions, the most sensitive first; those that were not looked at come last."""
    return tuple(sorted(range(len(table)), key=lambda i: (-table[i].noise, i)))
