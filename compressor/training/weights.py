"""Everything of a run that is a tensor: the live weights, their average, the best, the slots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from compressor.training.optimizers import Average, make_optimizer, restore_slots_, slots
from compressor.training.options import TrainOptions


def snapshot(live: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every tensor."""
    return {name: value.detach().clone() for name, value in live.items()}


@torch.no_grad()
def restore_(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Overwrite every tensor of ``live`` in place by the one of the same name."""
    for name, value in live.items():
        value.copy_(saved[name])


class Weights:
    """References into a model and its optimizer; everything here changes in place.

    Attributes:
        live: The model's state, parameters and buffers.
        average: Their moving average, with ``ema``.
        best: Copy of what was kept when the validation score was best, with ``patience``.
        caller: Tensors of ``after_step``, see ``fit_``.
        optimizer: The optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        options: TrainOptions,
        device: torch.device,
        caller: Mapping[str, Tensor],
    ) -> None:
        """Move the model to the device and lay it out in memory; then refer to its tensors."""
        # torch knows NHWC for four dimensions only and refuses a 3-D convolution's five.
        flat = all(p.ndim != 5 for p in model.parameters())
        nhwc = options.channels_last and flat
        layout = torch.channels_last if nhwc else torch.contiguous_format
        model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
        self.live = {n: v for n, v in model.state_dict().items() if isinstance(v, Tensor)}
        self.average = Average(self.live, options.ema) if options.ema else None
        self.best: dict[str, Tensor] = {}
        self.caller = dict(caller)
        self.optimizer = make_optimizer(model, options)

    def kept(self) -> Mapping[str, Tensor]:
        """What would be kept if the run ended now: the average, if there is one."""
        return self.live if self.average is None else self.average.tensors

    def remember_best_(self) -> None:
        """Copy what would be kept now."""
        self.best = snapshot(self.kept())

    @contextlib.contextmanager
    def kept_in_model(self) -> Iterator[None]:
        """Run the block with :meth:`kept` in the model, then put the live weights back."""
        if self.average is None:
            yield
            return
        present = snapshot(self.live)
        restore_(self.live, self.average.tensors)
        try:
            yield
        finally:
            restore_(self.live, present)

    def finish_(self) -> None:
        """Leave the model with the weights to keep."""
        if self.best:
            restore_(self.live, self.best)
        elif self.average is not None:
            restore_(self.live, self.average.tensors)

    def tensors(self) -> dict[str, Tensor]:
        """Everything, under one flat name each, for a checkpoint."""
        parts = {
            "model": self.live,
            "optimizer": slots(self.optimizer),
            "ema": self.average.tensors if self.average else {},
            "best": self.best,
            "caller": self.caller,
        }
        return {f"{part}.{n}": v for part, group in parts.items() for n, v in group.items()}

    def restore_(self, saved: Mapping[str, Tensor]) -> None:
        """Put the tensors of :meth:`tensors` back."""
        restore_(self.live, _part("model", saved))
        restore_slots_(self.optimizer, _part("optimizer", saved))
        if self.average is not None:
            restore_(self.average.tensors, _part("ema", saved))
        if best := _part("best", saved):
            self.best = snapshot(self.live)
            restore_(self.best, best)
        restore_(self.caller, _part("caller", saved))


def _part(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cut = len(name) + 1
    return {n[cut:]: v for n, v in tensors.items() if n.startswith(name + ".")}
