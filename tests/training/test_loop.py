"""The loop itself: what it learns, keeps, reports and refuses."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from compressor.core.errors import ConfigError, DivergedError, MissingError
from compressor.core.tasks import CLASSIFICATION, REGRESSION
from compressor.core.types import Context, InputSpec, ModelSpec
from compressor.data import dataset
from compressor.data.batches import Augment
from compressor.data.dataset import Dataset, Split
from compressor.training.evaluate import evaluate, score
from compressor.training.loop import fit_, steps_per_epoch, total_steps
from compressor.training.options import TrainOptions
from compressor.training.tensors import TensorBatch
from tests.training.conftest import Notes, make_data, same, spec_of, tiny_net, weights

MakeContext = Callable[..., Context]
SHORT = TrainOptions(epochs=3, batch_size=16)


@pytest.mark.parametrize(
    "options",
    [
        SHORT,
        TrainOptions(epochs=6, batch_size=16, optimizer="adamw", lr=0.02),
        TrainOptions(epochs=6, batch_size=16, ema=0.9, grad_clip=1.0, label_smoothing=0.1),
        TrainOptions(epochs=6, batch_size=16, augment=Augment(pad_crop=1, mixup=0.2)),
        TrainOptions(epochs=3, batch_size=16, channels_last=False, schedule="constant"),
    ],
    ids=["sgd", "adamw", "ema", "mixup", "contiguous"],
)
def test_an_easy_problem_is_learnt_and_two_runs_give_equal_bytes(
    options: TrainOptions, data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    first, second = tiny_net(), tiny_net()
    fit = fit_(first, data, spec, options, context("a"))
    again = fit_(second, data, spec, options, context("b"))
    assert fit.score >= 80  # percent of three classes
    assert fit == again
    digests = [hashlib.sha256(save(weights(m))).hexdigest() for m in (first, second)]
    assert digests[0] == digests[1]
    assert not same(weights(first), weights(tiny_net()))


def test_another_seed_gives_other_weights(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    first, second = tiny_net(), tiny_net()
    fit_(first, data, spec, SHORT, context("a"))
    fit_(second, data, spec, SHORT, context("b", seed=1))
    assert not same(weights(first), weights(second))


def test_the_score_is_that_of_the_weights_that_the_model_ends_with(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    for name, options in (
        ("plain", SHORT),
        ("ema", SHORT.model_copy(update={"ema": 0.8})),
        ("best", SHORT.model_copy(update={"patience": 1, "lr": 0.5})),
    ):
        model = tiny_net()
        fit = fit_(model, data, spec, options, context(name))
        outputs = evaluate(model, data, "val")
        assert fit.score == score(outputs, data.split("val").labels, CLASSIFICATION), name
        assert not model.training
        assert all(p.is_contiguous() for p in model.parameters())


def test_history_has_one_record_per_epoch_and_the_rate_ends_near_zero(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    fit = fit_(tiny_net(), data, spec, SHORT, context())
    assert [row["epoch"] for row in fit.history] == [1, 2, 3]
    assert fit.history[-1]["loss"] < fit.history[0]["loss"]
    assert fit.history[-1]["lr"] < 0.1 * SHORT.lr
    assert fit.steps == total_steps(data, SHORT) == 3 * (90 // 16)
    metrics = fit.metrics(CLASSIFICATION)
    assert metrics["val_score"].value == fit.score
    assert metrics["epochs"].value == 3


def test_early_stopping_ends_after_patience_and_restores_the_best_epoch(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    kept: dict[int, dict[str, np.ndarray]] = {}
    model = tiny_net()
    steps = steps_per_epoch(data, SHORT)

    def spoil(step: int) -> None:
        if step % steps == 0:
            kept[step // steps] = weights(model)
        if step >= 3 * steps:  # from the end of epoch 3 on, worse on purpose
            with torch.no_grad():
                model.head.bias.copy_(torch.tensor([99.0, 0.0, 0.0]))

    options = TrainOptions(epochs=20, batch_size=16, patience=2, lr=0.02)
    fit = fit_(model, data, spec, options, context(), after_step=spoil)
    assert fit.stopped_early
    assert fit.best_epoch < 3
    assert len(fit.history) == fit.best_epoch + 2
    assert fit.score == max(row["score"] for row in fit.history)
    assert same(weights(model), kept[fit.best_epoch])


def test_zero_epochs_keep_the_weights_and_still_score_them(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    model = tiny_net()
    fit = fit_(model, data, spec, TrainOptions(epochs=0), context())
    assert same(weights(model), weights(tiny_net()))
    assert (fit.steps, fit.history, fit.best_epoch) == (0, (), 0)
    assert 0 <= fit.score <= 100


def test_fewer_samples_than_a_batch_still_make_a_step(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    fit = fit_(tiny_net(), data, spec, TrainOptions(epochs=2, batch_size=500), context())
    assert fit.steps == 2


def test_after_step_is_called_with_the_steps_taken_and_may_hold_weights_at_zero(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    model = tiny_net()
    mask = torch.ones_like(model.conv.weight)
    mask[0] = 0
    steps: list[int] = []

    def apply(step: int) -> None:
        steps.append(step)
        with torch.no_grad():
            model.conv.weight.mul_(mask)

    fit = fit_(model, data, spec, SHORT, context(), after_step=apply)
    assert steps == list(range(1, fit.steps + 1))
    assert model.conv.weight[0].abs().max() == 0
    assert model.conv.weight[1:].abs().min() > 0


def test_progress_counts_steps_and_names_epoch_loss_and_score(
    data: Dataset, spec: ModelSpec, context: MakeContext, notes: Notes
) -> None:
    fit_(tiny_net(), data, spec, SHORT, context())
    assert [u[0] for u in notes.updates] == list(range(1, 16))
    assert {u[1] for u in notes.updates} == {15}
    assert notes.updates[0][2].startswith("epoch 1/3, loss 1.")
    assert "val " in notes.updates[-1][2]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_step_rate_and_advice(
    bad: float, data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    calls = 0

    def loss(outputs: Tensor, batch: TensorBatch) -> Tensor:
        nonlocal calls
        calls += 1
        return outputs.sum() * (bad if calls == 8 else 1e-3)

    with pytest.raises(DivergedError) as caught:
        fit_(tiny_net(), data, spec, SHORT, context(), loss=loss, label="teacher")
    message = str(caught.value)
    assert caught.value.exit_code == 8
    assert calls == 8
    assert "teacher: the loss is" in message
    assert "step 8 of 15" in message
    assert "epoch 2" in message
    assert "learning rate 0.0" in message
    assert "lr: 0.025" in message
    assert "grad_clip" in message


def test_weights_that_overflow_in_the_last_step_of_an_epoch_are_not_called_trained(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    model = tiny_net()

    def overflow(step: int) -> None:
        if step == 15:
            with torch.no_grad():
                model.head.weight.fill_(float("nan"))

    with pytest.raises(DivergedError, match="validation"):
        fit_(model, data, spec, SHORT, context(), after_step=overflow)


def test_bf16_on_cpu_and_an_absent_device_are_refused(
    data: Dataset, spec: ModelSpec, context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"precision: bf16 needs CUDA.*fp32"):
        fit_(tiny_net(), data, spec, TrainOptions(precision="bf16"), context())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match="no CUDA device"):
        fit_(tiny_net(), data, spec, SHORT, context(device="cuda"))


def test_the_callers_random_state_and_thread_count_are_untouched(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    fit_(tiny_net(), data, spec, SHORT, context())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 2


def test_training_outside_the_main_thread_works(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    scores: list[float] = []
    ctx = context()
    thread = threading.Thread(
        target=lambda: scores.append(fit_(tiny_net(), data, spec, SHORT, ctx).score)
    )
    thread.start()
    thread.join()
    assert len(scores) == 1


class TwoInputs(nn.Module):
    """Takes its inputs in the order of the spec, which is not the alphabet's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, (1, 3, 3))  # five dimensions, which NHWC does not know
        self.head = nn.Linear(2 + 3, 1)

    def forward(self, signal: Tensor, image: Tensor) -> Tensor:
        hidden = self.conv(image[:, None]).relu().mean(dim=(2, 3, 4))
        return self.head(torch.cat([hidden, signal], dim=1))


def test_regression_with_two_inputs_lowers_the_absolute_error(
    tmp_path: Path, context: MakeContext
) -> None:
    def split(n: int, seed: int) -> Split:
        rng = np.random.default_rng(seed)
        signal = rng.normal(size=(n, 3)).astype(np.float32)
        image = rng.integers(0, 255, (n, 1, 6, 6)).astype(np.uint8)
        labels = (signal @ np.float32([1, -2, 0.5])).astype(np.float32)
        return Split({"signal": signal, "image": image}, labels, np.arange(n, dtype=np.uint64))

    data = dataset.save(
        tmp_path / "data",
        name="sums",
        task="regression",
        classes=(),
        inputs={"signal": InputSpec((3,), "float32"), "image": InputSpec((1, 6, 6))},
        splits={"train": split(120, 1), "val": split(40, 2)},
        duplicates={"train_test": 0, "within_train": 0},
    )
    spec = ModelSpec("tests:none", {}, (), data.inputs, "regression")
    torch.manual_seed(0)
    model = TwoInputs()
    before = score(evaluate(model, data, "val"), data.split("val").labels, REGRESSION)
    fit = fit_(model, data, spec, TrainOptions(epochs=8, batch_size=16, lr=0.02), context())
    assert fit.score < 0.3 * before
    assert fit.history[fit.best_epoch - 1]["score"] == min(row["score"] for row in fit.history)


def test_an_empty_validation_split_is_refused(tmp_path: Path, context: MakeContext) -> None:
    data = make_data(tmp_path / "data", train=20, val=0)
    with pytest.raises(ConfigError, match="0 val samples"):
        fit_(tiny_net(), data, spec_of(data), SHORT, context())
