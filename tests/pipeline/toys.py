"""Stages of plain numbers, so that the engine can be tested without a network."""

from __future__ import annotations

import json
from pathlib import Path

from compressor.core.config import Config
from compressor.core.errors import MissingError
from compressor.core.types import Context, Inputs, Metric, Need, Stage, StageResult, one, several

CALLS: list[str] = []


class SourceConfig(Config):
    """Options of ``source``."""

    value: float = 1.0
    label: str = "a"
    file: Path | None = None


def _write(ctx: Context, value: float) -> StageResult:
    path = ctx.workdir / "number.json"
    path.write_text(json.dumps(value))
    return StageResult({"number": path}, {"value": Metric(value, "units", "higher")})


def read(path: Path) -> float:
    return float(json.loads(path.read_text()))


def source(cfg: SourceConfig, inputs: Inputs, ctx: Context) -> StageResult:
    CALLS.append(f"source {cfg.value}")
    extra = float(cfg.file.read_text()) if cfg.file else 0.0
    return _write(ctx, cfg.value + extra + ctx.seed / 1000)


SOURCE = Stage(
    "source",
    SourceConfig,
    source,
    {},
    {"number": "number"},
    externals=lambda cfg: [cfg.file] if cfg.file else [],
)


class AddConfig(Config):
    """Options of ``add``."""

    plus: int = 0
    fail: bool = False


def add(cfg: AddConfig, inputs: Inputs, ctx: Context) -> StageResult:
    CALLS.append(f"add {cfg.plus}")
    if cfg.fail:
        raise ZeroDivisionError("asked for")
    total = sum(read(a.path) for a in several(inputs, "numbers"))
    return _write(ctx, total + cfg.plus)


ADD = Stage("add", AddConfig, add, {"numbers": Need("number", many=True)}, {"number": "number"})


class ScaleConfig(Config):
    """Options of ``scale``."""

    by: float = 2.0


def scale(cfg: ScaleConfig, inputs: Inputs, ctx: Context) -> StageResult:
    CALLS.append(f"scale {cfg.by}")
    ctx.progress.say(f"scaled by {cfg.by}")
    return _write(ctx, read(one(inputs, "number").path) * cfg.by)


SCALE = Stage("scale", ScaleConfig, scale, {"number": Need("number")}, {"number": "number"})


def pair(cfg: ScaleConfig, inputs: Inputs, ctx: Context) -> StageResult:
    CALLS.append("pair")
    return _write(ctx, read(one(inputs, "left").path) + read(one(inputs, "right").path))


PAIR = Stage(
    "pair",
    ScaleConfig,
    pair,
    {"left": Need("number"), "right": Need("number")},
    {"number": "number"},
)


def liar(cfg: ScaleConfig, inputs: Inputs, ctx: Context) -> StageResult:
    return StageResult({"other": ctx.workdir}, {})


LIAR = Stage("liar", ScaleConfig, liar, {}, {"number": "number"})


def outside(cfg: ScaleConfig, inputs: Inputs, ctx: Context) -> StageResult:
    return StageResult({"number": Path(__file__)}, {})


OUTSIDE = Stage("outside", ScaleConfig, outside, {}, {"number": "number"})


def infinite(cfg: ScaleConfig, inputs: Inputs, ctx: Context) -> StageResult:
    result = _write(ctx, 1.0)
    return StageResult(result.outputs, {"m": Metric(float("inf"), "x", "higher")})


INFINITE = Stage("infinite", ScaleConfig, infinite, {}, {"number": "number"})


HERE: set[str] = {"wood"}


class PickyConfig(ScaleConfig):
    """Options of ``picky``."""

    wants: str = "wood"


def _picky(cfg: PickyConfig, device: str) -> None:
    if cfg.wants not in HERE:
        raise MissingError(f"wants: no {cfg.wants} here")


PICKY = Stage(
    "picky", PickyConfig, scale, {"number": Need("number")}, {"number": "number"}, check=_picky
)
