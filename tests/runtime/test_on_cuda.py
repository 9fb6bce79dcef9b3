from pathlib import Path

import onnx
import pytest

from compressor.core.errors import ConfigError, MissingError
from compressor.quantization import schemes
from compressor.runtime.on_cuda import check_int8, on_cuda
from compressor.runtime.profile import optimized_graph
from tests.quantization.graphs import images, put, zoo
from tests.runtime import nets


def int8(folder: Path) -> Path:
    out = folder / "int8.onnx"
    schemes.quantize("int8", put(zoo(), folder / "fp32.onnx"), out, {"x": images()})
    return out


def test_a_float_file_has_nothing_to_fall_back(tmp_path):
    path = nets.convnet(tmp_path / "m.onnx")
    found = on_cuda(path)
    assert (found.nodes, found.float_layers, found.pairs) == (0, 0, 0)
    assert check_int8({"m": path}, "cuda") == []
    (tmp_path / "m.ort").write_bytes(b"ORTM")
    assert check_int8({"m": tmp_path / "m.ort"}, "cuda") == []
    with pytest.raises(ConfigError, match="no such file"):
        check_int8({"m": tmp_path / "none.onnx"}, "cuda")


def test_a_qdq_file_runs_every_int8_layer_in_float(tmp_path):
    path = int8(tmp_path)
    found = on_cuda(path)
    nodes = onnx.load(path).graph.node
    weights = [n for n in nodes if n.op_type == "DequantizeLinear" and "/weight/" in n.input[0]]
    assert found.float_layers == len(weights) == 8
    assert found.fallback == {}
    on_activations = [n for n in nodes if n.op_type == "QuantizeLinear"]
    assert found.pairs >= 2 * len(on_activations)
    (line,) = check_int8({"small": path}, "cuda")
    assert line.startswith("small: int8 on CUDA: 8 layers run in float32")


def test_a_file_of_integer_operators_is_refused_with_their_count(tmp_path):
    fused = tmp_path / "fused.onnx"
    onnx.save(optimized_graph(int8(tmp_path)), fused)
    found = on_cuda(fused)
    assert found.fallback["QLinearConv"] == 7
    assert found.fallback["QGemm"] == 1
    with pytest.raises(MissingError, match=f"{found.nodes} nodes would fall back"):
        check_int8({"m": fused}, "cuda")
    assert check_int8({"m": fused}, "cpu") == []


def test_a_dynamic_file_is_refused_and_4_bits_and_fp16_are_not(tmp_path):
    source = put(zoo(), tmp_path / "fp32.onnx")
    options = schemes.Options(exclude=("Conv",))
    dynamic, packed, half = (tmp_path / f"{name}.onnx" for name in ("dynamic", "int4", "fp16"))
    schemes.quantize("dynamic", source, dynamic, {"x": images()}, options)
    schemes.quantize("int4", source, packed, {"x": images()})
    schemes.quantize("fp16", source, half, {"x": images()})
    assert on_cuda(dynamic).fallback == {"DynamicQuantizeLinear": 1, "MatMulInteger": 1}
    assert check_int8({"int4": packed, "fp16": half}, "cuda") == []


def test_a_file_made_for_another_cpu_is_named_and_a_portable_one_is_not(tmp_path):
    source, feed = put(zoo(), tmp_path / "fp32.onnx"), {"x": images()}
    made = {"fp32": source}
    for target in ("portable", "arm64", "x86-vnni"):
        made[target] = tmp_path / f"{target}.onnx"
        schemes.quantize("int8", source, made[target], feed, schemes.Options(target=target))
    (line,) = check_int8(made, "cpu", "x86-vnni")
    assert line.startswith("arm64: made for arm64, this CPU is x86-vnni")
    assert len(check_int8(made, "cpu", "x86")) == 2
    (line,) = check_int8(made, "cpu", "arm64")
    assert line.startswith("x86-vnni: made for x86-vnni, this CPU is arm64")
