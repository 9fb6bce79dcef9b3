"""What a quantize stage's table holds, typed at the door, and the lines that a page shows of it.

Older tables know less: without regions they have no sensitivity, without layers inside regions
the regions stand for them. What is not there is not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

# Finite, and small enough that sums of them are: a plot's axis takes nothing else.
_Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
_Time = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
_MOST_DB = 200.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Quality(_Part):
    """What a candidate lost: SQNR in dB per output, agreement in percent, drop in points."""

    sqnr: dict[str, _Number] = {}
    agreement: _Number | None = None
    drop: _Number | None = None

    @property
    def worst(self) -> float | None:
        """The least SQNR of all outputs."""
        return min(self.sqnr.values(), default=None)


class Row(_Part):
    """One layer or one region, as :class:`compressor.quantization.sensitivity.Row` says it."""

    name: str
    op: str = ""
    form: str = ""
    weight_bits: int | None = None
    low: _Number | None = None
    high: _Number | None = None
    reason: str = ""
    region: str = ""
    nodes: tuple[str, ...] = ()
    float_us: _Time | None = None
    int8_us: _Time | None = None
    alone_int8: Quality | None = None
    alone_float: Quality | None = None

    @property
    def sqnr(self) -> float | None:
        """In dB, alone in int8; None if it was not looked at."""
        return None if self.alone_int8 is None else self.alone_int8.worst

    @property
    def noise(self) -> float:
        """Noise over signal, alone in int8; 0 if it was not looked at."""
        if self.sqnr is None:
            return 0.0
        return float(10 ** (-min(max(self.sqnr, -_MOST_DB), _MOST_DB) / 10))


class Tried(_Part):
    """A placement that was measured: regions in float, speed-up over fp32 with its interval."""

    floats: tuple[str, ...] = Field((), alias="float")
    value: _Number
    low: _Number
    high: _Number


class Rung(_Part):
    """One step of accuracy recovery: what it was, the number before and after it, kept or not."""

    name: str = Field("", validation_alias=AliasChoices("rung", "name"))
    before: _Number | None = None
    after: _Number | None = None
    unit: str = ""
    kept: bool | None = None
    seconds: _Time | None = None
    note: str = Field("", validation_alias=AliasChoices("note", "outcome"))

    @model_validator(mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        """A whole quality counts by its drop, or without labels by its worst SQNR."""
        if not isinstance(value, Mapping):
            return value
        found = dict(value)
        for key in ("before", "after"):
            if isinstance(found.get(key), Mapping):
                quality = Quality.model_validate(found[key])
                found[key] = quality.worst if quality.drop is None else quality.drop
                found["unit"] = "dB" if quality.drop is None else "points"
        if found.get("after") is not None:
            found.setdefault("kept", found.get("outcome") == "kept")
        return found


class Goal(_Part):
    """What was asked for."""

    budget: _Number | None = None
    min_sqnr: _Number | None = None
    max_drop: _Number | None = None


class Placement(_Part):
    """The search: what was asked, tried and spent."""

    candidates: tuple[Tried, ...] = ()
    goal: Goal = Goal()
    seconds: _Number | None = None
    unstable: str = ""


class Target(_Part):
    """Where the file is meant to run, and why so."""

    name: str
    reason: str = ""


class Quantized(_Part):
    """One ``quantize.json``."""

    layers: tuple[Row, ...]
    target: Target
    regions: tuple[Row, ...] = ()
    placement: Placement | None = None
    recovery: tuple[Rung, ...] = ()
    verdict: str = ""
    sqnr: dict[str, _Number] = {}
    agreement: _Number | None = None
    held_out: int = 0
    samples: int = 0

    @property
    def looked(self) -> tuple[Row, ...]:
        """The layers with a sensitivity or a time of their own; of old tables, the regions."""
        return tuple(row for row in self.layers if row.float_us is not None) or self.regions

    @property
    def worst(self) -> list[Row]:
        """The layers that were looked at, the noisiest first."""
        seen = [row for row in self.looked if row.sqnr is not None]
        return sorted(seen, key=lambda row: -row.noise)

    @property
    def slowest(self) -> list[Row]:
        """The layers with times, by the longer of the two."""
        timed = [row for row in self.looked if row.float_us is not None]
        return sorted(timed, key=lambda row: -max(row.float_us or 0.0, row.int8_us or 0.0))

    @property
    def labelled(self) -> bool:
        """Whether accuracy was judged, not agreement."""
        return any(row.alone_int8 and row.alone_int8.drop is not None for row in self.looked)

    def tried(self) -> list[tuple[Tried, bool]]:
        """Placements, the fastest first, each with whether it is the one that ships."""
        if self.placement is None:
            return []
        shipped = {row.name for row in self.regions if row.form == "float"}
        whole = len(shipped) == len(self.regions)  # fp32 was kept
        order = sorted(self.placement.candidates, key=lambda one: -one.value)
        return [(one, not whole and set(one.floats) == shipped) for one in order]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table of layers.

    Attributes:
        row: A layer, or a region that several of the next lines belong to.
        title: What to call it.
        inside: It is a layer of such a region.
        whole: It is such a region.
    """

    row: Row
    title: str
    inside: bool = False
    whole: bool = False


def lines(table: Quantized) -> list[Line]:
    """Every layer in graph order; those of a region with several stand below it, together."""
    regions = {row.name: row for row in table.regions}
    members: dict[str, list[Row]] = {}
    for row in table.looked:
        members.setdefault(row.region or row.name, []).append(row)
    found = []
    for name, rows in members.items():
        region = regions.get(name)
        if len(rows) == 1 or region is None:
            found += [Line(row, row.name) for row in rows]
            continue
        last = region.nodes[-1] if region.nodes else region.name
        found.append(Line(region, f"{len(rows)} layers up to {last}", whole=True))
        found += [Line(row, row.name, inside=True) for row in rows]
    return found


def effect(quality: Quality | None, labelled: bool) -> float | None:
    """Drop in points, or without labels agreement in percent."""
    if quality is None:
        return None
    return quality.drop if labelled else quality.agreement


def facts(table: Quantized) -> list[str]:
    """What was asked for and what came out, as sentences without a full stop."""
    int8 = sum(row.form == "int8" for row in table.layers)
    found = [f"{int8} of {len(table.layers)} operators in int8"] if int8 else []
    if table.sqnr and table.held_out:
        agreed = "" if table.agreement is None else f", top-1 agreement {table.agreement:.2f} %"
        least = min(table.sqnr.values())
        found.append(f"SQNR {least:.1f} dB{agreed} on {table.held_out} held-out samples")
    if table.placement is not None:
        found += _search(table.placement)
    found.append(f"target {table.target.name}: {table.target.reason}".rstrip(": "))
    return found


def _search(placement: Placement) -> list[str]:
    goal, found = placement.goal, []
    if goal.max_drop is not None:
        found.append(f"asked for a drop of at most {goal.max_drop:g} points")
    elif goal.min_sqnr is not None:
        found.append(f"asked for an SQNR of at least {goal.min_sqnr:g} dB")
    if goal.budget is not None and placement.seconds is not None:
        found.append(f"budget {goal.budget:.0f} s, of which {placement.seconds:.0f} s were counted")
    return [*found, *([f"unstable: {placement.unstable}"] if placement.unstable else [])]


def shortened(names: Sequence[str], most: int = 4) -> str:
    """``a, b, c and 9 more``."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
