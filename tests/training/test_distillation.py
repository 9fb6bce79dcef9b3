"""The teacher: frozen, in eval mode, on the very same tensor, and absent where it has no say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from compressor.core.errors import ConfigError
from compressor.core.types import Context, ModelSpec
from compressor.data.batches import Augment, batches
from compressor.data.dataset import Dataset
from compressor.training.distillation import check, distillation
from compressor.training.loop import fit_
from compressor.training.losses import task_loss
from compressor.training.options import DistillOptions, TrainOptions
from compressor.training.tensors import TensorBatch
from tests.training.conftest import same, tiny_net, weights

OPTIONS = TrainOptions(epochs=2, batch_size=16, augment=Augment(pad_crop=1, flip=False))
MakeContext = Callable[..., Context]


class Refuses(nn.Module):
    """A teacher that must not be run."""

    def forward(self, *inputs: Tensor) -> Tensor:
        raise AssertionError("the teacher was run")


def test_teacher_is_bit_identical_in_eval_mode_and_without_gradients_after_training(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    teacher = tiny_net(seed=1, width=8).train()
    before = weights(teacher)
    fit_(tiny_net(), data, spec, OPTIONS, context(), loss=distillation(teacher, DistillOptions()))
    assert same(before, weights(teacher))  # norm statistics and their counters included
    assert not any(m.training for m in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_without_weight_the_teacher_is_not_run_and_training_is_that_on_labels(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    options = DistillOptions(kd_weight=0)
    assert options.ce_weight == 1
    control, plain = tiny_net(), tiny_net()
    fit_(control, data, spec, OPTIONS, context("a"), loss=distillation(Refuses(), options))
    fit_(plain, data, spec, OPTIONS, context("b"))
    assert same(weights(control), weights(plain))


def test_teacher_sees_the_very_tensor_that_the_student_is_trained_on(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    student, teacher = tiny_net(), tiny_net(seed=1, width=8)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {"student": [], "teacher": []}

    def spy(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if name == "teacher" or module.training:  # not while validating
                seen[name].append((inputs[0], inputs[0].detach().clone()))

        return hook

    student.register_forward_pre_hook(spy("student"))
    teacher.register_forward_pre_hook(spy("teacher"))
    augment = Augment(pad_crop=1, flip=True, mixup=0.4)
    options = OPTIONS.model_copy(update={"augment": augment})
    fit_(student, data, spec, options, context(), loss=distillation(teacher, DistillOptions()))
    assert len(seen["teacher"]) == len(seen["student"]) == 10
    for (given, then), (taught, seen_then) in zip(*seen.values(), strict=True):
        assert taught is given
        assert torch.equal(seen_then, then)  # nor was it changed in between
    plain = batches(data.split("train"), data.inputs, 16, shuffle=True, drop_last=True)
    stored = torch.from_numpy(next(plain).inputs["image"])
    assert not torch.equal(seen["teacher"][0][1], stored)  # augmented, or nothing was shown


def test_what_the_teacher_says_is_paired_with_the_labels_of_the_same_samples(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    teacher = tiny_net(seed=1, width=8)
    fit_(teacher, data, spec, OPTIONS.model_copy(update={"epochs": 6}), context("teacher"))
    seen: list[Tensor] = []
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(output))
    listen = distillation(teacher, DistillOptions())
    right: list[float] = []

    def spied(outputs: Tensor, batch: TensorBatch) -> Tensor:
        value = listen(outputs, batch)
        right.append((seen[-1].argmax(1) == batch.labels).float().mean().item())
        return value

    fit_(tiny_net(), data, spec, OPTIONS, context("student"), loss=spied)
    # Rows paired with the labels of other samples would agree by chance, a third of the time.
    assert sum(right) / len(right) >= 0.8
    assert len(seen) == len(right) == 10


@pytest.mark.parametrize("loss", ["kd", "dkd", "dist"])
def test_every_distance_pulls_the_student_towards_the_teacher(
    loss: str, data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    teacher = tiny_net(seed=1, width=8)
    fit_(teacher, data, spec, OPTIONS, context("teacher"))
    listen = distillation(teacher, DistillOptions(loss=loss, ce_weight=0.0))
    options = TrainOptions(epochs=8, batch_size=16, lr=0.02)
    fit = fit_(tiny_net(), data, spec, options, context("student"), loss=listen)
    assert fit.history[-1]["loss"] < 0.5 * fit.history[0]["loss"]


def test_weights_add_up() -> None:
    teacher = nn.Linear(4, 3)
    batch = TensorBatch((torch.randn(5, 4),), torch.tensor([0, 1, 2, 0, 1]))
    outputs = torch.randn(5, 3)

    def value(kd: float, ce: float) -> float:
        return distillation(teacher, DistillOptions(kd_weight=kd, ce_weight=ce))(
            outputs, batch
        ).item()

    assert value(0.9, 0.1) == pytest.approx(0.9 * value(1, 0) + 0.1 * value(0, 1), rel=1e-5)
    assert value(0, 1) == task_loss("classification")(outputs, batch).item()


def test_regression_distance_is_the_mean_squared_error_to_the_teacher() -> None:
    teacher = nn.Linear(4, 1)
    x, outputs = torch.randn(5, 4), torch.randn(5, 1)
    loss = distillation(teacher, DistillOptions(kd_weight=1, ce_weight=0), task="regression")
    value = loss(outputs, TensorBatch((x,), torch.zeros(5)))
    torch.testing.assert_close(value, (outputs - teacher(x)).square().mean())


def test_a_teacher_of_other_classes_is_refused_with_both_shapes() -> None:
    loss = distillation(nn.Linear(4, 5), DistillOptions())
    with pytest.raises(ConfigError, match=r"\[2, 5\].*\[2, 3\]"):
        loss(torch.zeros(2, 3), TensorBatch((torch.zeros(2, 4),), torch.tensor([0, 1])))


def test_combinations_without_meaning_are_refused() -> None:
    dkd = DistillOptions(loss="dkd")
    mixup = TrainOptions(augment=Augment(mixup=0.2))
    with pytest.raises(ConfigError) as caught:
        check(dkd, mixup, "classification", 2)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="regression"):
        check(DistillOptions(loss="dist"), TrainOptions(), "regression", 0)
    check(dkd, TrainOptions(), "classification", 3)
    with pytest.raises(ValidationError, match="both 0"):
        DistillOptions(kd_weight=0, ce_weight=0)


@pytest.mark.parametrize(
    ("given", "kd", "ce"),
    [
        ({}, 0.9, 0.1),
        ({"kd_weight": 0.5}, 0.5, 0.5),
        ({"kd_weight": 9}, 9, 0),
        ({"loss": "dist"}, 2, 1),
        ({"loss": "dkd"}, 1, 1),
        ({"ce_weight": 0.3}, 0.9, 0.3),
    ],
)
def test_weights_default_by_loss(given: dict[str, object], kd: float, ce: float) -> None:
    options = DistillOptions.model_validate(given)
    assert (options.kd_weight, options.ce_weight) == (kd, ce)
