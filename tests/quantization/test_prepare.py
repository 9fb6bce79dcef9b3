from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.core.errors import ConfigError, IntegrityError, StageError
from compressor.quantization.plain import Options, compare, quantize
from compressor.quantization.prepare import clean, load
from compressor.quantization.samples import Samples, check, split
from compressor.runtime import metadata
from tests.quantization.graphs import AXES, build, images, put, zoo

CONV = "a = Conv(x, w, b) r = Relu(a) y = Flatten(r)"
SHAPES = {"w": (4, 3, 1, 1), "b": (4,)}


def outputs(model, feed):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)[0]


@pytest.mark.parametrize(
    ("body", "shapes", "gone", "there"),
    [("c = Conv(x, w, b) n = BatchNormalization(c, g, h, i, v) y = Flatten(n)",
      {"w": (4, 3, 3, 3), "b": (4,), "g": (4,), "h": (4,), "i": (4,), "v": (4,)},
      "BatchNormalization", "Conv"),
     ("y = ReduceMean<keepdims=0>(x, ax)", {}, "ReduceMean", "GlobalAveragePool"),
     ("m = ReduceMean<keepdims=1>(x, ax) y = Flatten(m)", {}, "ReduceMean", "GlobalAveragePool"),
     ("c = Conv(x, w) m = MaxPool<kernel_shape=[2,2], pads=[1,1,1,1]>(c) r = Relu(m)"
      " y = Flatten(r)", {"w": (4, 3, 3, 3)}, "", "Relu"),
     ("f = Flatten(x) d = MatMul(f, w) y = Add(d, b)", {"w": (192, 5), "b": (5,)},
      "MatMul", "Gemm"),
     ("i = Identity(x) k = Constant<value = float {2.0}>() m = Mul(i, k) y = Flatten(m)", {},
      "Identity", "Mul")],
)  # fmt: skip
def test_rewrites_keep_the_function(body, shapes, gone, there):
    model = build(body, shapes, constants=AXES)
    for tensor in model.graph.initializer:
        if tensor.name == "v":
            positive = np.abs(numpy_helper.to_array(tensor)) + 0.1
            tensor.CopyFrom(numpy_helper.from_array(positive, "v"))
    cleaned = clean(model)
    ops = [n.op_type for n in cleaned.graph.node]
    assert gone not in ops
    assert there in ops
    feed = {"x": images(5)}
    assert np.allclose(outputs(model, feed), outputs(cleaned, feed), atol=2e-6)


def test_relu_moves_in_front_of_the_pool():
    model = build("c = Conv(x, w) m = MaxPool<kernel_shape=[2,2]>(c) r = Relu(m) y = Flatten(r)",
                  {"w": (4, 3, 1, 1)})  # fmt: skip
    assert [n.op_type for n in clean(model).graph.node] == ["Conv", "Relu", "MaxPool", "Flatten"]


def test_a_mean_over_other_axes_stays():
    model = build("m = ReduceMean<keepdims=1>(x, one) y = Flatten(m)", {},
                  constants="<int64[1] one = {1}>")  # fmt: skip
    assert "ReduceMean" in [n.op_type for n in clean(model).graph.node]


def go(tmp_path, model, feed=None, **options):
    source, out = put(model, tmp_path / "m.onnx"), tmp_path / "q.onnx"
    return quantize(source, out, feed or {"x": images()}, Options(**options)), out


@pytest.mark.parametrize("opset", [11, 12])
def test_old_opsets_are_upgraded(tmp_path, opset):
    report, out = go(tmp_path, build(CONV, SHAPES, opset=opset, ir=6))
    assert onnx.load(out).opset_import[0].version == 17
    assert report.sqnr["y"] > 30


@pytest.mark.parametrize(
    ("opset", "ir", "reason"), [(10, 5, "opset 10"), (27, 8, "opset 27"), (18, 14, "IR version 14")]
)
def test_other_versions_are_refused_with_the_version(tmp_path, opset, ir, reason):
    model = build(CONV, SHAPES, opset=opset, ir=ir)
    with pytest.raises(ConfigError, match=reason):
        go(tmp_path, model)


def test_a_quantized_model_is_refused(tmp_path):
    _, out = go(tmp_path, zoo())
    with pytest.raises(ConfigError, match="quantized already"):
        quantize(out, tmp_path / "again.onnx", {"x": images()}, Options())


def test_a_half_precision_model_is_refused_and_half_parts_stay(tmp_path):
    half = build("c = Cast<to=10>(x) a = Conv(c, w) f = Flatten(a) y = Cast<to=1>(f)", {})
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float16), "w")
    half.graph.initializer.append(weight)
    with pytest.raises(ConfigError, match="float16"):
        go(tmp_path, half)
    mixed = build("a = Conv(x, v) c = Cast<to=10>(a) d = Conv(c, w) f = Flatten(d)"
                  " y = Cast<to=1>(f)", {"v": (3, 3, 1, 1)})  # fmt: skip
    mixed.graph.initializer.append(weight)
    report, _ = go(tmp_path, mixed)
    forms = {layer.op + str(i): layer.form for i, layer in enumerate(report.layers)}
    assert list(forms.values()) == ["int8", "float"]
    assert report.float_convs == ()


def test_garbage_and_missing_files_are_refused(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(IntegrityError, match="not an ONNX file"):
        load(tmp_path / "bad.onnx")
    with pytest.raises(ConfigError, match="no such file"):
        load(tmp_path / "none.onnx")


def external(model, folder, location):
    (folder / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "m.onnx", save_as_external_data=True, location=location,
              size_threshold=0)  # fmt: skip
    return folder / "m.onnx"


def test_external_data_beside_the_model_is_read_and_ends_up_inside(tmp_path):
    path = external(build(CONV, SHAPES), tmp_path, "m.data")
    quantize(path, tmp_path / "q.onnx", {"x": images()}, Options())
    (tmp_path / "m.data").unlink()
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)
    assert outputs(onnx.load(tmp_path / "q.onnx"), {"x": images(2)}).shape == (2, 256)


@pytest.mark.parametrize("location", ["../m.data", "sub/m.data", "/etc/hostname"])
def test_external_data_elsewhere_is_refused(tmp_path, location):
    path = external(build(CONV, SHAPES), tmp_path, "m.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError, match="a file beside the model"):
        load(path)


def test_a_model_with_nothing_to_quantize_is_refused_with_the_reason(tmp_path):
    with pytest.raises(StageError, match="operators: Flatten, Relu"):
        go(tmp_path, build("r = Relu(x) y = Flatten(r)", {}))
    with pytest.raises(StageError, match="excluded"):
        go(tmp_path, build(CONV, SHAPES), exclude=("Conv",))


def test_an_unknown_exclusion_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="'conv7'"):
        go(tmp_path, build(CONV, SHAPES), exclude=("conv7",))


def test_layers_that_touch_nan_stay_float_and_are_named(tmp_path):
    model = build(
        "a = Conv(x, w, b) l = Log(a) k = Conv(l, u) z = Mul(k, zero)"
        " d = Conv(x, w, b) f = Flatten(d) y = Relu(f)",
        {**SHAPES, "u": (4, 4, 1, 1)}, constants=AXES,
    )  # fmt: skip
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4, 8, 8]))
    report, _ = go(tmp_path, model)
    assert any(w.startswith("l: holds NaN or Inf") for w in report.warnings)
    forms = {layer.name: layer.form for layer in report.layers}
    assert forms["Conv_k"] == "float"
    assert forms["Conv_d"] == "int8"


@pytest.mark.parametrize(
    ("samples", "message"),
    [({}, "0 samples"), ({"x": images(0)}, "0 samples"),
     ({"image": images()}, "inputs are x; got image"),
     ({"x": images().astype(np.float64)}, "expected float32, got float64"),
     ({"x": images(8, 3, 9, 8)}, r"expected shape \[n, 3, 8, 8\], got \[n, 3, 9, 8\]"),
     ({"x": images(8, 3, 8)}, "expected shape")],
)  # fmt: skip
def test_samples_that_do_not_fit_are_refused_with_expected_and_got(tmp_path, samples, message):
    source = put(zoo(), tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match=message):
        quantize(source, tmp_path / "q.onnx", samples, Options())
    assert not (tmp_path / "q.onnx").exists()


TWO = "a = Conv(x, w, b) f = Flatten(a) g = Gemm(z, v) y = Concat<axis=1>(f, g)"
TWO_SHAPES = {**SHAPES, "v": (6, 5)}


def test_several_inputs_are_quantized_together(tmp_path):
    model = build(TWO, TWO_SHAPES, inputs="float[N,3,8,8] x, float[N,6] z")
    report, _ = go(tmp_path, model, {"x": images(), "z": images(24, 6)})
    assert report.sqnr["y"] > 30
    with pytest.raises(ConfigError, match="different lengths"):
        go(tmp_path, model, {"x": images(), "z": images(23, 6)})


def test_a_fixed_batch_is_kept_and_fed(tmp_path):
    model = build(CONV, SHAPES, inputs="float[4,3,8,8] x")
    report, out = go(tmp_path, model, {"x": images(30)})
    assert report.held_out == 4  # 6 are held out, one whole batch of 4 measures
    assert report.calibration.samples == 24
    assert outputs(onnx.load(out), {"x": images(4)}).shape == (4, 256)
    with pytest.raises(ConfigError, match="fixed batch is 4"):
        go(tmp_path, model, {"x": images(3)})


def test_the_held_out_fifth_never_calibrates():
    kept, held = split(Samples({"x": np.arange(23)}))
    take = lambda s: np.concatenate([f["x"] for f in s.feeds(4)()]).tolist()  # noqa: E731
    assert take(held) == [4, 9, 14, 19]
    assert sorted(take(kept) + take(held)) == list(range(23))


def test_sqnr_and_agreement_of_a_model_with_itself(tmp_path):
    path = put(zoo(), tmp_path / "m.onnx")
    assert compare(path, path, Samples({"x": images(9)}), 4) == ({"y": 200.0}, 100.0)


def test_sqnr_is_the_ratio_of_powers_in_decibel(tmp_path):
    one = put(build("y = Flatten(x)", {}), tmp_path / "1.onnx")
    two = put(build("m = Mul(x, k) y = Flatten(m)", {}, constants="<float k = {1.1}>"),
              tmp_path / "2.onnx")  # fmt: skip
    sqnr, agreement = compare(one, two, Samples({"x": images()}), 7)
    assert sqnr["y"] == pytest.approx(20.0, abs=1e-3)
    assert agreement == 100.0


def test_metadata_is_copied_and_the_target_recorded(tmp_path):
    model = build(CONV, SHAPES)
    metadata.write_(model, {"compressor.classes": '["a"]', "mine": "kept"})
    _, out = go(tmp_path, model)
    got = metadata.read(out)
    assert got["mine"] == "kept"
    assert got["compressor.classes"] == '["a"]'
    assert got["compressor.precision"] == "int8"
    assert got["compressor.target"] == "portable"
    assert "16 bits" in got["compressor.target_reason"]
    assert got["compressor.weight_bits"] == "7-8"


def test_check_accepts_what_fits(tmp_path):
    graph = load(put(zoo(), tmp_path / "m.onnx"))
    assert check(Samples({"x": images()}), graph) is None
