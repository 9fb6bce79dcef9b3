"""Matrix products: int8 of both kinds, 4 bits and halves, on a transformer block and MLPs."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from compressor.core.errors import ConfigError, MissingError, StageError
from compressor.quantization import schemes
from compressor.quantization.plain import Options
from compressor.quantization.products import quiet
from compressor.quantization.weight_only import weight_only
from compressor.quantization.weights import fits_16_bits
from compressor.runtime import metadata
from compressor.runtime.cost import graph_cost
from compressor.runtime.profile import fusion, optimized_graph
from tests.quantization.graphs import build, images, put, zoo
from tests.quantization.oracle import unsafe
from tests.quantization.transformer import BATCHED, CONSTANT, HIDDEN, LENGTH, WIDTH, block


def go(tmp_path, scheme, model=None, samples=None, device="cpu", **options):
    source, out = put(model or block(), tmp_path / "fp32.onnx"), tmp_path / f"{scheme}.onnx"
    feed = {"x": images(40, LENGTH, WIDTH)} if samples is None else samples
    return out, schemes.quantize(scheme, source, out, feed, Options(**options), device=device)


def run(path, samples):
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": samples})[0]


def mlp(width=48, entry=40):
    body = "a = Gemm<transB=1>(x, w0, b0) r = Relu(a) y = Gemm<transB=1>(r, w1, b1)"
    shapes = {"w0": (width, entry), "b0": (width,), "w1": (10, width), "b1": (10,)}
    return build(body, shapes, inputs=f"float[N,{entry}] x")


def test_static_int8_takes_every_constant_matrix_of_a_transformer_per_channel(tmp_path):
    out, report = go(tmp_path, "int8")
    rows = {layer.name.split("_")[-1]: layer for layer in report.layers}
    for name in (*CONSTANT, "y"):
        assert rows[name].form == "int8", name
        assert rows[name].weight_bits in {7, 8}
    ops = fusion(out).ops
    products = ops.get("MatMulIntegerToFloat", 0) + ops.get("QLinearMatMul", 0)
    assert products + ops.get("QGemm", 0) >= len(CONSTANT) + 1
    assert unsafe(out) == []
    scales = {t.name: t for t in onnx.load(out).graph.initializer}
    width = {n: s.dims[0] for n, s in scales.items() if n.endswith("/weight/scale")}
    assert sorted(width.values()) == sorted([WIDTH] * 5 + [HIDDEN, 10])
    assert report.sqnr["y"] > 30
    for batch in (1, 3):
        assert run(out, images(batch, LENGTH, WIDTH)).shape == (batch, 10)


def test_products_of_two_activations_follow_their_operands(tmp_path):
    out, report = go(tmp_path, "int8")
    reasons = {layer.name.split("_")[-1]: layer.reason for layer in report.layers
               if layer.form == "float"}  # fmt: skip
    ran = {n.op_type for n in optimized_graph(out).graph.node}
    assert set(reasons) <= set(BATCHED)
    assert set(reasons.values()) <= {"weights are not constant float32"}
    assert {"LayerNormalization", "Softmax"} & ran == {"LayerNormalization", "Softmax"}


def test_int4_packs_every_constant_matrix(tmp_path):
    out, report = go(tmp_path, "int4")
    ops = [n.op_type for n in onnx.load(out).graph.node]
    assert ops.count("MatMulNBits") == len(CONSTANT) + 1
    assert ops.count("MatMul") == len(BATCHED)
    assert "Gemm" not in ops
    assert report.quantized == len(CONSTANT) + 1
    assert {layer.weight_bits for layer in report.layers if layer.form == "int4"} == {4}
    assert {layer.name.split("_")[-1] for layer in report.layers if layer.form == "float"} == {
        *BATCHED
    }
    assert report.sqnr["y"] > 15
    props = metadata.read(out)
    assert (props[metadata.PRECISION], props["compressor.scheme"]) == ("int4", "int4")


def test_int4_is_a_fifth_of_the_file_and_counts_the_same(tmp_path):
    out, report = go(tmp_path, "int4", mlp(512, 64), {"x": images(20, 64)})
    before, after = graph_cost(tmp_path / "fp32.onnx"), graph_cost(out)
    assert after.bytes < before.bytes / 5
    assert (after.parameters, after.macs) == (before.parameters, before.macs)
    assert report.warnings == ()
    assert not report.float_convs


def test_int4_rounds_to_16_levels_per_block_of_a_column(tmp_path):
    model = build("y = MatMul(x, w)", {"w": (64, 5)}, inputs="float[N,64] x")
    out, _ = go(tmp_path, "int4", model, {"x": images(20, 64)})
    back = run(out, np.eye(64, dtype=np.float32))
    weight = numpy_helper.to_array(model.graph.initializer[0])
    for rows in (slice(0, 32), slice(32, 64)):
        for column in range(5):
            span = np.ptp(np.append(weight[rows, column], 0))
            assert len(np.unique(np.round(back[rows, column], 5))) <= 16
            error = np.abs(back[rows, column] - weight[rows, column]).max()
            assert error <= 1.05 * span / 15


def test_a_matrix_that_two_layers_share_is_stored_once(tmp_path):
    model = build("a = Gemm<transB=1>(x, w, b) r = Relu(a) y = Gemm<transB=1>(r, w, b)",
                  {"w": (40, 40), "b": (40,)}, inputs="float[N,40] x")  # fmt: skip
    out, report = go(tmp_path, "int4", model, {"x": images(20, 40)})
    names = [t.name for t in onnx.load(out).graph.initializer]
    assert len(names) == len(set(names)) == 4  # packed, scales, zero points, bias
    assert report.quantized == 2
    assert report.sqnr["y"] > 15


def test_int4_says_that_convolutions_stay_float(tmp_path):
    _, report = go(tmp_path, "int4", zoo(), {"x": images(20)})
    assert any("stay float" in line for line in report.warnings)
    reasons = [layer.reason for layer in report.layers if layer.op == "Conv"]
    assert reasons == ["scheme int4 is for matrix products"] * 7
    assert report.sqnr["y"] > 15


def test_dynamic_makes_matrices_int8_and_needs_no_ranges(tmp_path):
    out, report = go(tmp_path, "dynamic")
    ops = [n.op_type for n in onnx.load(out).graph.node]
    assert ops.count("MatMulInteger") == len(CONSTANT) + 1
    assert "DynamicQuantizeLinear" in ops
    assert report.quantized == len(CONSTANT) + 1
    assert report.sqnr["y"] > 30
    assert metadata.read(out)[metadata.PRECISION] == "int8"
    assert run(out, images(3, LENGTH, WIDTH)).shape == (3, 10)
    before, after = graph_cost(tmp_path / "fp32.onnx"), graph_cost(out)
    assert (after.parameters, after.macs) == (before.parameters, before.macs)


@pytest.mark.parametrize(("target", "bits"), [("portable", 7), ("x86-vnni", 8)])
def test_dynamic_weights_cannot_overflow_16_bits_unless_the_target_allows_it(
    tmp_path, target, bits
):
    out, report = go(tmp_path, "dynamic", mlp(), {"x": images(20, 40)}, target=target)
    weights = [numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer]
    int8 = [w for w in weights if w.dtype == np.int8 and w.ndim == 2]
    assert len(int8) == 2
    assert all(fits_16_bits(w.T).all() for w in int8) == (bits == 7)
    assert {layer.weight_bits for layer in report.layers} == {bits}
    assert f"{bits}-bit" in report.target.reason


def test_dynamic_refuses_convolutions_and_says_what_would_work(tmp_path):
    with pytest.raises(ConfigError, match=r"7 convolutions .*ConvInteger.*exclude: \[Conv\]"):
        go(tmp_path, "dynamic", zoo(), {"x": images(20)})
    out, report = go(tmp_path, "dynamic", zoo(), {"x": images(20)}, exclude=("Conv",))
    assert "ConvInteger" not in {n.op_type for n in onnx.load(out).graph.node}
    assert report.quantized == 1
    assert report.sqnr["y"] > 30


def test_fp16_halves_the_file_and_keeps_the_signal(tmp_path):
    out, report = go(tmp_path, "fp16", mlp(256), {"x": images(20, 40)})
    assert out.stat().st_size < 0.55 * (tmp_path / "fp32.onnx").stat().st_size
    assert report.sqnr["y"] > 50
    assert metadata.read(out)[metadata.PRECISION] == "fp16"
    assert metadata.read(out)[metadata.TARGET] == "cuda"
    assert any("compared on the CPU only" in line for line in report.warnings)
    with pytest.raises(ConfigError, match="exclude"):
        go(tmp_path, "fp16", mlp(), {"x": images(20, 40)}, exclude=("Gemm",))


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_fp16_is_compared_on_cuda_where_there_is_one(tmp_path, monkeypatch, there, expected):
    asked = []

    def compare(reference, candidate, samples, batch, threads, provider):
        asked.append(provider)
        return {"y": 60.0}, 100.0

    def check(provider):
        if not there:
            raise MissingError("not in this ONNX Runtime")

    monkeypatch.setattr(schemes.quality, "compare", compare)
    monkeypatch.setattr(schemes, "check_provider", check)
    _, report = go(tmp_path, "fp16", mlp(), {"x": images(20, 40)}, device="cuda")
    assert asked == [report.provider] == [expected]
    assert bool(report.warnings) is not there


@pytest.mark.parametrize("scheme", ["int4", "dynamic"])
def test_excluded_products_stay_float(tmp_path, scheme):
    out, report = go(tmp_path, scheme, exclude=("q", "y"))
    assert report.quantized == len(CONSTANT) - 1
    floats = [layer.reason for layer in report.layers if layer.form == "float"]
    assert floats.count("excluded") == 2
    ops = [n.op_type for n in onnx.load(out).graph.node]
    assert ops.count("MatMulNBits") + ops.count("MatMulInteger") == len(CONSTANT) - 1


@pytest.mark.parametrize("scheme", ["int8", "int4", "dynamic"])
def test_an_unknown_name_to_exclude_is_an_error(tmp_path, scheme):
    with pytest.raises(ConfigError, match="'gemm' is no node"):
        go(tmp_path, scheme, mlp(), {"x": images(20, 40)}, exclude=("gemm",))


@pytest.mark.parametrize("scheme", ["int4", "dynamic"])
def test_a_model_without_constant_matrices_is_an_error_that_names_the_scheme(tmp_path, scheme):
    model = build("a = Flatten(x) y = Relu(a)", {})
    with pytest.raises(StageError, match=f"scheme {scheme}: no matrix product"):
        go(tmp_path, scheme, model, {"x": images(20)})


@pytest.mark.parametrize("scheme", ["int8", "int4", "dynamic", "fp16"])
def test_equal_inputs_give_equal_bytes_and_reports_are_json(tmp_path, scheme):
    import json

    first, report = go(tmp_path, scheme, mlp(), {"x": images(20, 40)})
    data = first.read_bytes()
    assert go(tmp_path, scheme, mlp(), {"x": images(20, 40)})[0].read_bytes() == data
    table = json.loads(json.dumps(report.table()))
    assert table["target"]["reason"]
    assert len(table["layers"]) == len(report.layers)


def test_a_fixed_batch_is_measured_in_whole_batches(tmp_path):
    model = mlp()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 8
    assert go(tmp_path, "int4", model, {"x": images(20, 40)})[1].held_out == 16
    with pytest.raises(ConfigError, match="fixed batch is 8"):
        go(tmp_path, "int4", model, {"x": images(7, 40)})


def test_the_programs_logging_is_left_alone(tmp_path):
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with quiet():
        logging.warning("asks for a handler")
        root.setLevel(logging.INFO)
    go(tmp_path, "int4", mlp(), {"x": images(20, 40)})
    assert (root.handlers, root.level, logging.root.manager.disable) == (handlers, level, 0)


@pytest.mark.parametrize("size", [8, 33, 0])
def test_a_block_is_a_power_of_two(size):
    with pytest.raises(ConfigError, match="power of two"):
        weight_only(None, block=size)
