import numpy as np
import onnx
import pytest
from onnx import helper

from compressor.core.errors import ConfigError, IntegrityError, SystemFault
from compressor.runtime import memory, profile
from tests.runtime import nets


def test_a_fresh_process_reports_time_and_memory(tmp_path):
    found = memory.measure(nets.convnet(tmp_path / "m.onnx"), repeats=1)
    assert found.load_ms > 0
    assert found.first_run_ms > 0
    assert 0 <= found.peak_mb < 200
    assert 10 < found.base_mb < 300


def test_a_large_model_takes_its_weights_more_memory(tmp_path):
    """30 MB of weights; also guards against reading the parent's peak instead of the child's."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2000, 4000)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [nets.info("x", ["N", 2000])], [nets.info("y", ["N", 4000])]
    made = nets.model([node], *ends, [nets.tensor("w", weight)])
    onnx.save(made, tmp_path / "large.onnx")
    small = memory.measure(nets.convnet(tmp_path / "m.onnx"), repeats=1)
    large = memory.measure(tmp_path / "large.onnx", repeats=1)
    assert 25 < large.peak_mb - small.peak_mb < 200


def test_a_child_that_dies_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CHILD", "raise SystemExit('no more memory')")
    with pytest.raises(SystemFault, match="ended with 1: no more memory"):
        memory.measure(nets.relu(tmp_path / "m.onnx"), repeats=1)
    with pytest.raises(ConfigError, match="repeats"):
        memory.measure(tmp_path / "m.onnx", repeats=0)
    (tmp_path / "bad.onnx").write_bytes(b"x")
    with pytest.raises(IntegrityError):
        memory.measure(tmp_path / "bad.onnx")


def test_the_child_needs_numpy_and_onnxruntime_alone():
    roots = set()
    for line in memory._CHILD.splitlines():
        words = line.strip().split()
        if words[:1] == ["import"]:
            roots |= {
                w.split(".")[0].strip(",") for w in words[1:] if w not in {"as", "np,", "ort"}
            }
    assert roots == {"json", "sys", "time", "numpy", "onnxruntime", "resource"}


def test_a_float_model_has_only_float_convolutions_named_as_in_the_file(tmp_path):
    found = profile.fusion(nets.convnet(tmp_path / "m.onnx", width=16))
    assert found.float_convs == ("conv",)
    assert found.qconvs == 0
    assert not found.ok


def test_a_quantized_model_has_none(tmp_path):
    found = profile.fusion(nets.qdq_convnet(tmp_path / "m.onnx", width=16))
    assert found.ok
    assert found.qconvs == 1
    assert found.qlinear["QLinearConv"] == 1
    assert found.ops["QLinearConv"] == 1


def test_a_convolution_that_stayed_float_is_named(tmp_path):
    path = nets.qdq_convnet(tmp_path / "m.onnx", width=16)
    made = onnx.load(path)
    for node in made.graph.node:
        if node.name == "conv":
            node.input[0] = "x"  # past its quantized input
    onnx.save(made, path)
    found = profile.fusion(path, disabled_optimizers=("WeightBiasQuantization",))
    assert found.float_convs == ("conv",)
    assert not found.ok


def test_op_counts_are_those_of_the_graph(tmp_path):
    ran = profile.optimized_graph(nets.convnet(tmp_path / "m.onnx", width=16))
    counts = profile.op_counts(ran)
    assert counts["Conv"] + counts["FusedConv"] == 1
    assert counts["Relu"] == 0
    assert counts["Gemm"] == 1


def test_node_times_are_positive_and_named(tmp_path):
    path = nets.convnet(tmp_path / "m.onnx")
    feed = {"x": np.zeros((1, 1, 8, 8), np.float32)}
    times = profile.node_times(path, feed, runs=3)
    assert "fc" in times
    assert all(t >= 0 for t in times.values())
    with pytest.raises(ConfigError, match="runs"):
        profile.node_times(path, feed, runs=0)
