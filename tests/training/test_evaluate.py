"""Outputs over a split."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compressor.core.tasks import CLASSIFICATION, REGRESSION
from compressor.data.dataset import Dataset, as_float, normalise
from compressor.training.evaluate import Interrupted, evaluate, score
from tests.training.conftest import same, tiny_net, weights


def test_outputs_are_float32_in_the_order_of_the_split(data: Dataset) -> None:
    model = tiny_net().eval()
    outputs = evaluate(model, data, "val", batch_size=7)
    spec, images = data.inputs["image"], data.split("val").inputs["image"]
    with torch.no_grad():
        wanted = model(torch.from_numpy(normalise(as_float(images, spec), spec))).numpy()
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, wanted, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 13, 512])
def test_batch_size_changes_outputs_by_rounding_only(data: Dataset, batch_size: int) -> None:
    model = tiny_net()
    outputs = evaluate(model, data, "val", batch_size=batch_size)
    np.testing.assert_allclose(outputs, evaluate(model, data, "val", batch_size=40), atol=1e-5)


def test_evaluating_changes_neither_weights_nor_statistics_nor_mode(data: Dataset) -> None:
    model = tiny_net().train()
    before = weights(model)
    evaluate(model, data, "val")
    assert same(before, weights(model))
    assert model.training


def test_a_request_to_stop_is_obeyed_between_batches(data: Dataset) -> None:
    answers = iter([False, False, True])
    with pytest.raises(Interrupted):
        evaluate(tiny_net(), data, "val", batch_size=10, stop=lambda: next(answers))
    assert list(answers) == []


def test_scores_are_percent_right_and_mean_absolute_error() -> None:
    outputs = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [1.0, 0.0]], dtype=np.float32)
    assert score(outputs, np.array([0, 1, 1, 0]), CLASSIFICATION) == 75.0
    values = np.array([[1.0], [4.0]], dtype=np.float32)
    assert score(values, np.array([2.0, 2.0], dtype=np.float32), REGRESSION) == 1.5
