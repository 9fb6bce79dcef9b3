"""What weighted layers multiply: their inputs, unfolded, at random output positions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from compressor.quantization import parts, qdq
from compressor.quantization.calibrate import Feeds
from compressor.quantization.graph import Array, Graph, attribute, constant_of
from compressor.quantization.select import reduction_first

Floats = NDArray[np.float32]
_BYTES = 128 << 20  # of one layer's unfolded inputs


def cache(
    graph: Graph,
    written: qdq.Written,
    group: list[NodeProto],
    feeds: Feeds,
    total: int,
    positions: int,
    rng: np.random.Generator,
    threads: int,
) -> dict[str, tuple[Floats, Floats]]:
    """Run both models over the samples and keep some positions of one level's layers.

    Args:
        graph: Float model.
        written: Its QDQ form.
        group: Nodes of one level.
        feeds: Batches, the same at every call.
        total: Samples that they hold.
        positions: To keep of each layer; fewer where 128 MiB hold fewer.
        rng: Chooses them.
        threads: Of the runtime.

    Returns:
        Node name to (quantized inputs, float sums), see :func:`unfold`.
    """
    made = {n.name: n for n in written.model.graph.node}
    sources = [made[n.name].input[0] for n in group]
    floats = parts.open_model(parts.cut(graph.model, [n.output[0] for n in group]), threads)
    needed = list(dict.fromkeys(sources))
    ints = parts.open_model(parts.cut(written.model, needed), threads)
    seen = 0
    kept: dict[str, list[tuple[Floats, Floats]]] = {n.name: [] for n in group}
    limits = [max(1, min(positions, _BYTES // _bytes(n, graph))) for n in group]
    for feed in feeds():
        outputs = floats.run(None, dict(feed))
        tensors = dict(zip(needed, ints.run(None, dict(feed)), strict=True))
        before, seen = seen, seen + len(next(iter(feed.values())))
        for node, source, output, limit in zip(group, sources, outputs, limits, strict=True):
            count = limit * seen // total - limit * before // total
            part = unfold(node, graph, tensors[source], output, count, rng)
            kept[node.name].append(part)
    return {
        name: (np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found]))
        for name, found in kept.items()
    }


def _bytes(node: NodeProto, graph: Graph) -> int:
    """Of the unfolded input at one position."""
    weight = constant_of(node, graph, 1)
    assert weight is not None  # ``select.why_float`` saw it
    groups = int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1
    reduction: int = reduction_first(node, weight).shape[1]
    return 4 * groups * reduction


def unfold(
    node: NodeProto, graph: Graph, tensor: Floats, output: Floats, count: int,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:  # fmt: skip
    """What a weighted node multiplies, and makes without bias, at random output positions.

    Args:
        node: Conv of any rank, Gemm or MatMul.
        graph: Holds its constants.
        tensor: Its input.
        output: Its output, whose shape says what the paddings are.
        count: Positions, over samples and space; all if there are fewer.
        rng: Chooses them.

    Returns:
        [positions, groups, reduction] and [positions, channels].
    """
    weight, bias = constant_of(node, graph, 1), constant_of(node, graph, 2)
    assert weight is not None  # ``select.why_float`` saw it
    shift = np.float32(0) if bias is None else bias.reshape(-1)
    if node.op_type != "Conv":
        rows, sums = tensor.reshape(-1, tensor.shape[-1]), output.reshape(-1, output.shape[-1])
        at = np.sort(rng.permutation(len(rows))[:count])
        return rows[at][:, None, :], sums[at] - shift
    sample_space = (output.shape[0], *output.shape[2:])
    size = int(np.prod(sample_space))
    flat = np.sort(rng.choice(size, min(count, size), replace=False))
    sample, *places = np.unravel_index(flat, sample_space)
    space = len(places)
    groups = int(attribute(node, "group", 1))
    strides = attribute(node, "strides", [1] * space)
    dilations = attribute(node, "dilations", [1] * space)
    begins = _begins(node, tensor.shape[2:], output.shape[2:], weight.shape[2:])
    ones = [1] * space
    index: list[Array] = [
        sample.reshape(-1, 1, *ones), np.arange(tensor.shape[1]).reshape(1, -1, *ones)
    ]  # fmt: skip
    inside = np.ones((len(flat), 1, *ones), np.bool_)
    for a, place in enumerate(places):
        offsets = np.arange(weight.shape[2 + a]) * dilations[a]
        at = place[:, None] * strides[a] + offsets - begins[a]
        shape = (len(flat), 1, *[-1 if b == a else 1 for b in range(space)])
        inside = inside & ((at >= 0) & (at < tensor.shape[2 + a])).reshape(shape)
        index.append(np.clip(at, 0, tensor.shape[2 + a] - 1).reshape(shape))
    patches = tensor[tuple(index)] * inside
    sums = np.moveaxis(output, 1, -1)[(sample, *places)] - shift
    return patches.reshape(len(flat), groups, -1), sums


def _begins(
    node: NodeProto, size: tuple[int, ...], out: tuple[int, ...], kernel: tuple[int, ...]
) -> list[int]:
    """Padding in front of each spatial axis."""
    space = len(size)
    mode = attribute(node, "auto_pad", b"NOTSET").decode()
    if mode == "VALID":
        return [0] * space
    if mode == "NOTSET":
        return list(attribute(node, "pads", [0] * space))[:space]
    strides = attribute(node, "strides", [1] * space)
    dilations = attribute(node, "dilations", [1] * space)
    begins = []
    for a in range(space):
        reach = (out[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1
        extra = max(0, reach - size[a])
        begins.append(extra // 2 if mode == "SAME_UPPER" else extra - extra // 2)
    return begins
