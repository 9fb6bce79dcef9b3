import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from compressor.core.errors import ConfigError, IntegrityError, StageError
from compressor.core.tasks import CLASSIFICATION, REGRESSION
from compressor.core.types import InputSpec
from compressor.data.dataset import as_float
from compressor.runtime import predict
from compressor.runtime.session import open_session
from tests.runtime import nets

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 1, 8, 8), dtype=np.uint8)


def made(n=5, seed=0):
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(n, 3)).astype(np.float32)
    return predict.make("net[seed=0]", np.arange(n), rng.integers(0, 3, n), outputs, CLASSIFICATION)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 1000))
def test_predictions_survive_the_file(tmp_path_factory, n, seed):
    path = tmp_path_factory.mktemp("p") / "p.npz"
    first = made(n, seed)
    predict.save(path, first)
    second = predict.load(path)
    assert second.name == first.name
    for field in ("ids", "labels", "predicted", "outputs"):
        a, b = getattr(first, field), getattr(second, field)
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)


def test_equal_predictions_are_equal_bytes_at_any_time(tmp_path, monkeypatch):
    predict.save(tmp_path / "a", made())
    monkeypatch.setattr("time.time", lambda: 4e9)
    predict.save(tmp_path / "b", made())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    predict.save(tmp_path / "c", made(seed=1))
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


def test_prediction_is_that_of_fp32_not_of_the_stored_fp16():
    outputs = np.array([[1.0, 1.0 + 1e-5]], np.float32)  # equal in fp16
    rows = predict.make("m", [1], [1], outputs, CLASSIFICATION)
    assert rows.outputs[0, 0] == rows.outputs[0, 1]
    assert rows.predicted[0] == 1.0


def test_large_outputs_are_clipped_and_infinite_ones_refused():
    rows = predict.make("m", [1], [0.0], np.array([[1e6]], np.float32), REGRESSION)
    assert np.isfinite(rows.outputs).all()
    assert rows.predicted[0] == 1e6
    with pytest.raises(StageError, match="1 of 2 samples are not finite"):
        predict.make("m", [1, 2], [0, 0], np.array([[0.0], [np.nan]], np.float32), REGRESSION)


def test_score_is_percent_right_or_mean_error():
    outputs = np.eye(4, 3, dtype=np.float32)
    rows = predict.make("m", np.arange(4), np.array([0, 1, 2, 1]), outputs, CLASSIFICATION)
    assert predict.score(rows, CLASSIFICATION) == 75.0
    rows = predict.make("m", [0, 1], [1.0, 2.0], np.array([[1.5], [2.5]], np.float32), REGRESSION)
    assert predict.score(rows, REGRESSION) == 0.5


def test_pickled_arrays_are_never_loaded(tmp_path):
    evil = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "evil.npz", ids=evil, labels=evil, predicted=evil, outputs=evil, name=evil)
    with pytest.raises(IntegrityError, match="not a predictions file"):
        predict.load(tmp_path / "evil.npz")
    with pytest.raises(ValueError, match="Object arrays"):
        predict.npz_bytes({"x": evil})


@pytest.mark.parametrize("cut", [0, 10, 300, -30])
def test_truncated_files_are_integrity_errors(tmp_path, cut):
    path = tmp_path / "p.npz"
    predict.save(path, made())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IntegrityError):
        predict.load(path)


def test_flipped_bytes_never_pass_unseen(tmp_path):
    path = tmp_path / "p.npz"
    predict.save(path, made())
    good = path.read_bytes()
    # Zip's own CRC covers the arrays: a flip there cannot load as other numbers.
    start = good.index(b"outputs.npy") + 140
    path.write_bytes(good[:start] + bytes([good[start] ^ 1]) + good[start + 1 :])
    with pytest.raises(IntegrityError):
        predict.load(path)


def test_a_plain_array_and_a_damaged_packed_file_are_integrity_errors(tmp_path):
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(IntegrityError, match="not a predictions file"):
        predict.load(tmp_path / "one.npy")
    rows = made(200)
    np.savez_compressed(
        tmp_path / "p.npz", ids=rows.ids, labels=rows.labels, predicted=rows.predicted,
        outputs=rows.outputs, name=np.frombuffer(b"net", np.uint8),
    )  # fmt: skip
    data = bytearray((tmp_path / "p.npz").read_bytes())
    assert len(predict.load(tmp_path / "p.npz")) == 200
    start = data.index(b"ids.npy") + len(b"ids.npy") + 20  # behind zip's extra field
    data[start : start + 8] = b"\xff" * 8
    (tmp_path / "p.npz").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "p.npz") as archive, pytest.raises(zlib.error):
        archive.read("ids.npy")  # really the error that NumPy passes on
    with pytest.raises(IntegrityError, match="not a predictions file"):
        predict.load(tmp_path / "p.npz")


def test_repeated_ids_and_other_lengths_are_refused(tmp_path):
    rows = made()
    twice = predict.Predictions(rows.ids * 0, rows.labels, rows.predicted, rows.outputs)
    predict.save(tmp_path / "twice", twice)
    with pytest.raises(IntegrityError, match="ids repeat"):
        predict.load(tmp_path / "twice")
    short = predict.Predictions(rows.ids[:2], rows.labels, rows.predicted, rows.outputs)
    predict.save(tmp_path / "short", short)
    with pytest.raises(IntegrityError, match="lengths or types"):
        predict.load(tmp_path / "short")


def test_uint8_enters_a_float_input_exactly_as_the_dataset_says():
    array = np.arange(256, dtype=np.uint8)
    spec = InputSpec((1,), "uint8")
    assert np.array_equal(predict.as_input(array, "tensor(float)"), as_float(array, spec))
    assert predict.as_input(array, "tensor(uint8)").dtype == np.uint8
    assert predict.as_input(array, "tensor(float16)").dtype == np.float16
    with pytest.raises(ConfigError, match="takes tensor"):
        predict.as_input(np.zeros(2, np.float32), "tensor(int64)")
    with pytest.raises(ConfigError, match=r"tensor\(string\)"):
        predict.as_input(array, "tensor(string)")


@pytest.mark.parametrize("batch", [1, 3, 10, 64])
def test_batch_size_only_rounds(tmp_path, batch):
    path = nets.convnet(tmp_path / "m.onnx")
    whole = predict.run(path, {"x": IMAGES}, 10)
    assert whole.shape == (10, 3)
    assert np.allclose(predict.run(path, {"x": IMAGES}, batch), whole, atol=1e-5)


def test_a_fixed_batch_is_padded_and_cut(tmp_path):
    free = predict.run(nets.convnet(tmp_path / "free.onnx"), {"x": IMAGES})
    fixed = predict.run(nets.convnet(tmp_path / "four.onnx", batch=4), {"x": IMAGES})
    assert fixed.shape == free.shape
    assert np.allclose(fixed, free, atol=1e-5)


def test_a_uint8_model_is_fed_as_stored(tmp_path):
    path = tmp_path / "m.onnx"
    nodes = [nets.helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    made = nets.model(nodes, [nets.info("x", ["N", 2], TensorProto.UINT8)],
                      [nets.info("y", ["N", 2])], [])  # fmt: skip
    nets.onnx.save(made, path)
    x = np.array([[3, 255]], np.uint8)
    assert np.array_equal(predict.run(open_session(path), {"x": x}), [[3.0, 255.0]])


def test_inputs_must_be_the_models(tmp_path):
    path = nets.convnet(tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=r"inputs are \['x'\], the data gives \['image'\]"):
        predict.run(path, {"image": IMAGES})
    with pytest.raises(ConfigError, match="one length above 0"):
        predict.run(path, {"x": IMAGES[:0]})
