"""The steps of one call of ``loop.fit_``, in the order in which they happen."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.core.errors import ConfigError, DivergedError
from compressor.core.hashing import digest_json
from compressor.core.tasks import Task
from compressor.core.tasks import task as find_task
from compressor.core.types import Context, ModelSpec
from compressor.data.batches import Batch, batches
from compressor.data.dataset import Dataset
from compressor.training import distributed, optimizers
from compressor.training.distributed import World
from compressor.training.evaluate import Interrupted, evaluate, score
from compressor.training.losses import LossFunction
from compressor.training.options import TrainOptions
from compressor.training.outcome import Fit, steps_per_epoch, total_steps
from compressor.training.schedules import lr_factor, warmup_steps
from compressor.training.signals import EXIT_TERMINATED
from compressor.training.state import Checkpoints, Counters
from compressor.training.tensors import step_seed, to_tensors
from compressor.training.weights import Weights

# Reading the loss waits for the GPU; every 50th step costs nothing that can be seen.
_CUDA_CHECK = 50


class Run:
    """One call of ``fit_``: its objects, and the steps in the order in which they happen."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        spec: ModelSpec,
        options: TrainOptions,
        ctx: Context,
        world: World,
        asked: Callable[[], bool],
        loss: LossFunction,
        label: str,
    ) -> None:
        self.model, self.data, self.spec, self.options = model, data, spec, options
        self.ctx, self.world, self.asked, self.label = ctx, world, asked, label
        self.loss = loss
        self.task: Task = find_task(spec.task)
        self.train, self.val = data.split("train"), data.split("val")
        if not len(self.train) or not len(self.val):
            raise ConfigError(
                f"{label}: the dataset has {len(self.train)} train and {len(self.val)} val samples;"
                " give at least 1 of each"
            )
        self.per_process = world.share(options.batch_size)
        self.epoch_steps = steps_per_epoch(data, options)
        self.total = total_steps(data, options)
        self.warmup = warmup_steps(self.total, self.epoch_steps, options.warmup_epochs)
        self.counters = Counters()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)

    def go(self, after_step: Callable[[int], None] | None, caller: Mapping[str, Tensor]) -> Fit:
        """Train, and leave the model with the weights to keep."""
        if self.options.epochs:
            self.after_step = after_step
            self.weights = Weights(self.model, self.options, self.world.device, caller)
            self.checkpoints = Checkpoints(
                self.ctx.resume / self.label, self._identity(), self.ctx.progress.say
            )
            distributed.spread_(self.weights.live, self.world)
            self._resume_()
            self.forward = distributed.averaging(self.model, self.world)
            while not self._finished():
                self._train_epoch()
                self._close_epoch()
            self.weights.finish_()
            distributed.spread_(self.weights.live, self.world)
            score = self._final_score()
        else:
            score = self._validate(contextlib.nullcontext())
        self.model.to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.model.eval()
        return Fit(
            history=tuple(self.counters.history),
            best_epoch=self.counters.best_epoch,
            steps=self.counters.step,
            score=score,
            stopped_early=len(self.counters.history) < self.options.epochs,
        )

    def _finished(self) -> bool:
        patience = self.options.patience
        worn_out = patience is not None and self.counters.stale >= patience
        return worn_out or len(self.counters.history) >= self.options.epochs

    def _final_score(self) -> float:
        best = self.counters.best_score
        if self.options.patience is not None and best is not None:
            return best
        return self.counters.history[-1]["score"]

    def _train_epoch(self) -> None:
        """Take the steps of the present epoch that have not been taken yet."""
        epoch = len(self.counters.history)
        self.forward.train()
        rows = batches(
            self.train,
            self.spec.inputs,
            self.per_process,
            seed=self.ctx.seed,
            epoch=epoch,
            shuffle=True,
            augment=self.options.augment,
            drop_last=len(self.train) >= self.options.batch_size,
            start=self.counters.step - epoch * self.epoch_steps,
            rank=self.world.rank,
            world=self.world.size,
        )
        for batch in rows:
            self._step(batch)
            self._after_step()

    def _step(self, batch: Batch) -> None:
        """One forward, backward and update."""
        step, options = self.counters.step, self.options
        torch.manual_seed(step_seed(self.ctx.seed, step + 1, self.world.rank))
        optimizers.set_lr_(self.weights.optimizer, self._lr(step))
        tensors = to_tensors(batch, self.spec.inputs, self.world.device, options.channels_last)
        with torch.autocast(
            self.world.device.type, torch.bfloat16, enabled=options.precision == "bf16"
        ):
            outputs = self.forward(*tensors.inputs)
            loss = self.loss(outputs.float(), tensors)
        self.weights.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if options.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), options.grad_clip)
        self.loss_sum += loss.detach()
        self.weights.optimizer.step()
        self.counters.step = step + 1

    def _after_step(self) -> None:
        """Hooks, average, the look at the loss, and a checkpoint where one is due."""
        step = self.counters.step
        if self.after_step is not None:
            self.after_step(step)
        if self.weights.average is not None:
            self.weights.average.update_(step)
        in_epoch = step - len(self.counters.history) * self.epoch_steps
        last = in_epoch == self.epoch_steps
        if self.world.device.type == "cpu" or last or step % _CUDA_CHECK == 0:
            self._look(in_epoch)
        if self.asked() and self.world.rank == 0:
            self._leave()
        every = self.options.checkpoint_steps
        if every is not None and step % every == 0 and not last:
            self._save()

    def _look(self, in_epoch: int) -> None:
        """Read the epoch's mean loss, refuse what is not finite, and report it."""
        mean = self.loss_sum.item() / max(1, in_epoch)
        if not np.isfinite(mean):
            self._diverged("the loss", mean)
        if self.world.rank == 0:
            history = self.counters.history
            unit = "%" if self.task.unit == "%" else ""
            val = f", val {history[-1]['score']:.2f}{unit}" if history else ""
            note = f"epoch {len(history) + 1}/{self.options.epochs}, loss {mean:.4f}{val}"
            self.ctx.progress.update(self.counters.step, self.total, note)

    def _diverged(self, what: str, value: float) -> NoReturn:
        step = self.counters.step
        lr = self._lr(max(0, step - 1))
        late = f" or up to {_CUDA_CHECK} steps before" if self.world.device.type != "cpu" else ""
        raise DivergedError(
            f"{self.label}: {what} is {value} at step {step} of {self.total}{late} (epoch "
            f"{len(self.counters.history) + 1}), learning rate {lr:.3g}. Try lr: "
            f"{self.options.lr / 4:.3g}, grad_clip: 1.0 or a longer warmup_epochs; if it happens "
            "at the first steps, look for values that are not finite in the data."
        )

    def _close_epoch(self) -> None:
        """Validate, remember the best, write the history, save."""
        counters = self.counters
        value = self._validate(self.weights.kept_in_model())
        sign = 1.0 if self.task.better == "higher" else -1.0
        if counters.best_score is None or sign * value > sign * counters.best_score:
            counters.best_score, counters.best_epoch = value, len(counters.history) + 1
            counters.stale = 0
            if self.options.patience is not None:
                self.weights.remember_best_()
        else:
            counters.stale += 1
        counters.history.append(
            {
                "epoch": len(counters.history) + 1,
                "loss": self.loss_sum.item() / self.epoch_steps,
                "score": value,
                "lr": self._lr(counters.step - 1),
            }
        )
        self.loss_sum.zero_()
        self._save()
        if self.asked() and self.world.rank == 0:
            raise SystemExit(EXIT_TERMINATED)

    def _validate(self, kept: AbstractContextManager[None]) -> float:
        """The score on val of the weights that would be kept, agreed by all processes."""
        value = 0.0
        if self.world.rank == 0:
            with kept:
                outputs = self._outputs()
            if outputs is None:
                self._leave()
            if not np.isfinite(outputs).all():
                bad = outputs[~np.isfinite(outputs)][0]
                self._diverged("an output on the validation split", float(bad))
            value = score(outputs, self.val.labels, self.task)
        return distributed.agree(value, self.world)

    def _outputs(self) -> NDArray[np.float32] | None:
        """Of the model on val; None if SIGTERM came meanwhile."""
        try:
            return evaluate(self.model, self.data, "val", device=self.world.device, stop=self.asked)
        except Interrupted:
            return None

    def _lr(self, step: int) -> float:
        options = self.options
        if not self.total:
            return options.lr
        return options.lr * lr_factor(step, self.total, self.warmup, options.schedule)

    def _identity(self) -> str:
        """Digest of what a checkpoint must have been made with to be ours."""
        return digest_json(
            {
                "options": self.options.model_dump(mode="json"),
                "data": self.data.fingerprint,
                "spec": asdict(self.spec),
                "tensors": {n: [str(v.dtype), *v.shape] for n, v in self.weights.live.items()},
                "seed": self.ctx.seed,
                "device": self.world.device.type,
                "threads": self.ctx.threads,
                "processes": self.world.size,
            }
        )

    def _leave(self) -> NoReturn:
        if self.counters.step:
            self._save()
        raise SystemExit(EXIT_TERMINATED)

    def _save(self) -> None:
        if self.world.rank:
            return
        self.counters.loss_sum = self.loss_sum.item()
        self.checkpoints.save(self.weights.tensors(), self.counters)

    def _resume_(self) -> None:
        """Take up the newest whole checkpoint, if there is one: the same one in every process."""
        found = self.checkpoints.load() if self.world.rank == 0 else None
        step = int(distributed.agree(found[1].step if found else -1, self.world))
        if self.world.rank and step >= 0:
            found = self.checkpoints.load()
            if found is None or found[1].step != step:
                raise ConfigError(
                    f"{self.label}: process {self.world.rank} cannot read the checkpoint of step "
                    f"{step} in {self.ctx.resume}; give all machines one shared folder (--store)"
                )
        if found is None:
            return
        tensors, self.counters = found
        self.loss_sum.fill_(self.counters.loss_sum)
        self.weights.restore_(tensors)
