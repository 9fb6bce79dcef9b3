"""Stage ``data``: read a dataset, check it, split it, measure its normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from compressor.core.config import Config
from compressor.core.errors import ConfigError
from compressor.core.resolve import reference
from compressor.core.types import DATASET, Context, Inputs, Metric, Stage, StageResult


class DataConfig(Config):
    """Which dataset, and how it is split.

    ``val`` and ``test`` are fractions, used where the dataset has no such split of its own.
    """

    dataset: str = Field(description="a known name, or package.module:function of your own")
    root: Path | None = Field(None, description="folder (for arrays: the .npz file) of the data")
    download: bool = Field(False, description="fetch with torchvision what is missing in root")
    val: float = Field(0.1, gt=0, lt=1, description="fraction of train that becomes val")
    test: float = Field(0.2, gt=0, lt=1, description="fraction that becomes test")
    calibration: int = Field(512, ge=1, description="samples of train for calibration")
    limit: int | None = Field(None, ge=1, description="at most this many in train, val and test")
    train_limit: int | None = Field(None, ge=1, description="as limit, for train alone")
    options: dict[str, Any] = Field({}, description="the dataset's own arguments")

    @model_validator(mode="after")
    def _options(self) -> DataConfig:
        from compressor.data.catalog import resolve_options

        try:
            filled = resolve_options(self.dataset, self.root, self.download, self.options)
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from error
        self.options.update(filled)
        return self


def files(config: DataConfig) -> Sequence[Path]:
    """What the dataset will read. Raises ConfigError if it is not there."""
    from compressor.data import catalog

    return catalog.files(config.dataset, config.root, config.download)


def code(config: DataConfig) -> Sequence[str]:
    """The dataset function, ours or the user's."""
    from compressor.data.catalog import DATASETS

    return (reference(config.dataset, DATASETS, "dataset"),)


def run(config: DataConfig, inputs: Inputs, ctx: Context) -> StageResult:
    """Write the dataset folder."""
    from compressor.data.catalog import read
    from compressor.data.prepare import prepare, summary

    data = prepare(
        read(config.dataset, config.root, config.download, config.options),
        ctx.workdir / "data",
        seed=ctx.seed,
        val=config.val,
        test=config.test,
        calibration=config.calibration,
        limit=config.limit,
        train_limit=config.train_limit,
    )
    counts = summary(data)
    if counts["duplicates_train_test"]:
        ctx.progress.say(
            f"{data.name}: {counts['duplicates_train_test']} of {counts['test']} test samples "
            "also occur in train or val; their accuracy says little"
        )
    metrics = {
        name: Metric(float(n), "count", "lower" if "duplicates" in name else "higher")
        for name, n in counts.items()
    }
    return StageResult({"data": data.path}, metrics)


DATA = Stage("data", DataConfig, run, needs={}, makes={"data": DATASET}, externals=files, code=code)
