from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from compressor.core.errors import IntegrityError
from compressor.quantization.graph import Graph, attribute
from compressor.quantization.plain import Options, quantize
from compressor.quantization.prepare import clean
from compressor.quantization.quality import compare
from compressor.quantization.samples import Samples
from compressor.quantization.weights import fits_16_bits
from compressor.runtime import profile
from compressor.runtime.profile import fusion, optimized_graph
from tests.quantization.graphs import AXES, build, images, put, random_network, zoo

FLOAT_KERNELS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "Add", "Mul", "Concat", "Sigmoid",
                 "GlobalAveragePool", "AveragePool", "LeakyRelu", "ConvTranspose"}  # fmt: skip


def go(tmp_path, model, samples=None, **options):
    source, out = put(model, tmp_path / "fp32.onnx"), tmp_path / "int8.onnx"
    feed = {"x": images()} if samples is None else samples
    return out, quantize(source, out, feed, Options(**options))


def sqnr(out):
    """On 200 unseen samples: the 4 that are held out of 24 say little about one network."""
    samples = Samples({"x": images(200, seed=2)})
    return compare(out.with_name("fp32.onnx"), out, samples, 50)[0]["y"]


def run(path, feed, **config):
    options = onnxruntime.SessionOptions()
    for key, value in config.items():
        options.add_session_config_entry(key.replace("_", "."), value)
    return onnxruntime.InferenceSession(str(path), options).run(None, feed)[0]


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_random_networks_fuse_wholly_keep_the_dynamic_batch_and_the_signal(tmp_path_factory, seed):
    out, report = go(tmp_path_factory.mktemp("net"), random_network(seed))
    made = fusion(out)
    assert made.ok
    assert report.float_convs == ()
    assert not set(made.ops) & FLOAT_KERNELS
    assert not [layer for layer in report.layers if layer.form == "float"]
    assert sqnr(out) > 15
    for batch in (1, 3):
        assert run(out, {"x": images(batch)}).shape == (batch, 5)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), choice=st.randoms(use_true_random=False))
def test_whatever_is_excluded_exactly_those_convolutions_are_float(tmp_path_factory, seed, choice):
    model = random_network(seed)
    nodes = [n for n in clean(model).graph.node if n.op_type not in {"Flatten", "MaxPool"}]
    exclude = {n.name for n in nodes[1:] if choice.random() < 0.35}
    out, _ = go(tmp_path_factory.mktemp("net"), model, exclude=tuple(sorted(exclude)))
    ops = fusion(out).ops
    convs = {n.name for n in nodes if n.op_type == "Conv"}
    assert ops.get("Conv", 0) + ops.get("FusedConv", 0) == len(convs & exclude)
    assert ops["QLinearConv"] == len(convs - exclude)
    assert sqnr(out) > 10


def test_every_kind_of_block_becomes_integer(tmp_path):
    out, report = go(tmp_path, zoo())
    made = fusion(out)
    assert made.qconvs == 7
    assert made.dq == 0
    assert made.ops["QuantizeLinear"] == 1
    assert not set(made.ops) & (FLOAT_KERNELS | {"HardSigmoid", "HardSwish", "Clip", "ReduceMean"})
    assert report.sqnr["y"] > 30
    assert report.agreement is not None
    assert {layer.weight_bits for layer in report.layers} <= {7, 8, None}


@pytest.mark.parametrize("method", ["minmax", "moving", "percentile", "entropy", "mse"])
def test_every_calibration_method_keeps_the_signal(tmp_path, method):
    _, report = go(tmp_path, zoo(), method=method)
    # The mean of the samples' extremes clips half of them, which a network of noise does not like.
    assert report.sqnr["y"] > (18 if method == "moving" else 25)


@pytest.mark.parametrize("output", ["a", "c", "d", "h", "s1", "s2", "v", "y"])
def test_an_excluded_layer_is_float_in_a_plain_session(tmp_path, output):
    out, report = go(tmp_path, zoo(), exclude=(output,))
    ops = fusion(out).ops
    if output == "y":
        assert ops["Gemm"] == 1
        assert "QGemm" not in ops
    else:
        assert ops.get("Conv", 0) + ops.get("FusedConv", 0) == 1
        assert ops["QLinearConv"] == 6
    assert [layer.reason for layer in report.layers if layer.form == "float"] == ["excluded"]
    assert report.float_convs == ()
    assert report.sqnr["y"] > 30


def test_a_runtime_that_makes_an_excluded_layer_int8_again_is_found_out(tmp_path, monkeypatch):
    real = profile.fusion

    def greedy(path, **options):
        report = real(path, **options)
        return replace(report, qconvs=report.qconvs + 1, float_convs=())

    monkeypatch.setattr(profile, "fusion", greedy)
    with pytest.raises(IntegrityError, match=r"6 convolutions were to be int8 and this .* runs 7"):
        go(tmp_path, zoo(), exclude=("a",))
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["fp32.onnx"]


@pytest.mark.parametrize(
    ("output", "op", "int8"),
    [("e", "Add", "QLinearAdd"), ("m", "Mul", "QLinearMul"), ("cc", "Concat", "QLinearConcat"),
     ("ReduceMean_p", "GlobalAveragePool", "QLinearGlobalAveragePool"),
     ("vs", "Sigmoid", "QLinearSigmoid")],
)  # fmt: skip
def test_an_excluded_operator_is_float_in_a_plain_session(tmp_path, output, op, int8):
    everything = fusion(go(tmp_path, zoo())[0]).ops
    ops = fusion(go(tmp_path, zoo(), exclude=(output,))[0]).ops
    assert ops.get(op, 0) == 1
    assert ops.get(int8, 0) == everything[int8] - 1


def test_any_two_excluded_convolutions_stay_float(tmp_path):
    for pair in itertools.combinations(["a", "c", "d", "h"], 2):
        ops = fusion(go(tmp_path, zoo(), exclude=pair)[0]).ops
        assert ops.get("Conv", 0) + ops.get("FusedConv", 0) == 2, pair


def test_excluding_an_operator_type_leaves_all_of_it(tmp_path):
    out, _ = go(tmp_path, zoo(), exclude=("Conv",))
    assert "QLinearConv" not in fusion(out).ops


def test_a_float_convolution_before_a_pool_is_not_quantized_through_it(tmp_path):
    model = build(
        "a = Conv(x, w0, b0) c = Conv(a, w1, b1) cp = MaxPool<kernel_shape=[2,2]>(c)"
        " d = Conv(cp, w2, b2) y = Flatten(d)",
        {"w0": (4, 3, 1, 1), "b0": (4,), "w1": (4, 4, 3, 3), "b1": (4,), "w2": (4, 4, 1, 1),
         "b2": (4,)},
    )  # fmt: skip
    ops = fusion(go(tmp_path, model, exclude=("c",))[0]).ops
    assert ops["QLinearConv"] == 2
    assert ops.get("Conv", 0) + ops.get("FusedConv", 0) == 1


def test_the_input_side_preprocessing_and_the_output_stay_float(tmp_path):
    model = build(
        "m = Sub(x, mean) n = Mul(m, inv) a = Conv(n, w0, b0) y = Flatten(a)",
        {"w0": (4, 3, 1, 1), "b0": (4,), "mean": (1, 3, 1, 1), "inv": (1, 3, 1, 1)},
    )
    out, _ = go(tmp_path, model)
    ops = fusion(out).ops
    assert (ops["Sub"], ops["Mul"], ops["QLinearConv"]) == (1, 1, 1)
    written = onnx.load(out)
    kinds = [v.type.tensor_type.elem_type for v in (*written.graph.input, *written.graph.output)]
    assert kinds == [onnx.TensorProto.FLOAT] * 2


@pytest.mark.parametrize("trans", [0, 1])
def test_a_gemm_is_per_column_in_both_layouts(tmp_path, trans):
    shape = (6, 4) if trans else (4, 6)
    model = build(f"y = Gemm<transB={trans}>(x, w, b)", {"w": shape, "b": (6,)},
                  inputs="float[N,4] x")  # fmt: skip
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[(5, slice(None)) if trans else (slice(None), 5)] *= (
        100  # per tensor would drown the rest
    )
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    out, _ = go(tmp_path, model, {"x": images(40, 4)})
    assert "QGemm" in fusion(out).ops
    ours, exact = run(out, {"x": images(40, 4)}), run(tmp_path / "fp32.onnx", {"x": images(40, 4)})
    for column in range(6):
        noise = np.abs(ours[:, column] - exact[:, column]).max()
        assert noise < 0.03 * np.abs(exact[:, column]).max()


def test_matrix_products_of_sequences_run_in_int8(tmp_path):
    model = build(
        "a = MatMul(x, w0) c = Add(a, b0) d = Relu(c) e = MatMul(d, w1) y = Add(e, b1)",
        {"w0": (8, 16), "b0": (16,), "w1": (16, 4), "b1": (4,)}, inputs="float[N,5,8] x",
        outputs="float[N,5,4] y",
    )  # fmt: skip
    out, report = go(tmp_path, model, {"x": images(30, 5, 8)})
    ops = fusion(out).ops
    assert ops.get("MatMul", 0) == 0
    assert ops.get("MatMulIntegerToFloat", 0) + ops.get("QLinearMatMul", 0) == 2
    assert report.sqnr["y"] > 30


def test_a_relu_with_another_reader_before_it_becomes_a_table(tmp_path):
    model = build(
        "a = Conv(x, w0, b0) r = Relu(a) c = Conv(r, w1, b1) e = Add(c, a) y = Flatten(e)",
        {"w0": (4, 3, 1, 1), "b0": (4,), "w1": (4, 4, 1, 1), "b1": (4,)},
    )
    out, report = go(tmp_path, model)
    assert fusion(out).ops["QLinearLeakyRelu"] == 1
    assert report.sqnr["y"] > 30


def test_one_dimensional_and_weight_sharing_convolutions_work(tmp_path):
    body = "a = Conv<pads=[1,1]>(x, w, b) r = Relu(a) c = Conv<pads=[1,1]>(r, w, b) y = Flatten(c)"
    model = build(body, {"w": (4, 4, 3), "b": (4,)}, inputs="float[N,4,9] x")
    out, report = go(tmp_path, model, {"x": images(24, 4, 9)})
    assert fusion(out).qconvs == 2
    assert report.sqnr["y"] > 25


def test_a_subgraph_that_captures_an_int8_tensor_reads_it_in_float(tmp_path):
    model = build(
        "a = Conv(x, w0, b0) f = Flatten(a) s = ReduceSum<keepdims=0>(x) q = Greater(s, zero)"
        " y = If(q) <then_branch = t () => (float[N,M] ty) { ty = Mul(f, six) },"
        " else_branch = e () => (float[N,M] ey) { ey = Identity(f) }>",
        {"w0": (4, 3, 1, 1), "b0": (4,)}, constants=AXES,
    )  # fmt: skip
    out, report = go(tmp_path, model)
    assert fusion(out).qconvs == 1
    assert report.sqnr["y"] > 30


def saturating() -> onnx.ModelProto:
    """Neighbouring weights of one sign and inputs at their maximum: 2 * 255 * 127 > 32,767."""
    model = build("y = Conv(x, w)", {}, inputs="float[N,32,4,4] x", outputs="float[N,6,4,4] y")
    weight = np.ones((6, 32, 1, 1), np.float32)
    weight[1] = -1.0
    weight[2, ::2] = 0.01
    weight[3, :16] = -1.0
    weight[4, 1:] = 1 / 130
    weight[5] = np.linspace(-1, 1, 32).reshape(32, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


def tensors_of(path):
    model = onnx.load(path)
    graph = Graph(model)
    conv = next(n for n in graph.nodes if n.op_type == "Conv")
    dq_x, dq_w = (graph.producer[i] for i in conv.input[:2])
    q_y = graph.consumers[conv.output[0]][0]
    value = lambda node, i: graph.array(node.input[i])  # noqa: E731
    x = (value(dq_x, 1), value(dq_x, 2))
    return x, (value(dq_w, 0), value(dq_w, 1)), (value(q_y, 1), value(q_y, 2))


def test_portable_gives_exact_integers_where_8_bits_would_overflow_16(tmp_path):
    samples = np.random.default_rng(0).choice([0.0, 1.0], (32, 32, 4, 4)).astype(np.float32)
    samples[0] = 1.0
    out, report = go(tmp_path, saturating(), {"x": samples})
    (sx, zx), (w, sw), (sy, zy) = tensors_of(out)
    assert fits_16_bits(w.reshape(6, -1)).all()
    assert np.abs(w[4]).max() == 127  # proven harmless, so it keeps 8 bits
    assert np.abs(w[0]).max() == 64

    x = np.clip(np.rint(samples / sx) + zx, 0, 255).astype(np.int64)
    pairs = 255 * (w[:, 0::2].astype(int) + w[:, 1::2].astype(int))
    assert pairs.max() <= 32767
    assert pairs.min() >= -32768
    exact = np.einsum("nchw,oc->nohw", x - int(zx), w.reshape(6, 32).astype(np.int64))
    scale = (np.float32(sx) * sw / np.float32(sy)).reshape(1, 6, 1, 1)
    expected = np.clip(np.rint(exact * scale.astype(np.float64)) + int(zy), 0, 255)
    got = np.rint(run(out, {"x": samples}) / sy) + int(zy)
    ties = np.abs(np.abs(exact * scale) % 1 - 0.5) < 1e-4
    assert np.array_equal(got[~ties], expected[~ties])
    assert np.abs(got - expected).max() <= 1
    assert report.sqnr["y"] > 35


def test_8_bit_weights_of_the_same_network_would_overflow_16_bits(tmp_path):
    samples = images(24, 32, 4, 4)
    out, report = go(tmp_path, saturating(), {"x": samples}, target="x86-vnni")
    _, (w, _), _ = tensors_of(out)
    assert np.abs(w[0]).max() == 127
    assert not fits_16_bits(w.reshape(6, -1)).all()
    assert report.target.name == "x86-vnni"


def test_arm64_writes_signed_activations_that_fuse_where_s8_is_allowed(tmp_path):
    out, report = go(tmp_path, zoo(), target="arm64")
    written = onnx.load(out)
    constants = {t.name: t.data_type for t in written.graph.initializer}
    kinds = {constants[n.input[2]] for n in written.graph.node if n.op_type == "QuantizeLinear"}
    assert kinds == {onnx.TensorProto.INT8}
    assert report.float_convs == ()
    assert fusion(out, config={"session.qdqisint8allowed": "1"}).qconvs == 7
    assert report.sqnr["y"] > 30


def test_bias_is_int32_on_the_scale_of_input_times_weight(tmp_path):
    graph = Graph(onnx.load(go(tmp_path, zoo())[0]))
    convs = [n for n in graph.nodes if n.op_type in {"Conv", "Gemm"}]
    assert len(convs) == 8
    for conv in convs:
        x, w, b = (graph.producer[i] for i in conv.input)
        scales = [graph.array(n.input[1]) for n in (x, w, b)]
        assert graph.array(b.input[0]).dtype == np.int32
        assert np.array_equal(scales[2], scales[0] * scales[1])
        assert attribute(w, "axis") == 0


def test_equal_inputs_give_equal_bytes(tmp_path):
    first = go(tmp_path, zoo())[0].read_bytes()
    assert go(tmp_path, zoo())[0].read_bytes() == first


def test_a_model_that_needs_no_opset_upgrade_keeps_its_opset_and_runs_at_each(tmp_path):
    for version in (13, 17, 18, 21, 22, 23):
        ir = 8 if version < 21 else 10
        model = build("a = Conv(x, w, b) r = Relu(a) y = Flatten(r)",
                      {"w": (4, 3, 1, 1), "b": (4,)}, opset=version, ir=ir)  # fmt: skip
        out, report = go(tmp_path, model)
        assert onnx.load(out).opset_import[0].version == version
        assert fusion(out).qconvs == 1, version
        assert report.sqnr["y"] > 30


def test_quality_is_no_worse_than_the_runtimes_own_quantizer_at_7_bits(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([{"x": images()}])

        def get_next(self):
            return next(self.feeds, None)

    put(zoo(), tmp_path / "fp32.onnx")
    quantize_static(tmp_path / "fp32.onnx", tmp_path / "peer.onnx", Reader(), per_channel=True,
                    reduce_range=True, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8)  # fmt: skip
    out, _ = go(tmp_path, zoo())
    feed = {"x": images(64, seed=9)}
    exact, ours, peer = (
        run(p, feed) for p in (tmp_path / "fp32.onnx", out, tmp_path / "peer.onnx")
    )
    assert ((ours - exact) ** 2).sum() < ((peer - exact) ** 2).sum() * 1.25


def test_nothing_of_the_float_weights_stays_in_the_file(tmp_path):
    out, _ = go(tmp_path, zoo())
    floats = [t for t in onnx.load(out).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert all(len(t.dims) <= 1 for t in floats)
    assert {n.op_type for n in optimized_graph(out).graph.node} >= {"QLinearConv", "QGemm"}


@pytest.mark.parametrize(("slope", "offset"), [(0.3, 0.0), (0.3, -0.2), (0.3, 0.4), (-0.3, 0.5)])
def test_every_hard_sigmoid_is_right_and_a_falling_one_is_float(tmp_path, slope, offset):
    model = build(f"a = Conv(x, w, b) s = HardSigmoid<alpha={slope}, beta={offset}>(a)"
                  " m = Mul(a, s) y = Conv(m, v)", {"w": (8, 3, 1, 1), "b": (8,),
                  "v": (4, 8, 1, 1)}, outputs="float[N,4,8,8] y")  # fmt: skip
    out, report = go(tmp_path, model)
    assert sqnr(out) > 20  # a gate that is nearly shut has few of its steps of 1/255
    forms = {layer.op: layer.form for layer in report.layers}
    assert forms.get("HardSigmoid", "float") == ("int8" if slope > 0 else "float")
