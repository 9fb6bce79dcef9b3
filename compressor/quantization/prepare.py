"""Any ONNX file -> a float graph that is ready to be quantized, or a reason why not.

The rewrites are exact: constants become initializers, BatchNormalization folds into the layer
before it, a mean over H and W becomes GlobalAveragePool (ONNX Runtime has an int8 kernel only for
that one), MaxPool and a Relu behind it change places so that the Relu can fold into the layer.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from compressor.core.errors import ConfigError
from compressor.quantization.graph import Graph, attribute, captured, constant_of, infer, opset
from compressor.runtime.session import check_file

# What ONNX Runtime 1.30 and 1.31 load at most; below 11 the converter's adapters have holes.
_IR, _OPSETS, _CONVERT_TO = 13, range(11, 27), 17
_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulNBits")
_FLOAT_KINDS = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}


def load(path: Path) -> Graph:
    """Read, check and clean a float model.

    Args:
        path: An ``.onnx`` file; external data is read from the same folder only.

    Raises:
        ConfigError: No such file, too new, too old, already quantized, or without float32 weights.
        IntegrityError: Not an ONNX file, or external data that is not a plain file beside it.
    """
    model = _read(path)
    _refuse(model, path)
    if opset(model) < 13:
        model = _upgrade(model, path)
    return Graph(clean(model))


def _read(path: Path) -> ModelProto:
    check_file(path)
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.load_external_data_for_model(model, str(path.parent.resolve()))
        onnx.checker.check_model(model)
    except Exception as error:  # the protobuf and checker errors have no common ancestor
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{path}: not a valid ONNX model ({line})") from error
    return model


def _refuse(model: ModelProto, path: Path) -> None:
    version = opset(model)
    if model.ir_version > _IR:
        raise ConfigError(
            f"{path}: IR version {model.ir_version}; ONNX Runtime loads up to {_IR}, "
            f"export with ir_version {_IR} or lower"
        )
    if version not in _OPSETS:
        raise ConfigError(
            f"{path}: opset {version}; supported are {_OPSETS[0]} to {_OPSETS[-1]} "
            "(onnx.version_converter changes it)"
        )
    found = sorted(
        {n.op_type for n in model.graph.node if n.op_type in _QUANTIZED}
        | {n.op_type for n in model.graph.node if n.op_type.startswith(("QLinear", "QGemm"))}
        | {n.op_type for n in model.graph.node if n.op_type.endswith("Integer")}
    )
    if found:
        raise ConfigError(
            f"{path}: quantized already ({', '.join(found)}); give the float32 model it came from"
        )
    kinds = {t.data_type for t in model.graph.initializer if t.dims}
    half = [name for kind, name in _FLOAT_KINDS.items() if kind in kinds]
    if half and TensorProto.FLOAT not in kinds:
        raise ConfigError(f"{path}: all weights are {half[0]}; give the float32 model")


def _upgrade(model: ModelProto, path: Path) -> ModelProto:
    version = opset(model)
    try:
        newer = onnx.version_converter.convert_version(model, _CONVERT_TO)
    except Exception as error:  # the C++ converter raises RuntimeError and its own types
        raise ConfigError(
            f"{path}: opset {version} has no per-channel int8 and cannot be upgraded to "
            f"{_CONVERT_TO} ({str(error).strip().splitlines()[0][:200]}); export it with opset 13+"
        ) from error
    newer.ir_version = max(model.ir_version, 8)
    return newer


def clean(model: ModelProto) -> ModelProto:
    """A copy with unique node names, known shapes and the exact rewrites applied."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _constants_(copy)
    _names_(copy)
    copy = infer(copy)
    for rewrite in (_fold_batch_norm, _mean_to_pool, _relu_before_pool, _matmul_to_gemm):
        while rewrite(copy, Graph(copy)):
            pass
    _drop_unused_(copy)
    return infer(copy)


def _constants_(model: ModelProto) -> None:
    """Constant nodes become initializers, Identity disappears, initializers are no inputs."""
    graph, kept = model.graph, []
    pinned = {o.name for o in graph.output}
    for node in graph.node:
        pinned.update(captured(node))
    alias: dict[str, str] = {}
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, TensorProto) and node.output[0] not in pinned:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        elif _does_nothing(node) and node.output[0] not in pinned:
            alias[node.output[0]] = alias.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    for node in kept:
        for i, name in enumerate(node.input):
            node.input[i] = alias.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)
    constants = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)


def _does_nothing(node: NodeProto) -> bool:
    mask = len(node.output) > 1 and node.output[1]
    return node.op_type == "Identity" or (node.op_type == "Dropout" and not mask)


def _names_(model: ModelProto) -> None:
    """Every node gets a name of its own; those that have one keep it."""
    taken: set[str] = set()
    for node in model.graph.node:
        base = node.name or f"{node.op_type}_{node.output[0]}"
        name, k = base, 1
        while name in taken:
            name, k = f"{base}_{k}", k + 1
        node.name = name
        taken.add(name)


def _replace_(model: ModelProto, old: list[NodeProto], new: list[NodeProto]) -> None:
    """Put ``new`` where the last of ``old`` stood and remove ``old``."""
    names = {n.name for n in old}
    at = max(i for i, n in enumerate(model.graph.node) if n.name in names)
    nodes = list(model.graph.node)
    result = [n for n in nodes[:at] if n.name not in names] + new + nodes[at + 1 :]
    copies = [NodeProto() for _ in result]
    for copy, node in zip(copies, result, strict=True):
        copy.CopyFrom(node)
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _add(model: ModelProto, name: str, value: np.ndarray) -> str:
    taken = {t.name for t in model.graph.initializer}
    k, unique = 1, name
    while unique in taken:
        unique, k = f"{name}_{k}", k + 1
    model.graph.initializer.append(numpy_helper.from_array(value, unique))
    return unique


def _fold_batch_norm(model: ModelProto, graph: Graph) -> bool:
    """Conv -> BatchNormalization becomes one Conv; True if one was folded."""
    for norm in graph.nodes:
        conv = graph.producer.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or graph.sole_reader(conv.output[0]) is None:
            continue
        rows = [constant_of(norm, graph, i) for i in (1, 2, 3, 4)]
        weight, bias = constant_of(conv, graph, 1), constant_of(conv, graph, 2)
        given = len(conv.input) > 2 and conv.input[2]
        if weight is None or (given and bias is None) or any(r is None for r in rows):
            continue
        gamma, beta, mean, var = (np.asarray(r, np.float64) for r in rows)
        if attribute(norm, "training_mode", 0) or len([o for o in norm.output if o]) != 1:
            continue
        factor = gamma / np.sqrt(var + attribute(norm, "epsilon", 1e-5))
        folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        shift = (0.0 if bias is None else bias) * factor + beta - mean * factor
        node = NodeProto()
        node.CopyFrom(conv)
        del node.input[1:]
        node.input.append(_add(model, f"{conv.name}/weight", folded.astype(np.float32)))
        node.input.append(_add(model, f"{conv.name}/bias", shift.astype(np.float32)))
        node.output[0] = norm.output[0]
        _replace_(model, [conv, norm], [node])
        return True
    return False


def _mean_to_pool(model: ModelProto, graph: Graph) -> bool:
    """ReduceMean over H and W of [N, C, H, W] becomes GlobalAveragePool (and Flatten)."""
    for mean in graph.nodes:
        shape = graph.shape(mean.input[0]) if mean.op_type == "ReduceMean" else None
        if shape is None or len(shape) != 4 or not graph.is_float(mean.input[0]):
            continue
        given = constant_of(mean, graph, 1)
        axes = attribute(mean, "axes") if given is None else given.reshape(-1).tolist()
        if axes is None or sorted(int(a) % 4 for a in axes) != [2, 3]:
            continue
        keep = attribute(mean, "keepdims", 1)
        pooled = mean.output[0] if keep else f"{mean.output[0]}/pooled"
        new = [helper.make_node("GlobalAveragePool", [mean.input[0]], [pooled], name=mean.name)]
        if not keep:
            flat = f"{mean.name}/flatten"
            new.append(helper.make_node("Flatten", [pooled], [mean.output[0]], name=flat, axis=1))
            pool_info = helper.make_tensor_value_info(pooled, TensorProto.FLOAT, [*shape[:2], 1, 1])
            model.graph.value_info.append(pool_info)
        _replace_(model, [mean], new)
        return True
    return False


def _relu_before_pool(model: ModelProto, graph: Graph) -> bool:
    """MaxPool -> Relu becomes Relu -> MaxPool: equal, as both keep the order of numbers."""
    for relu in graph.nodes:
        pool = graph.producer.get(relu.input[0]) if relu.op_type == "Relu" else None
        if pool is None or pool.op_type != "MaxPool" or len([o for o in pool.output if o]) != 1:
            continue
        layer = graph.producer.get(pool.input[0])
        alone = graph.sole_reader(pool.output[0]) and graph.sole_reader(pool.input[0])
        if layer is None or layer.op_type not in {"Conv", "Add"} or not alone:
            continue
        before, after = NodeProto(), NodeProto()
        before.CopyFrom(relu)
        after.CopyFrom(pool)
        before.input[0], before.output[0] = pool.input[0], f"{pool.input[0]}/relu"
        after.input[0], after.output[0] = before.output[0], relu.output[0]
        shape = graph.shape(pool.input[0])
        info = helper.make_tensor_value_info(before.output[0], TensorProto.FLOAT, shape)
        model.graph.value_info.append(info)
        _replace_(model, [pool, relu], [before, after])
        return True
    return False


def _matmul_to_gemm(model: ModelProto, graph: Graph) -> bool:
    """A matrix times a constant matrix plus a constant row is a Gemm, which has a bias input."""
    for add in graph.nodes:
        if add.op_type != "Add":
            continue
        for i, name in enumerate(add.input):
            dot = graph.producer.get(name)
            bias = graph.array(add.input[1 - i])
            if dot is None or dot.op_type != "MatMul" or bias is None:
                continue
            weight = constant_of(dot, graph, 1)
            rank = len(graph.shape(dot.input[0]) or ())
            fits = weight is not None and rank == weight.ndim == 2 and bias.size == weight.shape[1]
            if not fits or bias.ndim > 2 or graph.sole_reader(dot.output[0]) is None:
                continue
            if bias.dtype != np.float32 or bias.shape[-1:] != (bias.size,):
                continue
            row = _add(model, f"{dot.name}/bias", bias.reshape(-1))
            inputs = [*dot.input, row]
            _replace_(
                model,
                [dot, add],
                [helper.make_node("Gemm", inputs, [add.output[0]], name=dot.name)],
            )
            return True
    return False


def _drop_unused_(model: ModelProto) -> None:
    used = set(Graph(model).consumers) | {o.name for o in model.graph.output}
    kept = [t for t in model.graph.initializer if t.name in used]
    tensors = [TensorProto() for _ in kept]
    for copy, tensor in zip(tensors, kept, strict=True):
        copy.CopyFrom(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
