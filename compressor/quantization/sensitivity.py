"""What each region, and each layer inside it, costs in either form: signal, accuracy and time.

Signal, agreement and accuracy come from real kernels: the region or layer alone int8 in a float
network, and alone float in an int8 one. Times come from profiles of the whole network in float, in
int8, and in a mixture whose borders say what a border costs. The search decides per region; a
region with one layer is that layer, one with several (branches that end in an addition) is also
looked at layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compressor.core.types import TimingProtocol, Timings
from compressor.quantization.candidates import Candidates
from compressor.quantization.placement import Costs, Floats
from compressor.quantization.quality import Quality
from compressor.quantization.times import border_rate, layer_times, region_times

_LOOKED = ("float_us", "int8_us", "alone_int8", "alone_float")
_COUNTS = (256, 128, 64, 32, 16)  # samples per look
# Opening a session and running it once; writing and loading weights at 50 MB/s.
_LOOK_S, _BYTES_PER_S = 0.15, 50e6


@dataclass(frozen=True, slots=True)
class Profiled(Costs):
    """The cost model, and the times of what regions with several layers consist of.

    Attributes:
        part_floats: Microseconds in float of ``Candidates.parts`` behind the regions.
        part_int8: The same in int8.
    """

    part_floats: tuple[float, ...] = ()
    part_int8: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One region of the table, or one layer of a region.

    Attributes:
        name: Of the region, or of the layer's node.
        nodes: Its operators.
        float_us: Time in the float network, in microseconds.
        int8_us: Time in the int8 network.
        alone_int8: What the network loses when this alone is int8; None if the budget did not
            allow to look.
        alone_float: What it still loses when this alone is float.
        layers: One row per layer of a region that has several, else empty: the row is the layer's.
    """

    name: str
    nodes: tuple[str, ...]
    float_us: float
    int8_us: float
    alone_int8: Quality | None
    alone_float: Quality | None
    layers: tuple[Row, ...] = ()

    @property
    def noise(self) -> float:
        """Noise over signal of the worst output when this alone is int8; -1 if unknown."""
        return -1.0 if self.alone_int8 is None else float(10 ** (-self.alone_int8.worst / 10))

    def plain(self, form: str, reason: str) -> dict[str, Any]:
        """JSON-able, with the form that was chosen."""
        layers = [layer.plain(form, reason) for layer in self.layers]
        return {**asdict(self), "nodes": list(self.nodes), "layers": layers,
                "form": form, "reason": reason}  # fmt: skip


def costs(
    candidates: Candidates, timings: Timings, protocol: TimingProtocol, feed: Mapping[str, Any]
) -> Profiled:
    """The cost model, and the times of layers, from three profiles.

    Args:
        candidates: Writes the models to profile.
        timings: Profiles them.
        protocol: How; its batch is the one that the borders are priced for.
        feed: Samples.
    """
    graph, regions = candidates.graph, candidates.regions
    parts = candidates.parts[len(regions) :]
    everything = candidates.all_float

    def profile(floats: Floats) -> tuple[Any, Mapping[str, float]]:
        path = candidates.file(floats)
        return _executed(path, protocol), timings.profile(path, protocol, feed)

    in_float, in_int8 = profile(everything), profile(frozenset())
    mixed = frozenset(range(1, len(regions), 2))
    in_mixture = profile(mixed) if mixed and candidates.weighted(mixed) else in_int8
    fixed, slope = border_rate(*in_mixture, graph, sizes := candidates.sizes(protocol.batch))
    borders = tuple(fixed + slope * sizes.get(edge.tensor, 0) for edge in candidates.edges)
    return Profiled(
        region_times(*in_float, graph, regions), region_times(*in_int8, graph, regions),
        candidates.edges, borders, part_floats=layer_times(*in_float, graph, parts),
        part_int8=layer_times(*in_int8, graph, parts),
    )  # fmt: skip


def _executed(path: Path, protocol: TimingProtocol) -> Any:
    from compressor.runtime.profile import optimized_graph

    return optimized_graph(path, threads=protocol.threads)


def look_seconds(candidates: Candidates, sample_us: float, count: int) -> float:
    """What one look at ``count`` samples is expected to take: a function of timings alone."""
    return _LOOK_S + candidates.weight_bytes / _BYTES_PER_S + count * sample_us / 1e6


def rows(
    candidates: Candidates, model: Profiled, sample_us: float, samples: int, budget: float
) -> tuple[tuple[Row, ...], float]:
    """The table, and the seconds that its looks are expected to have taken.

    Regions come first and layers inside them after, each by their time in float; what does not
    fit ``budget`` keeps its times only.

    Args:
        candidates: Writes and judges.
        model: Times per region and layer.
        sample_us: Of the float network.
        samples: How many there are to look at.
        budget: Seconds.
    """
    order = _order(candidates, model)
    fitting = (n for n in _COUNTS if n <= samples
               and 2 * len(order) * look_seconds(candidates, sample_us, n) <= budget)  # fmt: skip
    looked = min(next(fitting, _COUNTS[-1]), samples)
    each = look_seconds(candidates, sample_us, looked)
    found: dict[int, tuple[Quality, Quality]] = {}
    order = order[: int(budget / (2 * each))]
    # Corrected biases make up for what the layers in front lose, which are float here.
    bare = (
        candidates.of(candidates.recipe.without_bias()) if candidates.recipe.deltas else candidates
    )
    for i in order:
        found[i] = (
            bare.quality(_others(i, candidates), looked, keep=False),
            candidates.quality(frozenset({i}), looked, keep=False),
        )
    floats, int8 = (*model.floats, *model.part_floats), (*model.int8, *model.part_int8)

    def row(i: int) -> Row:
        part = candidates.parts[i]
        layers = [row(j) for j in candidates.inside.get(i, ()) if candidates.parts[j].weighted]
        int8_look, float_look = found.get(i, (None, None))
        return Row(part.name, part.nodes, floats[i], int8[i], int8_look, float_look, tuple(layers))

    return tuple(map(row, range(len(candidates.regions)))), 2 * len(order) * each


def _order(candidates: Candidates, model: Profiled) -> list[int]:
    """What to look at: regions, then the layers of those with several; the slowest first."""
    floats = (*model.floats, *model.part_floats)
    regions = range(len(candidates.regions))
    layers = (j for inside in candidates.inside.values() for j in inside)
    weighted = [j for j in layers if candidates.parts[j].weighted]

    def slowest(found: Sequence[int]) -> list[int]:
        return sorted(found, key=lambda i: (-floats[i], i))

    return [*slowest(regions), *slowest(weighted)]


def _others(part: int, candidates: Candidates) -> Floats:
    """Everything but one region, or but one layer of one."""
    for region, inside in candidates.inside.items():
        if part in inside:
            return (candidates.all_float - {region}).union(inside) - {part}
    return candidates.all_float - {part}


def by_noise(table: tuple[Row, ...]) -> tuple[int, ...]:
    """Regions, the most sensitive first; those that were not looked at come last."""
    return tuple(sorted(range(len(table)), key=lambda i: (-table[i].noise, i)))


def tables(
    layers: Sequence[Mapping[str, Any]], regions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What JSON shows: ``layers`` with their sensitivity joined to them, and ``regions``.

    Args:
        layers: Rows of :class:`.plain.Layer`, JSON-able.
        regions: :meth:`Row.plain` of every region.
    """
    found = {}
    for region in regions:
        for row in region["layers"] or [region]:
            found[row["name"]] = {"region": region["name"], **{k: row[k] for k in _LOOKED}}
    return {
        "layers": [{**layer, **found.get(layer["name"], {})} for layer in layers],
        "regions": [{k: v for k, v in row.items() if k != "layers"} for row in regions],
    }
