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
