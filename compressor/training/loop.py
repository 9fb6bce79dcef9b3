"""The one training loop: teachers, students, fine-tuning, quantization-aware training.

What a step does depends on (seed, step) and the weights alone: order and augmentation come from
``data.batches``, torch's generators are seeded anew for each step, and the learning rate is a
function of the step. So a run that was killed and goes on from a checkpoint gives, on the CPU in
fp32 with the same threads, the bytes of a run that was not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from compressor.core.errors import ConfigError
from compressor.core.locks import MACHINE
from compressor.core.types import Context, ModelSpec
from compressor.data.dataset import Dataset
from compressor.training import distributed
from compressor.training.losses import LossFunction, task_loss
from compressor.training.options import TrainOptions
from compressor.training.outcome import Fit, steps_per_epoch, total_steps
from compressor.training.run import Run
from compressor.training.signals import termination
from compressor.training.tensors import seeded, threads

__all__ = ["Fit", "fit_", "steps_per_epoch", "total_steps"]


def fit_(
    model: nn.Module,
    data: Dataset,
    spec: ModelSpec,
    options: TrainOptions,
    ctx: Context,
    *,
    loss: LossFunction | None = None,
    after_step: Callable[[int], None] | None = None,
    after_step_state: Mapping[str, Tensor] | None = None,
    label: str = "train",
) -> Fit:
    """Train ``model`` in place; goes on by itself from a checkpoint in ``ctx.resume``.

    Ends with the model on the CPU in eval mode, holding the last weights, or the moving average
    with ``ema``, or those of the best epoch with ``patience``.

    Args:
        model: Takes the inputs of ``spec`` in their order.
        data: Trained on ``train``, validated on ``val`` after each epoch.
        spec: Names the inputs and the task.
        options: How.
        ctx: Seed, device, threads, progress, and where checkpoints go (``ctx.resume / label``).
        loss: (outputs [b, ...], batch) -> scalar; by default the task's loss on the labels.
        after_step: Called with the number of steps taken so far, after the weights have moved and
            before they are averaged. Changes tensors in place only.
        after_step_state: Tensors of ``after_step`` that are saved with each checkpoint and
            restored in place.
        label: Tells several runs of one stage apart.

    Raises:
        ConfigError: The options do not fit the device or the data.
        MissingError: No such device.
        DivergedError: The loss or a validation output stopped being finite.
        SystemExit: 143 after SIGTERM, once the step is finished and a checkpoint is saved.
    """
    if options.precision == "bf16" and not ctx.device.startswith("cuda"):
        raise ConfigError(
            f"{label}.precision: bf16 needs CUDA, this run is on {ctx.device}; "
            "use precision: fp32, or --device cuda"
        )
    with contextlib.ExitStack() as stack:
        world = stack.enter_context(distributed.joined(ctx.device))
        stack.enter_context(MACHINE.share())
        stack.enter_context(threads(ctx.threads))
        stack.enter_context(seeded(ctx.seed, world.device))
        asked = stack.enter_context(termination())
        criterion = loss or task_loss(spec.task, options.label_smoothing)
        run = Run(model, data, spec, options, ctx, world, asked, criterion, label)
        return run.go(after_step, after_step_state or {})
