"""What holds on a CUDA device: learning in fp32 and bf16, late but sure detection, resuming."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.core.errors import DivergedError
from compressor.core.types import Context, ModelSpec
from compressor.data.dataset import Dataset
from compressor.training.loop import fit_
from compressor.training.options import TrainOptions
from compressor.training.tensors import TensorBatch
from tests.training.conftest import tiny_net, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MakeContext = Callable[..., Context]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_easy_problem_is_learnt_and_the_model_comes_back_in_fp32_on_the_cpu(
    precision: str, data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    model = tiny_net()
    options = TrainOptions(epochs=6, batch_size=16, precision=precision, ema=0.9)
    fit = fit_(model, data, spec, options, context(device="cuda"))
    assert fit.score >= 80
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("cpu", torch.float32)}


def test_a_nan_is_found_at_the_latest_at_the_end_of_the_epoch(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    calls = 0

    def loss(outputs: Tensor, batch: TensorBatch) -> Tensor:
        nonlocal calls
        calls += 1
        return outputs.sum() * (float("nan") if calls == 7 else 1e-3)

    with pytest.raises(DivergedError, match="step 10 of 15 or up to 50 steps before"):
        fit_(
            tiny_net(), data, spec, TrainOptions(epochs=3, batch_size=16),
            context(device="cuda"), loss=loss,
        )  # fmt: skip


def test_a_stopped_run_goes_on_to_the_same_weights_within_tolerance(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    options = TrainOptions(epochs=3, batch_size=16, lr=0.02, checkpoint_steps=2)

    def stop(step: int) -> None:
        if step == 9:
            raise InterruptedError

    whole, resumed = tiny_net(), tiny_net()
    fit_(whole, data, spec, options, context("whole", device="cuda"))
    with pytest.raises(InterruptedError):
        fit_(resumed, data, spec, options, context(device="cuda"), after_step=stop)
    fit_(resumed, data, spec, options, context(device="cuda"))
    for name, value in weights(whole).items():
        np.testing.assert_allclose(weights(resumed)[name], value, atol=1e-3)
