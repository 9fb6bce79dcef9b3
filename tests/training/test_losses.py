"""Distillation losses against the algebra of their papers, in float64 unless said otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compressor.training.losses import (
    correlation,
    cross_entropy,
    dist_loss,
    dkd_loss,
    dkd_parts,
    kd_loss,
    mean_squared_error,
    task_loss,
)
from compressor.training.tensors import TensorBatch

B, C = 6, 5


def logits(seed: int, classes: int = C, samples: int = B, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(samples, classes, generator=generator, dtype=torch.float64)


def batch(labels: Tensor, mixed: tuple[Tensor, Tensor] | None = None) -> TensorBatch:
    return TensorBatch((), labels, mixed)


LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kd_gradient_is_temperature_times_difference_of_probabilities_over_batch(
    temperature: float,
) -> None:
    student = logits(1).requires_grad_()
    teacher = logits(2)
    kd_loss(student, teacher, temperature).backward()
    difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (temperature * difference / B).detach())
    torch.testing.assert_close(
        student.grad.sum(1), torch.zeros(B, dtype=torch.float64), atol=1e-15, rtol=0
    )


def test_kd_is_zero_with_zero_gradient_where_student_equals_teacher() -> None:
    student = logits(1).requires_grad_()
    loss = kd_loss(student, student.detach().clone(), 4.0)
    loss.backward()
    assert abs(loss.item()) < 1e-15
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15


@settings(max_examples=10, deadline=None)
@given(shift=st.floats(-50, 50), which=st.booleans())
def test_kd_ignores_a_constant_added_to_all_logits_of_a_sample(shift: float, which: bool) -> None:
    student, teacher = logits(1), logits(2)
    plain = kd_loss(student, teacher, 3.0)
    moved = kd_loss(student + shift * which, teacher + shift * (not which), 3.0)
    torch.testing.assert_close(moved, plain, atol=1e-10, rtol=0)


def test_kd_at_high_temperature_tends_to_half_squared_distance_of_centred_logits_per_class() -> (
    None
):
    student, teacher = logits(1), logits(2)
    s, t = (z - z.mean(1, keepdim=True) for z in (student, teacher))
    limit = ((s - t) ** 2).sum(1).mean() / (2 * C)
    errors = [abs(kd_loss(student, teacher, T) - limit).item() / limit for T in (1e2, 1e3, 1e4)]
    assert errors[2] < 1e-3
    # The error is O(1/T): each step of ten takes a factor of about ten.
    assert 5 < errors[0] / errors[1] < 20
    assert 5 < errors[1] / errors[2] < 20


def test_kd_with_a_certain_teacher_at_temperature_one_is_cross_entropy() -> None:
    student = logits(1)
    certain = 1e4 * nn.functional.one_hot(LABELS, C).double()
    torch.testing.assert_close(
        kd_loss(student, certain, 1.0), nn.functional.cross_entropy(student, LABELS)
    )


def test_kd_sums_over_classes_and_does_not_average_over_them() -> None:
    student, teacher = logits(1), logits(2)
    mean = nn.functional.kl_div(
        (student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="none"
    ).mean()
    assert kd_loss(student, teacher, 4.0) / (16 * mean) == pytest.approx(C)


def test_kd_gradient_keeps_its_size_when_the_temperature_doubles() -> None:
    sizes = []
    for temperature in (50.0, 100.0):
        student = logits(1).requires_grad_()
        kd_loss(student, logits(2), temperature).backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[1] / sizes[0] == pytest.approx(1.0, rel=0.02)  # without T² it would be 1/4


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_parts_add_up_to_kd(temperature: float) -> None:
    student, teacher = logits(1), logits(2)
    target, rest = dkd_parts(student, teacher, LABELS, temperature)
    wrong = 1 - (teacher / temperature).softmax(1).gather(1, LABELS[:, None])[:, 0]
    together = temperature**2 * (target + wrong * rest).mean()
    torch.testing.assert_close(together, kd_loss(student, teacher, temperature), rtol=1e-12, atol=0)


def test_dkd_among_the_rest_of_two_classes_is_zero() -> None:
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    _, rest = dkd_parts(logits(1, 2), logits(2, 2), labels, 4.0)
    assert torch.equal(rest, torch.zeros(B, dtype=torch.float64))


def test_dkd_weight_scales_the_rest_only() -> None:
    student, teacher = logits(1), logits(2)
    target, rest = dkd_parts(student, teacher, LABELS, 2.0)
    torch.testing.assert_close(
        dkd_loss(student, teacher, LABELS, 2.0, 6.0), 4 * (target.mean() + 6 * rest.mean())
    )


def test_dist_is_zero_at_equality_and_positive_elsewhere() -> None:
    student = logits(1)
    assert abs(dist_loss(student, student.clone(), 4.0).item()) < 1e-12
    assert dist_loss(student, logits(2), 4.0).item() > 0.1


def test_dist_between_classes_equals_within_samples_of_the_transpose() -> None:
    a, b = logits(1), logits(2)
    torch.testing.assert_close(correlation(a, b, dim=1), correlation(a.T, b.T, dim=0))


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_dist_correlation_ignores_scale_and_shift(scale: float, shift: float) -> None:
    a, b = logits(1), logits(2)
    torch.testing.assert_close(correlation(scale * a + shift, b, 1), correlation(a, b, 1))
    torch.testing.assert_close(
        correlation(-a, b, 1), -correlation(a, b, 1)
    )  # so it is not a constant


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    "loss",
    [
        kd_loss,
        lambda s, t, T: dkd_loss(s, t, LABELS, T),
        dist_loss,
        lambda s, t, T: cross_entropy(s, batch(LABELS)),
    ],
    ids=["kd", "dkd", "dist", "ce"],
)
def test_huge_logits_give_finite_losses_and_gradients_in_single_precision(
    loss: Callable[..., Tensor], temperature: float
) -> None:
    student = 1e4 * torch.sign(logits(1)).float()
    student.requires_grad_()
    value = loss(student, -1e4 * torch.sign(logits(3)).float(), temperature)
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda s: kd_loss(s, logits(2), 4.0),
        lambda s: dkd_loss(s, logits(2), LABELS, 4.0, 3.0),
        lambda s: dist_loss(s, logits(2), 4.0),
        lambda s: cross_entropy(s, batch(LABELS), 0.1),
        lambda s: cross_entropy(
            s, batch(LABELS, (LABELS.flip(0), torch.linspace(0, 1, B).double())), 0.1
        ),
    ],
    ids=["kd", "dkd", "dist", "smoothed", "mixed"],
)
def test_gradients_agree_with_finite_differences(loss: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(loss, (logits(1).requires_grad_(),), eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_torch_and_its_definition(smoothing: float) -> None:
    z = logits(1)
    ours = cross_entropy(z, batch(LABELS), smoothing)
    torch.testing.assert_close(
        ours, nn.CrossEntropyLoss(label_smoothing=smoothing)(z, LABELS), rtol=0, atol=0
    )
    wanted = (1 - smoothing) * nn.functional.one_hot(LABELS, C) + smoothing / C
    torch.testing.assert_close(ours, -(wanted * z.log_softmax(1)).sum(1).mean())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixup_loss_is_cross_entropy_against_the_mixed_label(smoothing: float) -> None:
    z, second = logits(1), LABELS.roll(1)
    weight = torch.linspace(0.05, 1, B, dtype=torch.float64)
    soft = weight[:, None] * nn.functional.one_hot(LABELS, C)
    soft = soft + (1 - weight[:, None]) * nn.functional.one_hot(second, C)
    soft = (1 - smoothing) * soft + smoothing / C
    ours = cross_entropy(z, batch(LABELS, (second, weight)), smoothing)
    torch.testing.assert_close(ours, -(soft * z.log_softmax(1)).sum(1).mean())


def test_regression_loss_takes_columns_and_mixes_values() -> None:
    outputs = torch.tensor([[1.0], [3.0]])
    labels = torch.tensor([2.0, 5.0])
    assert mean_squared_error(outputs, batch(labels)).item() == pytest.approx((1 + 4) / 2)
    mixed = (torch.tensor([4.0, 1.0]), torch.tensor([0.5, 0.25]))  # targets 3 and 2
    assert mean_squared_error(outputs[:, 0], batch(labels, mixed)).item() == pytest.approx(
        (4 + 1) / 2
    )
    assert task_loss("regression") is mean_squared_error


def test_uniform_logits_cost_the_logarithm_of_the_number_of_classes() -> None:
    loss = task_loss("classification")(torch.zeros(B, C), batch(LABELS))
    assert loss.item() == pytest.approx(math.log(C))
