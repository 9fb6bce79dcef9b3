import numpy as np
import pytest

from compressor.core.errors import StageError
from compressor.runtime import golden, predict
from tests.runtime import nets

POOL = {"x": np.random.default_rng(0).integers(0, 256, (200, 1, 8, 8), dtype=np.uint8)}


@pytest.fixture
def models(tmp_path):
    return (
        nets.convnet(tmp_path / "f.onnx", width=8, classes=3),
        nets.qdq_convnet(tmp_path / "q.onnx", width=8, classes=3),
    )


def test_golden_samples_are_the_clear_ones(models):
    fp32, int8 = models
    found = golden.pick(int8, fp32, POOL, precision="int8")
    outputs = predict.run(int8, POOL)
    noise = np.abs(outputs - predict.run(fp32, POOL)).max()
    assert found.noise == pytest.approx(max(noise, 1e-3 * outputs.std()))
    top = np.sort(found.outputs, axis=1)
    assert found.margin == pytest.approx((top[:, -1] - top[:, -2]).min())
    assert found.clear == (found.margin > 4 * found.noise)
    everyone = np.sort(outputs, axis=1)
    assert found.margin > np.median(everyone[:, -1] - everyone[:, -2])
    assert len(found.outputs) == golden.LEAST


def test_golden_outputs_belong_to_golden_inputs(models):
    found = golden.pick(models[0], None, POOL)
    assert found.inputs["x"].dtype == np.uint8
    again = predict.run(models[0], found.inputs)
    assert np.allclose(again, found.outputs, atol=1e-5)


def test_every_class_that_is_predicted_clearly_has_a_turn():
    predicted = np.array([0] * 50 + [1] * 50 + [2] * 2)
    margins = np.concatenate([np.full(50, 9.0), np.full(50, 8.0), [7.0, 0.1]]).astype(np.float32)
    rows = golden._spread(predicted, margins, 1.0, 16)
    counts = np.bincount(predicted[rows], minlength=3)
    assert counts[2] == 1  # the unclear one is left out
    assert counts.min() >= 1
    assert abs(counts[0] - counts[1]) <= 1
    assert (np.diff(rows) > 0).all()


def test_without_clear_samples_the_best_are_taken_and_said(models):
    found = golden.pick(models[1], None, POOL, precision="int8")
    assert found.noise == pytest.approx(0.05 * predict.run(models[1], POOL).std(), rel=1e-3)
    flat = nets.convnet(models[0].parent / "flat.onnx", width=8, scale=0.0)
    assert not golden.pick(flat, None, POOL).clear


def test_too_few_samples_are_an_error(models):
    with pytest.raises(StageError, match="8 calibration samples; 16"):
        golden.pick(models[0], None, {"x": POOL["x"][:8]})


def test_regression_takes_spread_samples(models):
    found = golden.pick(models[0], None, POOL, classification=False)
    assert np.array_equal(found.inputs["x"][0], POOL["x"][0])
    assert np.array_equal(found.inputs["x"][-1], POOL["x"][-1])


def test_the_file_has_deterministic_bytes_and_prefixes(models, tmp_path):
    one = golden.pick(models[0], None, POOL)
    assert one.npz() == golden.pick(models[0], None, POOL).npz()
    (tmp_path / "g.npz").write_bytes(one.npz())
    with np.load(tmp_path / "g.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["input.x", "output.logits"]
