"""Small ONNX models, built by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR = 18, 10


def model(nodes, inputs, outputs, initializers, *, opset=OPSET, ir=IR, props=None):
    graph = helper.make_graph(nodes, "net", inputs, outputs, initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    for key, value in (props or {}).items():
        made.metadata_props.add(key=key, value=value)
    return made


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def info(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def convnet(
    path: Path,
    *,
    width=4,
    classes=3,
    seed=0,
    batch="N",
    size=8,
    scale=1.0,
    props=None,
    kind=TensorProto.FLOAT,
) -> Path:
    """Conv 3x3 -> Relu -> GlobalAveragePool -> Flatten -> Gemm; input x [N, 1, size, size]."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "v", "d"], ["logits"], name="fc", transB=1),
    ]
    weights = [
        tensor("w", rng.normal(size=(width, 1, 3, 3)).astype(np.float32)),
        tensor("b", rng.normal(size=width).astype(np.float32)),
        tensor("v", (scale * rng.normal(size=(classes, width))).astype(np.float32)),
        tensor("d", np.zeros(classes, np.float32)),
    ]
    made = model(
        nodes, [info("x", [batch, 1, size, size], kind)], [info("logits", [batch, classes])],
        weights, props=props,
    )  # fmt: skip
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
    return path


def relu(path: Path, *, opset=OPSET, ir=IR) -> Path:
    made = model(
        [helper.make_node("Relu", ["x"], ["y"])], [info("x", ["N", 3])], [info("y", ["N", 3])], [],
        opset=opset, ir=ir,
    )  # fmt: skip
    onnx.save(made, str(path))
    return path


def qdq_convnet(path: Path, *, width=4, classes=3, seed=0, size=8, scale=1.0, props=None) -> Path:
    """The int8 form of :func:`convnet` with the same seed: weights behind DequantizeLinear."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(width, 1, 3, 3)).astype(np.float32)
    b = rng.normal(size=width).astype(np.float32)
    v = (scale * rng.normal(size=(classes, width))).astype(np.float32)
    sx, sw, sv, sa = 1 / 255, np.abs(w).max() / 127, np.abs(v).max() / 127, 0.05
    f32 = np.float32
    weights = [
        tensor("sx", f32(sx)), tensor("zx", np.uint8(0)), tensor("sa", f32(sa)),
        tensor("wq", np.round(w / sw).astype(np.int8)), tensor("sw", f32(sw)),
        tensor("zw", np.int8(0)), tensor("sv", f32(sv)), tensor("sb", f32(sx * sw)),
        tensor("bq", np.round(b / (sx * sw)).astype(np.int32)), tensor("zb", np.int32(0)),
        tensor("vq", np.round(v / sv).astype(np.int8)), tensor("d", np.zeros(classes, f32)),
    ]  # fmt: skip
    nodes = [
        *_qdq("x", "xd", "sx", "zx"),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"]),
        helper.make_node("DequantizeLinear", ["bq", "sb", "zb"], ["bd"]),
        helper.make_node("DequantizeLinear", ["vq", "sv", "zw"], ["vd"]),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        *_qdq("r", "rd", "sa", "zx"),
        helper.make_node("GlobalAveragePool", ["rd"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "vd", "d"], ["logits"], name="fc", transB=1),
    ]
    made = model(
        nodes, [info("x", ["N", 1, size, size])], [info("logits", ["N", classes])], weights,
        props=props,
    )  # fmt: skip
    onnx.checker.check_model(made)
    onnx.save(made, str(path))
    return path


def _qdq(source, target, scale, zero):
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [target + "_q"]),
        helper.make_node("DequantizeLinear", [target + "_q", scale, zero], [target]),
    ]
