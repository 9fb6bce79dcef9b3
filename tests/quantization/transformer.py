"""One block of a transformer as exporters write it: batched products, LayerNorm, Softmax, Erf."""

from __future__ import annotations

from onnx import ModelProto

from tests.quantization.graphs import build

WIDTH, HEADS, LENGTH, HIDDEN = 32, 4, 9, 64
# Constant matrices (MatMul with an Add for the bias), and two products of activations.
CONSTANT = ("q", "k", "v", "o", "f", "g")
BATCHED = ("scores", "mixed")

_HEADS = "perm=[0,2,1,3]"
BODY = f"""
 n = LayerNormalization<axis=-1>(x, s0, t0)
 q = MatMul(n, wq) qb = Add(bq, q) qr = Reshape(qb, split) qh = Transpose<{_HEADS}>(qr)
 k = MatMul(n, wk) kb = Add(bk, k) kr = Reshape(kb, split) kh = Transpose<perm=[0,2,3,1]>(kr)
 v = MatMul(n, wv) vb = Add(bv, v) vr = Reshape(vb, split) vh = Transpose<{_HEADS}>(vr)
 qs = Mul(qh, root)
 scores = MatMul(qs, kh) a = Softmax<axis=-1>(scores)
 mixed = MatMul(a, vh) mt = Transpose<{_HEADS}>(mixed) mr = Reshape(mt, join)
 o = MatMul(mr, wo) ob = Add(bo, o) r = Add(ob, x)
 m = LayerNormalization<axis=-1>(r, s1, t1)
 f = MatMul(m, wf) fb = Add(bf, f)
 e0 = Div(fb, sqrt2) e1 = Erf(e0) e2 = Add(e1, one) e3 = Mul(fb, e2) e4 = Mul(e3, half)
 g = MatMul(e4, wg) gb = Add(bg, g) z = Add(gb, r)
 p = ReduceMean<keepdims=0>(z, ax)
 y = Gemm<transB=1>(p, wh, bh)
"""
CONSTANTS = (
    f"<int64[4] split = {{0, {LENGTH}, {HEADS}, {WIDTH // HEADS}}},"
    f" int64[3] join = {{0, {LENGTH}, {WIDTH}}}, int64[1] ax = {{1}},"
    " float root = {0.353553}, float sqrt2 = {1.414214}, float one = {1.0}, float half = {0.5}>"
)
SHAPES: dict[str, tuple[int, ...]] = {
    **{f"w{i}": (WIDTH, WIDTH) for i in "qkvo"}, **{f"b{i}": (WIDTH,) for i in "qkvog"},
    "wf": (WIDTH, HIDDEN), "bf": (HIDDEN,), "wg": (HIDDEN, WIDTH), "wh": (10, WIDTH), "bh": (10,),
    "s0": (WIDTH,), "t0": (WIDTH,), "s1": (WIDTH,), "t1": (WIDTH,),
}  # fmt: skip


def block() -> ModelProto:
    """Input ``x`` [N, 9, 32], output ``y`` [N, 10], 6 MatMul and a Gemm with constant weights."""
    from onnx import numpy_helper

    model = build(BODY, SHAPES, inputs=f"float[N,{LENGTH},{WIDTH}] x", outputs="float[N,10] y",
                  constants=CONSTANTS)  # fmt: skip
    for tensor in model.graph.initializer:
        if tensor.name in {"s0", "s1"}:  # LayerNorm's scale is near 1
            near = numpy_helper.to_array(tensor) + 1
            tensor.CopyFrom(numpy_helper.from_array(near, tensor.name))
    return model
