"""One gate of a pipeline file, typed and checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import model_validator

from compressor.core.config import Config, Invalid, validate
from compressor.core.errors import ConfigError, suggestion
from compressor.core.tasks import TASKS, Task

BASELINE = "baseline"
LATENCY = "latency"
LIMITS = ("max_drop", "min", "max", "floor", "max_ratio")
_HEADLINES = {task.metric: task for task in TASKS.values()}


def split(dotted: str) -> tuple[str, str]:
    """``student[loss=kd].accuracy`` -> ``("student[loss=kd]", "accuracy")``; "" where absent."""
    cut = dotted.find(".", dotted.find("]") + 1)
    return (dotted, "") if cut < 0 else (dotted[:cut], dotted[cut + 1 :])


def headline(metric: str) -> Task | None:
    """The task whose test score this is: ``accuracy`` and ``mae`` are judged sample by sample."""
    return _HEADLINES.get(metric)


class Gate(Config):
    """A limit on one metric; exactly one of the five limits is given.

    Attributes:
        metric: ``STAGE.METRIC``; the name of a matrix stage means each of its members.
            ``STAGE.latency`` is measured anew beside the baseline's model.
        versus: Another ``STAGE.METRIC`` of the run, or ``baseline``.
        max_drop: Largest loss of accuracy on test in percentage points (of another task's score:
            in its unit), compared sample by sample; needs ``versus``.
        min: Smallest value.
        max: Largest value.
        floor: Smallest accuracy on test in percent that the samples must prove.
        max_ratio: Largest value relative to ``versus``.
    """

    metric: str
    versus: str | None = None
    max_drop: float | None = None
    min: float | None = None
    max: float | None = None
    floor: float | None = None
    max_ratio: float | None = None

    @property
    def kind(self) -> str:
        """Which limit is given."""
        return next(name for name in LIMITS if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        """Its number."""
        return float(getattr(self, self.kind))

    def text(self, stage: str = "") -> str:
        """The gate as one line, for the member ``stage`` of a matrix if given."""
        name, metric = split(self.metric)
        versus = f" versus {self.versus}" if self.versus else ""
        return f"{stage or name}.{metric}{versus} {self.kind} {self.limit:.12g}"

    @model_validator(mode="after")
    def _check(self) -> Gate:
        given = [name for name in LIMITS if getattr(self, name) is not None]
        found = [*_names(self)]
        if not given:
            found.append(f"needs a limit, one of {', '.join(LIMITS)}")
        elif len(given) > 1:
            found.append(f"has {' and '.join(given)}; give one limit per gate")
        else:
            found += _limit(self, given[0])
        if found:
            raise ValueError("; ".join(found))
        return self


def _names(gate: Gate) -> list[str]:
    """What is wrong with the two names, whatever the limit."""
    found = []
    metric = split(gate.metric)[1]
    if not metric:
        found.append(f"metric {gate.metric!r} is not of the form STAGE.METRIC")
    if metric.startswith("val_"):
        found.append(f"metric {gate.metric!r} was used to choose; gates read test scores")
    if gate.versus in (None, BASELINE):
        return found
    other = split(gate.versus or "")[1]
    if not other:
        found.append(f"versus {gate.versus!r} is neither STAGE.METRIC nor {BASELINE!r}")
    elif other.rpartition(".")[2] != metric.rpartition(".")[2]:
        found.append(f"versus {gate.versus!r} is another metric than {gate.metric!r}")
    return found


def _limit(gate: Gate, kind: str) -> list[str]:
    """What is wrong with the limit for this metric."""
    metric = split(gate.metric)[1]
    task = headline(metric)
    relative = kind in ("max_drop", "max_ratio")
    found = []
    if relative and gate.versus is None:
        found.append(f"{kind} needs versus: a STAGE.METRIC or {BASELINE!r}")
    if not relative and gate.versus is not None:
        found.append(f"{kind} is a number of its own; leave versus out or use max_ratio")
    if kind == "max_drop" and task is None:
        found.append(f"max_drop is for {' and '.join(_HEADLINES)}; use max_ratio for {metric!r}")
    if kind == "max_drop" and gate.limit < 0:
        found.append(f"max_drop {gate.limit:g} is negative")
    if kind == "max_ratio" and task is not None:
        found.append(f"max_ratio is not for {metric!r}; use max_drop")
    if kind == "max_ratio" and gate.limit <= 0:
        found.append(f"max_ratio {gate.limit:g} is not above 0")
    if kind == "floor" and (task is None or task.better != "higher"):
        found.append(f"floor is for accuracy; use min or max for {metric!r}")
    if kind in ("floor", "min") and metric == "accuracy" and not 0 <= gate.limit <= 100:
        found.append(f"{kind} {gate.limit:g} is not a percentage")
    if task is not None and kind == ("max" if task.better == "higher" else "min"):
        better = "min" if task.better == "higher" else "max"
        found.append(f"{kind} would refuse a better model; use {better} for {metric!r}")
    if metric == LATENCY and (kind != "max_ratio" or gate.versus != BASELINE):
        found.append(
            f"{LATENCY} is measured beside the baseline's model: give versus: {BASELINE} and "
            "max_ratio (in one run, the bench stage's speedup has a min)"
        )
    return found


def problems(raw: Sequence[Any], stages: Sequence[str]) -> list[tuple[int, str]]:
    """What is wrong with the list below ``gates``; metric names are known only after a run.

    Args:
        raw: The list as the file has it.
        stages: Names of the file's stages, without matrix combinations.

    Returns:
        Pairs of index and problem, all of them.
    """
    found: list[tuple[int, str]] = []
    for index, item in enumerate(raw):
        if not isinstance(item, Mapping):
            found.append((index, f"got {item!r}; needs a mapping with `metric` and a limit"))
            continue
        try:
            validate(Gate, item)
        except Invalid as invalid:
            for loc, text in invalid.problems:
                found.append((index, f"{'.'.join(map(str, loc))}: {text}" if loc else text))
        for key in ("metric", "versus"):
            word = item.get(key)
            if isinstance(word, str) and not (key == "versus" and word == BASELINE):
                stem = split(word)[0].partition("[")[0]
                if stem not in stages:
                    found.append((index, f"{key}: no stage {stem!r}{suggestion(stem, stages)}"))
    return found


def parse(raw: Sequence[Any]) -> tuple[Gate, ...]:
    """Typed gates from plain values. Raises ConfigError with every problem."""
    stems = [
        split(str(item.get(key)))[0].partition("[")[0]
        for item in raw
        if isinstance(item, Mapping)
        for key in ("metric", "versus")
    ]
    found = [f"gates.{index}: {text}" for index, text in problems(raw, stems)]
    if found:
        raise ConfigError(*found)
    return tuple(validate(Gate, item) for item in raw)
