"""What ``train`` and ``distill`` tell the engine about the network they introduce. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from compressor.core.types import Inputs, ModelSpec, one
from compressor.models import ModelConfig, model_spec
from compressor.training.options import TrainOptions


class NetworkOptions(TrainOptions):
    """One training run of a network that the config names.

    Attributes:
        model: Which network, its own arguments, and weights to start from. With ``epochs: 0``
            such weights are taken as they are: a network that was trained elsewhere.
    """

    model: ModelConfig


def spec(cfg: NetworkOptions, inputs: Inputs) -> ModelSpec:
    """The network for the classes and shapes of the dataset."""
    from compressor.data import dataset

    return model_spec(cfg.model, dataset.load(one(inputs, "data").path))


def externals(cfg: NetworkOptions) -> Sequence[Path]:
    """The file of weights, if there is one."""
    return cfg.model.externals()


def code(cfg: NetworkOptions) -> Sequence[str]:
    """The network's function."""
    return [cfg.model.factory()]
