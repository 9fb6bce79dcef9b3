"""Losses as pure functions of tensors; every one works in float64 too.

Shapes: b samples, c classes. ``student`` and ``teacher`` are logits [b, c], ``labels`` int64 [b].
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from compressor.training.tensors import TensorBatch

LossFunction = Callable[[Tensor, TensorBatch], Tensor]


def cross_entropy(logits: Tensor, batch: TensorBatch, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy [scalar], with label smoothing in [0, 1) and mixup."""
    if batch.mixed is None:
        return nn.functional.cross_entropy(logits, batch.labels, label_smoothing=smoothing)
    second, weight = batch.mixed
    first_loss = nn.functional.cross_entropy(
        logits, batch.labels, label_smoothing=smoothing, reduction="none"
    )
    second_loss = nn.functional.cross_entropy(
        logits, second, label_smoothing=smoothing, reduction="none"
    )
    return (weight * first_loss + (1.0 - weight) * second_loss).mean()


def mean_squared_error(outputs: Tensor, batch: TensorBatch) -> Tensor:
    """Mean squared error [scalar] of outputs [b] or [b, 1] against values [b], with mixup."""
    values = outputs.reshape(len(outputs), -1)[:, 0]
    labels = batch.labels.reshape(-1).to(values.dtype)
    if batch.mixed is not None:
        second, weight = batch.mixed
        labels = weight * labels + (1.0 - weight) * second.reshape(-1).to(values.dtype)
    return nn.functional.mse_loss(values, labels)


def task_loss(task: str, label_smoothing: float = 0.0) -> LossFunction:
    """The loss of a task on labels: cross-entropy, or for ``regression`` the squared error."""
    if task == "regression":
        return mean_squared_error
    return lambda outputs, batch: cross_entropy(outputs, batch, label_smoothing)


def kd_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton's distillation: ``T² · KL(teacher_T ‖ student_T)``, summed over classes.

    The mean is over samples only (batchmean); a mean over classes as well would weaken the term
    c times. T² keeps the gradient's scale: it is ``T (p_student - p_teacher) / b``.

    Source: Hinton, Vinyals, Dean 2015, arXiv 1503.02531, section 2.
    """
    ours = nn.functional.log_softmax(student / temperature, dim=1)
    theirs = nn.functional.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * nn.functional.kl_div(
        ours, theirs, reduction="batchmean", log_target=True
    )


def dkd_parts(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """KL split in two, per sample [b] each, without T²: (target against rest, among the rest).

    ``KL(p_t ‖ p_s) = first + (1 - p_t[label]) * second``; among the rest of two classes there is
    nothing to compare and the second is 0. Written with logsumexp, so that a sure network gives
    no ``log(0)``.

    Source: Zhao et al. 2022, arXiv 2203.08679, equation 7.
    """
    at = labels[:, None]
    rest = nn.functional.one_hot(labels, student.shape[1]) == 0
    binary, others = [], []
    for logits in (student / temperature, teacher / temperature):
        wrong = logits[rest].reshape(len(logits), -1)
        whole = logits.logsumexp(dim=1)
        sure = logits.gather(1, at)[:, 0] - whole
        binary.append((sure, wrong.logsumexp(dim=1) - whole))
        others.append(nn.functional.log_softmax(wrong, dim=1))
    (s_yes, s_no), (t_yes, t_no) = binary
    target = t_yes.exp() * (t_yes - s_yes) + t_no.exp() * (t_no - s_no)
    return target, nn.functional.kl_div(
        others[0], others[1], reduction="none", log_target=True
    ).sum(dim=1)


def dkd_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, nckd_weight: float = 8.0
) -> Tensor:
    """Decoupled distillation [scalar]: ``T² · mean(target + nckd_weight · among the rest)``."""
    target, rest = dkd_parts(student, teacher, labels, temperature)
    return temperature**2 * (target + nckd_weight * rest).mean()


def correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's coefficient along ``dim``, in [-1, 1]; 0 where one side is constant."""
    a = a - a.mean(dim=dim, keepdim=True)
    b = b - b.mean(dim=dim, keepdim=True)
    return nn.functional.cosine_similarity(a, b, dim=dim, eps=1e-8)


def dist_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Distance of relations [scalar]: ``T² · ((1 - ρ over classes) + (1 - ρ over samples))``.

    ρ is the mean correlation of the two probability tables along their rows (how a sample ranks
    the classes) and along their columns (how a class ranks the samples). It asks for less than
    equality, so a much stronger teacher harms less.

    Source: Huang et al. 2022, arXiv 2205.10536, equations 6-10 with β = γ = 1.
    """
    ours = nn.functional.softmax(student / temperature, dim=1)
    theirs = nn.functional.softmax(teacher / temperature, dim=1)
    between = 1.0 - correlation(ours, theirs, dim=1).mean()
    within = 1.0 - correlation(ours, theirs, dim=0).mean()
    return temperature**2 * (between + within)
