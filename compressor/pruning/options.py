"""What pruning is told. Importing this loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from compressor.training.options import DistillOptions, TrainOptions

_TARGETS = {
    "channels": ("target_macs", "target_params", "ratio"),
    "weights": ("sparsity",),
}
# Options that only one method reads; another value than the default would be lost in silence.
_ONLY = {
    "round_to": "channels",
    "importance": "channels",
    "max_ratio": "channels",
    "steps": "channels",
    "schedule": "weights",
}
_ADAMW_LR = 5e-4


class FineTune(TrainOptions):
    """Training after pruning: a new optimizer and a learning rate rewound to half of a usual peak.

    Rewinding the rate beats fine-tuning at the last, low one (Renda 2020, arXiv 2003.02389).
    """

    epochs: int = Field(8, ge=0)
    lr: float = Field(0.05, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _rewound_lr_of_optimizer(cls, values: Any) -> Any:
        """Half of a usual peak for ``adamw`` too; made concrete, so that the key has it."""
        if isinstance(values, dict) and values.get("optimizer") == "adamw":
            return {"lr": _ADAMW_LR, **values}
        return values


class PruneOptions(DistillOptions):
    """Options of ``prune``. The inherited ones speak to the teacher and need one.

    Attributes:
        method: ``channels`` removes whole channels: fewer MACs, faster everywhere. ``weights``
            zeroes single weights: a smaller compressed file, the same latency.
        target_macs: Fraction of multiply-accumulates that stays. Exactly one target is given.
        target_params: Fraction of parameters that stays.
        ratio: Fraction of channels that goes, of those in groups that can be cut.
        sparsity: For ``weights``: fraction of the weights of convolutions and linear layers that
            becomes 0.
        scope: ``global`` ranks everything together; ``local`` takes the same fraction everywhere
            (and, for ``weights``, spares the first and the last layer).
        round_to: Kept widths are multiples of it, in groups that are cut; kernels like that.
        importance: ``l2``, or ``random`` as the control.
        max_ratio: Largest fraction of a group that goes.
        steps: Prune and fine-tune in so many rounds, each of ``finetune.epochs``. 1 is right down
            to half of the MACs; 3 to 5 help below a quarter.
        schedule: For ``weights``: ``cubic`` grows the zeros over the first 60 % of fine-tuning,
            ``one_shot`` sets them all before it.
        recalibrate_batches: Training batches for new normalisation statistics; 0 is none.
        finetune: Training afterwards; null leaves the accuracy of surgery, which is poor.
    """

    method: Literal["channels", "weights"] = "channels"
    target_macs: float | None = Field(None, gt=0, le=1)
    target_params: float | None = Field(None, gt=0, le=1)
    ratio: float | None = Field(None, ge=0, lt=1)
    sparsity: float | None = Field(None, ge=0, lt=1)
    scope: Literal["global", "local"] = "global"
    round_to: int = Field(8, ge=1)
    importance: Literal["l2", "random"] = "l2"
    max_ratio: float = Field(0.8, gt=0, lt=1)
    steps: int = Field(1, ge=1)
    schedule: Literal["cubic", "one_shot"] = "cubic"
    recalibrate_batches: int = Field(100, ge=0)
    finetune: FineTune | None = FineTune()

    @model_validator(mode="after")
    def _one_target(self) -> PruneOptions:
        """Exactly one target, of the method's own, and nothing that would be ignored."""
        known = _TARGETS[self.method]
        given = [
            name for names in _TARGETS.values() for name in names if getattr(self, name) is not None
        ]
        if len(given) != 1 or given[0] not in known:
            raise ValueError(
                f"method: {self.method} takes exactly one of {', '.join(known)}; "
                f"got {', '.join(given) if given else 'none'}"
            )
        fields: dict[str, Any] = dict(type(self).model_fields)
        for name, method in _ONLY.items():
            if method != self.method and getattr(self, name) != fields[name].default:
                raise ValueError(f"{name} belongs to method: {method}, not {self.method}")
        return self

    @model_validator(mode="after")
    def _fine_tuning(self) -> PruneOptions:
        if self.steps > 1 and self.finetune is None:
            raise ValueError("steps: several rounds fine-tune in between; give finetune")
        tuned = self.finetune
        gradual = self.method == "weights" and self.schedule == "cubic"
        if gradual and tuned is not None and tuned.patience is not None:
            raise ValueError(
                "finetune.patience: the best epoch may lie before schedule: cubic has reached "
                "its sparsity; leave patience out, or use schedule: one_shot"
            )
        return self

    @property
    def target(self) -> tuple[str, float]:
        """Name and value of the one target that is given."""
        names = _TARGETS[self.method]
        return next((n, v) for n in names if (v := getattr(self, n)) is not None)
