"""What the artifact's integers are, whoever computes them exactly."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core.environment import instruction_set
from compressor.quantization.plain import Options, quantize
from tests.quantization.graphs import build, images, put, random_network, zoo
from tests.quantization.oracle import Oracle, Quantized, convolve, unsafe, wrong
from tests.quantization.test_qdq import saturating


def go(folder, model, samples, **options):
    out = folder / "int8.onnx"
    quantize(put(model, folder / "fp32.onnx"), out, {"x": samples}, Options(**options))
    return out


def integers(path, samples):
    """Every quantized tensor as ONNX Runtime computes it, in a session with default options."""
    model = onnx.load(path)
    names = [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    for name in names:
        model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_suffix(".run.onnx"))
    options.log_severity_level = 3  # it warns that the dump is for this machine only
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    ran = {n.op_type for n in onnx.load(path.with_suffix(".run.onnx")).graph.node}
    # Asking for the integers must not change the kernels that make them.
    assert not ran & {"Conv", "FusedConv", "Gemm", "Add", "GlobalAveragePool", "Concat", "MatMul"}
    return dict(zip(names, session.run(names, {"x": samples}), strict=True))


def check(path, samples):
    """Node by node on the runtime's own integers, then whole: the same answer."""
    oracle, theirs = Oracle(path), integers(path, samples)
    beside = oracle.run({"x": samples}, theirs)
    assert wrong(beside, theirs) == []
    alone = oracle.run({"x": samples})
    ((name, ours),) = alone.outputs.items()
    exact = onnxruntime.InferenceSession(str(path)).run([name], {"x": samples})[0]
    assert np.array_equal(ours.reshape(len(ours), -1).argmax(1),
                          exact.reshape(len(exact), -1).argmax(1))  # fmt: skip
    return beside


exactly = pytest.mark.skipif(
    instruction_set() == "arm64", reason="u8 x s8 runs in other kernels there"
)


@exactly
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_random_networks_give_the_oracles_integers_and_its_answer(tmp_path_factory, seed):
    path = go(tmp_path_factory.mktemp("net"), random_network(seed), images(40))
    assert unsafe(path) == []
    check(path, images(200, seed=2))


@exactly
def test_every_kind_of_block_gives_the_oracles_integers(tmp_path):
    path = go(tmp_path, zoo(), images(40))
    ran = check(path, images(200, seed=2)).ran
    assert ran == {"Conv", "Add", "MaxPool", "Mul", "Concat", "GlobalAveragePool", "Sigmoid",
                   "Flatten", "Gemm"}  # fmt: skip
    assert unsafe(path) == []


@exactly
def test_a_relu_that_became_a_table_is_exact(tmp_path):
    body = "a = Conv(x, w0, b0) r = Relu(a) c = Conv(r, w1, b1) e = Add(c, a) y = Flatten(e)"
    model = build(body, {"w0": (4, 3, 1, 1), "b0": (4,), "w1": (4, 4, 1, 1), "b1": (4,)})
    path = go(tmp_path, model, images(40))
    assert check(path, images(50, seed=2)).ran == {"Conv", "LeakyRelu", "Add"}


@exactly
@pytest.mark.parametrize(
    "conv",
    ["strides=[2,2]", "strides=[2,1], pads=[1,0,2,1]", "dilations=[2,2], pads=[2,2,2,2]",
     "group=2, pads=[1,1,1,1]", "group=8, pads=[1,1,1,1]", "group=8, strides=[2,2]",
     "group=4, pads=[0,1,1,0]"],
)  # fmt: skip
def test_strides_pads_dilations_and_groups_are_exact(tmp_path, conv):
    groups = int(conv.split("group=")[1][0]) if "group=" in conv else 1
    body = f"a = Conv(x, w0, b0) r = Relu(a) c = Conv<{conv}>(r, w1, b1) y = Flatten(c)"
    shapes = {"w0": (8, 3, 1, 1), "b0": (8,), "w1": (8, 8 // groups, 3, 3), "b1": (8,)}
    model = build(body, shapes)
    path = go(tmp_path, model, images(40))
    assert check(path, images(200, seed=2)).ran >= {"Conv"}
    assert unsafe(path) == []


@exactly
def test_matrix_products_are_exact_with_and_without_a_quantized_output(tmp_path):
    model = build(
        "a = Gemm<transB=1>(x, w0, b0) r = Relu(a) c = Gemm(r, w1, b1) d = MatMul(c, w2)"
        " y = Softmax(d)",
        {"w0": (32, 16), "b0": (32,), "w1": (32, 24), "b1": (24,), "w2": (24, 6)},
        inputs="float[N,16] x",
    )  # fmt: skip
    path = go(tmp_path, model, images(40, 16))
    assert check(path, images(200, 16, seed=2)).ran == {"Gemm", "MatMul"}
    assert unsafe(path) == []


def test_the_oracles_convolution_is_onnx_own():
    rng = np.random.default_rng(0)
    for options in ({"group": 2, "pads": [1, 0, 2, 1]}, {"strides": [2, 1], "dilations": [1, 2]}):
        node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], **options)
        x = rng.integers(-9, 9, (2, 4, 7, 7))
        w = rng.integers(-9, 9, (6, 4 // options.get("group", 1), 3, 3))
        expected = onnx.reference.ReferenceEvaluator(node).run(
            None, {"x": x.astype(np.float32), "w": w.astype(np.float32)}
        )[0]
        assert np.array_equal(convolve(node, x, w), expected)


def test_a_wrong_integer_is_found_and_one_at_a_tie_is_not(tmp_path):
    path = go(tmp_path, zoo(), images(40))
    answer = Oracle(path).run({"x": images(4)})
    theirs = {name: a.copy() for name, a in answer.integers.items()}
    assert wrong(answer, theirs) == []
    name = next(n for n, s in answer.steps.items() if n.startswith("e"))
    theirs[name].flat[7] ^= 1
    assert wrong(answer, theirs)[0].startswith(f"{name}: 1 of")
    answer.steps[name].flat[7] = 12.5
    assert wrong(answer, theirs) == []


def saturated(x, w):
    """Sums of neighbouring products as ``vpmaddubsw`` gives them, int16 each, then added."""
    pairs = x[..., 0::2] * w[..., 0::2] + x[..., 1::2] * w[..., 1::2]
    return np.clip(pairs, -32768, 32767).sum(axis=-1)


@pytest.mark.parametrize(("target", "safe"), [("portable", True), ("x86-vnni", False)])
def test_no_pair_overflows_in_a_portable_file_and_the_check_sees_one_that_does(
    tmp_path, target, safe
):
    samples = np.random.default_rng(0).choice([0.0, 1.0], (32, 32, 4, 4)).astype(np.float32)
    samples[0] = 1.0
    path = go(tmp_path, saturating(), samples, target=target)
    assert (unsafe(path) == []) == safe
    oracle = Oracle(path)
    weight = next(v for v in oracle.constants.values() if v.ndim == 4).reshape(6, 32).astype(int)
    x = oracle.run({"x": samples}).integers["x/quantized"].astype(int).transpose(0, 2, 3, 1)
    each = [saturated(x, row) for row in weight]
    exact = [(x * row).sum(axis=-1) for row in weight]
    assert np.array_equal(each, exact) == safe


def test_a_portable_random_network_is_safe_where_8_bits_everywhere_are_not(tmp_path):
    portable = go(tmp_path, zoo(), images(40))
    assert unsafe(portable) == []
    assert len(unsafe(go(tmp_path, zoo(), images(40), weight_bits=8))) > 2


def test_dequantized_values_follow_their_axis():
    value = Quantized(np.array([[2, 4], [6, 8]], np.int8), np.array([1.0, 0.5], np.float32),
                      np.array([0, 2], np.int8), axis=0)  # fmt: skip
    assert value.real.tolist() == [[2.0, 4.0], [2.0, 3.0]]
