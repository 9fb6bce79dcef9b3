from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from pydantic import ValidationError

from compressor.core.errors import ConfigError
from compressor.core.types import DATASET, ONNX, Artifact, InputSpec
from compressor.data.dataset import Split, save
from compressor.runtime import metadata
from compressor.stages.quantize import QUANTIZE, QuantizeConfig
from compressor.testing import MadeUpTimings, artifact, check_stage, context
from tests.quantization.graphs import put, zoo


def dataset(folder: Path, count: int = 40) -> Artifact:
    rng = np.random.default_rng(0)

    def split(n: int, value: int | None = None) -> Split:
        shape = (n, 3, 8, 8)
        pixels = rng.integers(0, 256, shape) if value is None else np.full(shape, value)
        return Split(
            {"x": pixels.astype(np.uint8)}, np.arange(n) % 10, np.arange(n).astype(np.uint64)
        )

    # Were val or test read instead of calibration, every range would be wrong.
    splits = {"train": split(50), "val": split(5, 0), "test": split(5, 255),
              "calibration": split(count)}  # fmt: skip
    spec = InputSpec((3, 8, 8), "uint8", (0.5,) * 3, (0.25,) * 3)
    save(folder, name="noise", task="classification", classes=tuple("abcdefghij"),
         inputs={"x": spec}, splits=splits, duplicates={})  # fmt: skip
    return artifact("data", DATASET, folder)


@pytest.fixture
def inputs(tmp_path):
    model = zoo()
    metadata.write_(model, {"compressor.precision": "fp32", "compressor.task": "classification"})
    path = put(model, tmp_path / "fp32.onnx")
    return {"model": artifact("fp32", ONNX, path), "data": dataset(tmp_path / "data")}


def test_quantizes_on_the_calibration_split_and_reports(tmp_path, inputs):
    names = ("sqnr", "agreement", "float_convs", "quantized")
    result = check_stage(
        QUANTIZE, QuantizeConfig(calibration=40, placement="none"), inputs, tmp_path, metrics=names
    )
    assert result.metrics["sqnr"].value > 25
    assert result.metrics["float_convs"].value == 0
    assert 0 <= result.metrics["agreement"].value <= 100
    out = result.outputs["model"]
    assert metadata.read(out)["compressor.precision"] == "int8"
    assert metadata.read(out)["compressor.task"] == "classification"
    table = json.loads(result.outputs["table"].read_text())
    assert len(table["layers"]) == result.metrics["quantized"].value
    assert table["samples"] == 32
    assert table["held_out"] == 8
    first = next(row for row in table["layers"] if row["op"] == "Conv")
    assert first["form"] == "int8"
    assert first["weight_bits"] in {7, 8}
    assert first["low"] == 0 < first["high"]


def test_the_range_of_the_input_is_that_of_floats_between_0_and_1(tmp_path, inputs):
    result = QUANTIZE.run(
        QuantizeConfig(calibration=40, placement="none"), inputs, context(tmp_path / "work")
    )
    values = {t.name: onnx.numpy_helper.to_array(t)
              for t in onnx.load(result.outputs["model"]).graph.initializer}  # fmt: skip
    assert values["x/scale"] == pytest.approx(1 / 255, rel=1e-3)
    assert values["x/zero_point"] == 0


def test_a_measured_placement_is_a_function_of_the_timings(tmp_path, inputs):
    names = ("sqnr", "agreement", "float_convs", "quantized")
    result = check_stage(QUANTIZE, QuantizeConfig(calibration=40), inputs, tmp_path, metrics=names)
    table = json.loads(result.outputs["table"].read_text())
    assert {row["form"] for row in table["regions"]} <= {"int8", "float"}
    assert all(row["alone_int8"]["sqnr"]["y"] > 20 for row in table["regions"])
    assert table["placement"]["protocol"]["threads"] == 1
    note = metadata.read(result.outputs["model"])["compressor.placement"]
    assert table["verdict"] == note


def test_only_a_measured_placement_binds_the_result_to_this_machine():
    assert QUANTIZE.measures_with(QuantizeConfig())
    assert not QUANTIZE.measures_with(QuantizeConfig(placement="none"))
    assert QuantizeConfig().budget == 180.0


def test_a_drop_is_held_on_val(tmp_path, inputs):
    config = QuantizeConfig(calibration=40, max_drop=100.0)
    result = check_stage(QUANTIZE, config, inputs, tmp_path)
    rows = json.loads(result.outputs["table"].read_text())["regions"]
    assert all(row["alone_float"]["drop"] is not None for row in rows)


def test_a_target_that_is_not_here_is_not_measured_and_said(tmp_path, inputs, monkeypatch):
    monkeypatch.setattr("compressor.quantization.tune.instruction_set", lambda: "x86")
    ctx = context(tmp_path / "work")
    result = QUANTIZE.run(QuantizeConfig(calibration=40, target="arm64"), inputs, ctx)
    line = "not measured on arm64; run `verify --choose` there"
    assert ctx.progress.lines[-1] == line
    assert metadata.read(result.outputs["model"])["compressor.placement"] == line


def test_fewer_samples_than_asked_for_are_an_error_with_both_numbers(tmp_path, inputs):
    with pytest.raises(ConfigError, match=r"512 samples.*has 40"):
        QUANTIZE.run(QuantizeConfig(), inputs, context(tmp_path / "work"))


def test_a_model_that_takes_uint8_is_fed_as_stored(tmp_path, inputs):
    model = zoo()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = "x_float" if name == "x" else name
    nodes = list(model.graph.node)
    del model.graph.node[:]
    cast = onnx.helper.make_node("Cast", ["x"], ["x_float"], to=onnx.TensorProto.FLOAT)
    model.graph.node.extend([cast, *nodes])
    raw = {**inputs, "model": artifact("u8", ONNX, put(model, tmp_path / "u8.onnx"))}
    result = QUANTIZE.run(
        QuantizeConfig(calibration=40, placement="none"), raw, context(tmp_path / "work")
    )
    session = onnxruntime.InferenceSession(str(result.outputs["model"]))
    assert session.get_inputs()[0].type == "tensor(uint8)"
    assert result.metrics["sqnr"].value > 25


def test_what_each_rung_gave_is_said_in_a_line_and_is_in_the_table(tmp_path, inputs):
    ctx = context(tmp_path / "work", timings=MadeUpTimings())
    config = QuantizeConfig(calibration=40, min_sqnr=150.0, budget=3.0)
    result = QUANTIZE.run(config, inputs, ctx)
    rows = json.loads(result.outputs["table"].read_text())["recovery"]
    assert [line.split(":")[0] for line in ctx.progress.lines[: len(rows)]] == [
        f"recovery, {row['name']}" for row in rows
    ]
    assert {row["outcome"] for row in rows} > {"skipped: budget"}


@pytest.mark.parametrize("word", ["auto", "none"])
def test_recovery_can_be_left_out(tmp_path, inputs, monkeypatch, word):
    def place(*given, **more):
        assert given[4].recovery == (word == "auto")
        raise ConfigError("seen")

    monkeypatch.setattr("compressor.quantization.tune.place", place)
    with pytest.raises(ConfigError, match="seen"):
        QUANTIZE.run(QuantizeConfig(calibration=40, recovery=word), inputs, context(tmp_path / "w"))


def test_a_model_without_a_float_output_has_no_signal_to_report(tmp_path, inputs):
    model = zoo()
    model.graph.node.append(onnx.helper.make_node("ArgMax", ["y"], ["best"], axis=1))
    del model.graph.output[:]
    kind = onnx.TensorProto.INT64
    model.graph.output.append(onnx.helper.make_tensor_value_info("best", kind, ["N", 1]))
    whole = {**inputs, "model": artifact("best", ONNX, put(model, tmp_path / "best.onnx"))}
    config = QuantizeConfig(calibration=40, placement="none")
    result = QUANTIZE.run(config, whole, context(tmp_path / "work"))
    assert set(result.metrics) == {"float_convs", "quantized"}
    assert result.metrics["quantized"].value > 0


def test_few_samples_are_warned_of(tmp_path, inputs):
    ctx = context(tmp_path / "work")
    QUANTIZE.run(QuantizeConfig(calibration=10, placement="none"), inputs, ctx)
    assert any("8 distinct samples" in line for line in ctx.progress.lines)


@pytest.mark.parametrize(("scheme", "precision"), [("int4", "int4"), ("fp16", "fp16")])
def test_other_schemes_write_a_model_and_the_same_metrics(tmp_path, inputs, scheme, precision):
    config = QuantizeConfig(calibration=40, scheme=scheme)
    names = ("sqnr", "agreement", "float_convs", "quantized")
    result = check_stage(QUANTIZE, config, inputs, tmp_path, metrics=names)
    assert metadata.read(result.outputs["model"])["compressor.precision"] == precision
    table = json.loads(result.outputs["table"].read_text())
    assert (table["scheme"], table["held_out"]) == (scheme, 40)
    assert result.metrics["sqnr"].value > 15


def test_dynamic_refuses_this_network_for_its_convolutions(tmp_path, inputs):
    with pytest.raises(ConfigError, match="ConvInteger"):
        QUANTIZE.run(QuantizeConfig(calibration=40, scheme="dynamic"), inputs,
                     context(tmp_path / "work"))  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"target": "x86"}, {"scheme": "int2"}, {"calibrator": "kl"}, {"calibration": 0},
     {"weight_bits": 4}, {"placement": "guessed"}, {"percentile": 101.0}, {"budget": "3x"},
     {"budget": 0}, {"recovery": "some"}, {"placement": "none", "max_drop": 1.0}, {"max_drop": -1}],
)  # fmt: skip
def test_config_is_typed_at_the_door(wrong):
    with pytest.raises(ValidationError):
        QuantizeConfig(**wrong)
