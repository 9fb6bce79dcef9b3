import numpy as np
import onnx
import pytest
import torch
from pydantic import ValidationError

from compressor.core.errors import ConfigError, ParityError
from compressor.core.types import CHECKPOINT, DATASET, InputSpec
from compressor.data import dataset
from compressor.models import ModelConfig, build, checkpoint, model_spec
from compressor.runtime import metadata
from compressor.stages.export import EXPORT, ExportConfig
from compressor.testing import artifact, check_stage, context

torch.set_num_threads(1)


def split(n, seed):
    rng = np.random.default_rng(seed)
    return dataset.Split(
        {"image": rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)},
        rng.integers(0, 3, n),
        np.arange(n, dtype=np.uint64),
    )


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    splits = {"train": split(80, 0), "val": split(5, 1), "test": split(5, 2)}
    data = dataset.save(
        folder / "data", name="toy", task="classification", classes=("a", "b", "c"),
        inputs={"image": InputSpec((1, 8, 8), "uint8", (0.5,), (0.3,))},
        splits={**splits, "calibration": split(70, 3)}, duplicates={},
    )  # fmt: skip
    spec = model_spec(ModelConfig(name="mlp", hidden=[6]), data)
    model = build(spec, seed=0)
    with torch.no_grad():
        model.get_parameter("1.weight")[0, :3] = 1e-40
    checkpoint.save(folder / "model", model, spec)
    return {
        "model": artifact("teacher", CHECKPOINT, folder / "model", spec),
        "data": artifact("data", DATASET, folder / "data"),
    }


def test_export_keeps_the_stage_contract_and_records_where_the_file_comes_from(inputs, tmp_path):
    result = check_stage(
        EXPORT, ExportConfig(), inputs, tmp_path,
        metrics=("parity_max", "parity_top1", "denormals"),
    )  # fmt: skip
    assert result.metrics["parity_max"].value < 1e-5
    assert result.metrics["parity_top1"].value == 100
    assert result.metrics["denormals"].value == 3
    props = metadata.read(result.outputs["model"])
    assert props[metadata.SOURCE] == inputs["model"].digest
    assert props[metadata.DATASET] == dataset.load(inputs["data"].path).fingerprint
    assert props[metadata.PRECISION] == "fp32"
    assert props[metadata.VERSION]
    assert metadata.labels(result.outputs["model"]) == ("a", "b", "c")


def test_fp16_of_uint8_input_in_a_newer_opset(inputs, tmp_path):
    config = ExportConfig(opset=20, input="uint8", scheme="fp16")
    result = EXPORT.run(config, inputs, context(tmp_path))
    model = onnx.load(result.outputs["model"])
    assert model.opset_import[0].version == 20
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert metadata.read(model)[metadata.PRECISION] == "fp16"
    assert 1e-6 < result.metrics["parity_max"].value <= 2e-2


def test_a_wrong_export_ends_the_stage_with_exit_code_5(inputs, tmp_path, monkeypatch):
    from compressor.export import lower as room

    right = room._flush_

    def wrong(graph):
        tensor = next(t for t in graph.initializer if t.name == "3.bias")
        values = onnx.numpy_helper.to_array(tensor) + np.float32(0.01)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return right(graph)

    monkeypatch.setattr(room, "_flush_", wrong)
    with pytest.raises(ParityError) as error:
        EXPORT.run(ExportConfig(), inputs, context(tmp_path))
    assert error.value.exit_code == 5


def test_samples_come_from_calibration_then_train_and_never_fewer_than_asked(inputs):
    from compressor.stages.export import _samples

    data = dataset.load(inputs["data"].path)
    calibration, train = data.split("calibration"), data.split("train")
    few, more = _samples(data, 64, 0)["image"], _samples(data, 75, 0)["image"]
    assert np.array_equal(few, calibration.inputs["image"][:64])
    assert len({image.tobytes() for image in more}) == 75
    assert {image.tobytes() for image in more} < {i.tobytes() for i in train.inputs["image"]}
    with pytest.raises(ConfigError, match="only 80"):
        _samples(data, 81, 0)


def test_samples_of_class_sorted_training_data_hold_every_class(tmp_path):
    from compressor.stages.export import _samples

    labels = np.repeat(np.arange(3), 100)
    pixels = np.arange(300)[:, None].astype(np.float32)
    train = dataset.Split({"x": pixels}, labels, np.arange(300, dtype=np.uint64))
    tiny = train.take(np.arange(5))
    data = dataset.save(
        tmp_path / "data", name="sorted", task="classification", classes=("a", "b", "c"),
        inputs={"x": InputSpec((1,), "float32", (0.0,), (1.0,))},
        splits={"train": train, "val": tiny, "test": tiny, "calibration": tiny}, duplicates={},
    )  # fmt: skip
    rows = _samples(data, 66, 0)["x"][:, 0].astype(int)
    assert np.bincount(labels[rows]).tolist() == [22, 22, 22]


@pytest.mark.parametrize(
    "change", [{"opset": 17}, {"opset": 24}, {"parity_samples": 63}, {"input": "half"}]
)
def test_a_config_out_of_range_is_refused_before_anything_runs(change):
    with pytest.raises(ValidationError):
        ExportConfig(**change)
