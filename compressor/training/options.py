"""What a training run is told. Importing this loads no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from compressor.core.config import Config
from compressor.data.batches import Augment

# AdamW's step is normalised, so a rate that suits SGD would throw the weights away; its decay is
# decoupled, so it needs about a hundred times SGD's number for the same pull.
_ADAMW = {"lr": 1e-3, "weight_decay": 0.05}

# Weight of the teacher: Hinton's KD as in RepDistiller (0.9 soft, 0.1 labels); DIST as in its
# CIFAR configs (labels 1, relations 2); DKD as in mdistiller (labels 1, decoupled 1).
_KD_WEIGHT = {"kd": 0.9, "dkd": 1.0, "dist": 2.0}


class TrainOptions(Config):
    """One training run.

    The defaults train a small residual network on small images: Nesterov SGD, a peak rate of 0.1
    at batch 128, one epoch of linear warm-up, then a cosine to almost 0.

    Attributes:
        epochs: Passes over the training split; 0 keeps the weights as they are.
        batch_size: Samples per optimizer step, over all processes. The last, smaller batch of an
            epoch is left out (another one each epoch), except where it is the only one.
        optimizer: ``sgd`` (Nesterov) or ``adamw``.
        lr: Peak learning rate; 0.1 for ``sgd``, 0.001 for ``adamw``.
        momentum: Of ``sgd``.
        weight_decay: On weights only, never on norms and biases; 0.0005 for ``sgd``, 0.05 for
            ``adamw`` (decoupled).
        warmup_epochs: Linear warm-up, at most half of the run; may be a fraction.
        schedule: After the warm-up, per step.
        label_smoothing: In ``[0, 1)``. Leave it at 0 for a network that will teach at a high
            temperature: smoothing erases what a teacher knows about the wrong classes.
        grad_clip: Largest norm of the whole gradient; 0 is off.
        ema: Decay of the exponential moving average of weights and norm statistics, e.g. 0.999;
            0 is off. The average is what is validated and kept.
        channels_last: Keep images and convolution weights as NHWC in memory.
        precision: ``bf16`` is autocast on CUDA only; weights stay fp32.
        patience: Stop after so many epochs without a better validation score, and keep the best
            epoch's weights; None runs to the end and keeps the last.
        augment: Crops, flips and mixup.
        checkpoint_steps: Save a resumable checkpoint every so many steps, besides the one per
            epoch and the one on SIGTERM.
    """

    epochs: int = Field(15, ge=0)
    batch_size: int = Field(128, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    warmup_epochs: float = Field(1.0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    grad_clip: float = Field(0.0, ge=0)
    ema: float = Field(0.0, ge=0, lt=1)
    channels_last: bool = True
    precision: Literal["fp32", "bf16"] = "fp32"
    patience: int | None = Field(None, ge=1)
    augment: Augment = Augment()
    checkpoint_steps: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_optimizer(cls, values: Any) -> Any:
        """Make the defaults that depend on the optimizer concrete, so that the key has them."""
        if isinstance(values, dict) and values.get("optimizer") == "adamw":
            return {**_ADAMW, **values}
        return values


class DistillOptions(Config):
    """How a student listens to its teacher.

    The loss is ``ce_weight * cross-entropy(labels) + kd_weight * distance(teacher)``. With
    ``kd_weight: 0`` the teacher is not run and ``ce_weight`` is 1: the labels-only control.

    Attributes:
        loss: ``kd`` (Hinton 2015), ``dkd`` (Zhao 2022, decoupled) or ``dist`` (Huang 2022,
            relations); for regression only ``kd``, which is the squared distance to the teacher.
        temperature: Divides both networks' logits; the distance is multiplied by its square, so
            that gradients keep their scale. 2 to 4 suits 10 classes and small students.
        kd_weight: Weight of the teacher; 0.9 for ``kd``, 1 for ``dkd``, 2 for ``dist``.
        ce_weight: Weight of the labels; ``1 - kd_weight`` for ``kd`` (not below 0), else 1.
        nckd_weight: Of ``dkd``: weight of the distance among the wrong classes (8 in the paper's
            CIFAR runs; it depends on the pair of networks).
    """

    loss: Literal["kd", "dkd", "dist"] = "kd"
    temperature: float = Field(4.0, gt=0)
    kd_weight: float = Field(0.9, ge=0)
    ce_weight: float = Field(0.1, ge=0)
    nckd_weight: float = Field(8.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_loss(cls, values: Any) -> Any:
        """Make the weights that depend on the loss concrete, so that the key has them."""
        if not isinstance(values, dict):
            return values
        loss = values.get("loss", "kd")
        kd = values.get("kd_weight", _KD_WEIGHT.get(loss, 0.9))
        ce = values.get("ce_weight")
        if ce is None and isinstance(kd, int | float):
            ce = max(0.0, round(1.0 - kd, 12)) if loss == "kd" else 1.0
        return {**values, "kd_weight": kd, "ce_weight": ce}

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillOptions:
        if self.kd_weight == 0 and self.ce_weight == 0:
            raise ValueError("kd_weight and ce_weight are both 0; give at least one above 0")
        return self

    def ignored(self) -> list[str]:
        """Options that speak to a teacher and differ from their defaults: lost without one.

        ``kd_weight: 0`` is not lost, as it asks for no teacher.
        """
        plain = DistillOptions.model_validate(
            {"loss": self.loss, **({} if self.kd_weight else {"kd_weight": 0.0})}
        )
        found = [] if self.loss == "kd" else ["loss"]
        # ce_weight follows kd_weight unless it is given.
        follows = DistillOptions.model_validate({"loss": self.loss, "kd_weight": self.kd_weight})
        for name, usual in (
            ("temperature", plain), ("kd_weight", plain), ("ce_weight", follows),
            ("nckd_weight", plain),
        ):  # fmt: skip
            if getattr(self, name) != getattr(usual, name):
                found.append(name)
        return found


class QatOptions(TrainOptions, DistillOptions):
    """Options of ``qat``: a short training run at a low rate, on quantize's grid.

    The options of :class:`DistillOptions` speak to the teacher and need one. Weight decay is off:
    behind a folded BatchNorm, smaller weights are another function. A tenth of the usual peak rate
    for a few epochs is what quantization-aware fine-tuning takes (Krishnamoorthi 2018, arXiv
    1806.08342, section 3.2; Wu 2020, arXiv 2004.09602, section 6).

    Attributes:
        weight_bits: As of ``quantize``: ``auto`` is the finest grid that is exact on every CPU; 8
            is what its targets ``x86-vnni`` and ``arm64`` use.
        calibrator: As of ``quantize``, and best the same: how activation ranges are chosen, before
            the first step and anew after each epoch.
        percentile: Percent of the values that ``calibrator: percentile`` keeps.
        calibration: Samples of the calibration split; those that ``quantize`` calibrates on.
        precision: fp32 only: bfloat16 rounds coarser than the grid.
    """

    epochs: int = Field(3, ge=0)
    lr: float = Field(0.01, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_epochs: float = Field(0.5, ge=0)
    precision: Literal["fp32"] = "fp32"
    weight_bits: Literal["auto", 7, 8] = "auto"
    calibrator: Literal["minmax", "moving", "percentile", "entropy", "mse"] = "minmax"
    percentile: float = Field(99.99, gt=50, le=100)
    calibration: int = Field(512, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _low_lr_of_optimizer(cls, values: Any) -> Any:
        """A tenth of a usual peak and no decay for ``adamw`` too, made concrete for the key."""
        if isinstance(values, dict) and values.get("optimizer") == "adamw":
            return {"lr": _ADAMW["lr"] / 10, "weight_decay": 0.0, **values}
        return values
