"""Small networks for the tests, written as ONNX text with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper, parser


def build(
    body: str, shapes: dict[str, tuple[int, ...]], *, inputs: str = "float[N,3,8,8] x",
    outputs: str = "float[N,M] y", constants: str = "", opset: int = 18, ir: int = 8, seed: int = 0,
) -> ModelProto:  # fmt: skip
    """A model of ``body``; every name in ``shapes`` becomes a random float initializer."""
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) '
    model = parser.parse_model(f"{text}{constants} {{ {body} }}")
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        fan = int(np.prod(shape[1:])) if shape[1:] else 100  # biases are small
        value = (rng.standard_normal(shape) / np.sqrt(fan)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def put(model: ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def images(count: int = 24, *shape: int, seed: int = 1) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *(shape or (3, 8, 8)))).astype(np.float32)


AXES = "<int64[2] ax = {2, 3}, float zero = {0.0}, float six = {6.0}>"

# Convolution, depthwise, residual, pool, hard-swish, squeeze-excite, concat, SiLU, Gemm.
ZOO = """
 a = Conv<pads=[1,1,1,1]>(x, w0, b0) ar = Relu(a)
 c = Conv<pads=[1,1,1,1]>(ar, w1, b1) cr = Clip(c, zero, six)
 d = Conv<pads=[1,1,1,1], group=8>(cr, w2, b2)
 e = Add(d, ar) er = Relu(e)
 mp = MaxPool<kernel_shape=[2,2], strides=[2,2]>(er)
 h = Conv(mp, w3, b3) hs = HardSwish(h)
 se = ReduceMean<keepdims=1>(hs, ax)
 s1 = Conv(se, w4, b4) s1r = Relu(s1) s2 = Conv(s1r, w5, b5)
 sg = HardSigmoid<alpha=0.1666667, beta=0.5>(s2) m = Mul(hs, sg)
 cc = Concat<axis=1>(m, mp)
 v = Conv(cc, w6, b6) vs = Sigmoid(v) t = Mul(v, vs)
 p = ReduceMean<keepdims=0>(t, ax)
 y = Gemm<transB=1>(p, w7, b7)
"""
ZOO_SHAPES = {
    "w0": (8, 3, 3, 3), "b0": (8,), "w1": (8, 8, 3, 3), "b1": (8,), "w2": (8, 1, 3, 3), "b2": (8,),
    "w3": (12, 8, 1, 1), "b3": (12,), "w4": (4, 12, 1, 1), "b4": (4,), "w5": (12, 4, 1, 1),
    "b5": (12,), "w6": (16, 20, 1, 1), "b6": (16,), "w7": (10, 16), "b7": (10,),
}  # fmt: skip


def zoo() -> ModelProto:
    return build(ZOO, ZOO_SHAPES, constants=AXES)


def random_network(seed: int) -> ModelProto:
    """A chain of random blocks on 8 channels with one of two heads."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"w0": (8, 3, 3, 3), "b0": (8,)}
    lines, now = ["t0 = Conv<pads=[1,1,1,1]>(x, w0, b0)", "u0 = Relu(t0)"], "u0"
    blocks = ["conv", "depthwise", "residual", "concat", "pool", "excite", "swish", "silu"]
    for k in range(1, 1 + int(rng.integers(2, 6))):
        block = str(rng.choice(blocks))
        new, w, b = f"u{k}", f"w{k}", f"b{k}"
        if block == "pool":
            lines.append(f"{new} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({now})")
            now = new
            continue
        if block == "excite":
            shapes |= {w: (8, 8, 1, 1), b: (8,)}
            lines += [f"g{k} = ReduceMean<keepdims=1>({now}, ax)", f"c{k} = Conv(g{k}, {w}, {b})",
                      f"s{k} = Sigmoid(c{k})", f"{new} = Mul({now}, s{k})"]  # fmt: skip
            now = new
            continue
        groups = 8 if block == "depthwise" else 1
        wide = 3 if rng.random() < 0.5 else 1
        shapes |= {w: (8, 8 // groups, wide, wide), b: (8,)}
        pad = wide // 2
        lines.append(
            f"c{k} = Conv<pads=[{pad},{pad},{pad},{pad}], group={groups}>({now}, {w}, {b})"
        )
        lines += {
            "conv": [f"{new} = Relu(c{k})"],
            "depthwise": [f"{new} = Clip(c{k}, zero, six)"],
            "residual": [f"r{k} = Add(c{k}, {now})", f"{new} = Relu(r{k})"],
            "swish": [f"{new} = HardSwish(c{k})"],
            "silu": [f"s{k} = Sigmoid(c{k})", f"{new} = Mul(c{k}, s{k})"],
            "concat": [f"k{k} = Concat<axis=1>(c{k}, {now})", f"{new} = Conv(k{k}, v{k})"],
        }[block]
        if block == "concat":
            shapes[f"v{k}"] = (8, 16, 1, 1)
        now = new
    shapes |= {"wh": (8, 5), "bh": (5,)}
    lines.append(f"p = ReduceMean<keepdims=0>({now}, ax)")
    if rng.random() < 0.5:
        lines.append("y = Gemm(p, wh, bh)")
    else:
        lines += ["q = MatMul(p, wh)", "y = Add(q, bh)"]
    return build("\n".join(lines), shapes, constants=AXES, seed=seed)
