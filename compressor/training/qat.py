"""Quantization-aware fine-tuning: an ordinary network in, an ordinary network out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.core.errors import ConfigError
from compressor.core.tasks import task as find_task
from compressor.core.types import Context, Metric, ModelSpec
from compressor.data.batches import batches
from compressor.data.dataset import Dataset, Split
from compressor.models.construct import evaluating, example_inputs
from compressor.training.evaluate import evaluate, score
from compressor.training.fake_quant import FakeQuantizer, See
from compressor.training.fold import fold_bn_
from compressor.training.loop import fit_, steps_per_epoch
from compressor.training.losses import LossFunction
from compressor.training.options import QatOptions
from compressor.training.tensors import to_tensors

_BATCH = 32


class Replay(Protocol):
    """Shows every quantized tensor of every calibration sample: name, [samples, values]."""

    def __call__(self, see: See, /) -> None:
        """Run the float network once over the calibration samples."""


class Grids(Protocol):
    """Who decides the integers: ``quantization.grids.Grids``, so that the grid is quantize's."""

    def rows(self, count: int) -> NDArray[np.int64]:
        """Which of ``count`` calibration samples calibrate."""

    def activations(self, replay: Replay) -> Mapping[str, tuple[float, int]]:
        """Tensor name to scale and zero point."""

    def weights(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        """Largest magnitude [channels] of the integers of weights [channels, reduction]."""


def qat_(
    model: nn.Module,
    data: Dataset,
    spec: ModelSpec,
    options: QatOptions,
    ctx: Context,
    grids: Grids,
    loss: LossFunction | None = None,
) -> dict[str, Metric]:
    """Fine-tune ``model`` in place under fake quantization; killed and called again, the same.

    BatchNorms are folded first (see :func:`.fold.fold_bn_`) and their statistics stay fixed.
    Activation grids are chosen on the calibration samples, by the float network as ``quantize``
    does, before the first step and after each epoch; weights scale with their present peaks.
    Zeros stay zero, so that a network pruned by weights stays pruned.

    Args:
        model: On the CPU; ends there in evaluation mode, without hooks or wrappers.
        data: For fine-tuning, validation and calibration.
        spec: The model's.
        options: How.
        ctx: Where to resume, and whom to tell.
        grids: Chooses scales.
        loss: By default the task's on the labels.

    Returns:
        Those of :meth:`.outcome.Fit.metrics`, ``val_score`` under fake quantization, and
        ``val_before_finetune``, the same of the network as it came: what ``quantize`` alone gives.

    Raises:
        ConfigError: Fewer calibration samples than asked for, or as :func:`.loop.fit_`.
    """
    samples = _calibration(data, options, grids)
    masks = [(p, p != 0) for p in model.parameters() if p.ndim > 1 and bool((p == 0).any())]
    quantizer = FakeQuantizer(model, fold_bn_(model, example_inputs(spec, 2)))
    task, epoch = find_task(spec.task), steps_per_epoch(data, options)

    @torch.no_grad()
    def after_step(step: int) -> None:
        for weight, kept in masks:
            weight.mul_(kept.to(weight.device))
        if step % epoch == 0:
            _calibrate_(model, quantizer, samples, data, grids)

    with quantizer.attached():
        _calibrate_(model, quantizer, samples, data, grids)
        outputs = evaluate(model, data, "val", device=ctx.device)
        model.to("cpu")
        before = score(outputs, data.split("val").labels, task)
        fit = fit_(
            model, data, spec, options, ctx, loss=loss, label="qat",
            after_step=after_step, after_step_state=quantizer.state,
        )  # fmt: skip
    metrics = fit.metrics(task)
    return {**metrics, "val_before_finetune": Metric(before, task.unit, task.better)}


def _calibration(data: Dataset, options: QatOptions, grids: Grids) -> Split:
    """The samples on which ``quantize`` calibrates with the same options."""
    split = data.split("calibration")
    if len(split) < options.calibration:
        raise ConfigError(
            f"qat.calibration: {options.calibration} samples asked for, the dataset's "
            f"calibration split has {len(split)}; lower it, or give the data stage more"
        )
    return split.take(grids.rows(options.calibration))


def _calibrate_(
    model: nn.Module, quantizer: FakeQuantizer, samples: Split, data: Dataset, grids: Grids
) -> None:
    """Choose all grids anew for the present weights."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def replay(see: See) -> None:
        with evaluating(model), quantizer.observing(see):
            for batch in batches(samples, data.inputs, _BATCH):
                model(*to_tensors(batch, data.inputs, device).inputs)

    activations = grids.activations(replay)
    rows = {name: _rows(weight) for name, weight in quantizer.weights.items()}
    quantizer.set_(activations, {name: grids.weights(w) for name, w in rows.items()})


def _rows(weight: Tensor) -> NDArray[np.float32]:
    """[channels, reduction] on the CPU."""
    rows: NDArray[np.float32] = weight.detach().flatten(1).cpu().contiguous().numpy()
    return rows
