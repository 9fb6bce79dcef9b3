from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compressor.core.errors import ConfigError, ParityError, StageError
from compressor.core.types import InputSpec, ModelSpec
from compressor.export import parity
from tests.export.conftest import SPEC, images, small_net


def tampered(source: Path, target: Path, name: str, change) -> Path:
    model = onnx.load(source)
    for tensor in model.graph.initializer:
        if tensor.name == name:
            values = change(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, target)
    assert target.read_bytes() != source.read_bytes()
    return target


def spread(model: nn.Module) -> float:
    return float(parity._reference(model, SPEC, images()).std())


def test_an_export_is_its_network(exported):
    report = parity.check(exported.model, exported.path, SPEC, images())
    assert report.max_difference < 1e-5
    assert report.top1 == 100
    assert report.samples == 70
    assert report.decisive > 60
    assert report.batches == (1, 2, 7)
    assert exported.model.training


def test_a_constant_network_passes_and_its_tampered_file_fails(tmp_path):
    """Outputs without any deviation, as after a last layer initialised to zero."""
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["logits"])]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", 2), ("logits", 2))
    ]
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.fill_(0.1)
    spec = ModelSpec("x:y", {}, ("a", "b"), {"x": InputSpec((2,), "float32")})
    samples = {"x": np.ones((64, 2), np.float32)}
    for shift in (0.0, 1e-4):
        b = numpy_helper.from_array(np.full(2, 0.1 + shift, np.float32), "b")
        w = numpy_helper.from_array(np.zeros((2, 2), np.float32), "w")
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [w, b])
        opsets = [helper.make_opsetid("", 18)]
        path = tmp_path / "m.onnx"
        onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opsets), path)
        if shift:
            with pytest.raises(ParityError):
                parity.check(model, path, spec, samples)
        else:
            assert parity.check(model, path, spec, samples).max_difference == 0


def test_uint8_input_is_fed_as_stored(exported, exported_uint8):
    assert parity.check(exported.model, exported_uint8, SPEC, images()).max_difference < 1e-5


def test_a_changed_weight_is_a_parity_error_with_exit_code_5(exported, tmp_path):
    path = tampered(exported.path, tmp_path / "t.onnx", "head.weight", lambda w: w * 1.01)
    with pytest.raises(ParityError, match="differ from PyTorch's by") as error:
        parity.check(exported.model, path, SPEC, images())
    assert error.value.exit_code == 5


@pytest.mark.parametrize(("share", "fails"), [(0.5, False), (2.0, True)])
def test_the_limit_is_a_share_of_the_logits_spread(share, fails, exported, tmp_path):
    step = np.float32(share * parity.FP32 * spread(exported.model))
    path = tampered(exported.path, tmp_path / "t.onnx", "head.bias", lambda b: b + step)
    if fails:
        with pytest.raises(ParityError):
            parity.check(exported.model, path, SPEC, images())
    else:
        parity.check(exported.model, path, SPEC, images())


def linear(path: Path, weight: float, bias: float) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["values"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["batch", 1])],
        [
            numpy_helper.from_array(np.full((1, 1), weight, np.float32), "w"),
            numpy_helper.from_array(np.full(1, bias, np.float32), "b"),
        ],
    )
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opsets), path)
    return path


@pytest.mark.parametrize(
    ("offset", "shift", "fails"),
    [
        (300.0, 0.0, False),
        (300.0, 2e-4, True),  # of a deviation of 1: twice the limit
        (900.0, 6.1e-5, False),  # one rounding of 900
        (900.0, 6e-4, True),
        (0.0, 0.9e-4, False),
        (0.0, 1.1e-4, True),
    ],
)
def test_the_limit_is_a_share_of_the_deviation_also_far_from_zero(offset, shift, fails, tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 1))
    x = ((x - x.mean()) / x.std()).astype(np.float32)
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1)
        model.bias.fill_(offset)
    spec = ModelSpec("x:y", {}, (), {"x": InputSpec((1,), "float32")}, "regression")
    path = linear(tmp_path / "m.onnx", 1.0, offset + shift)
    if fails:
        with pytest.raises(ParityError, match="of their standard deviation"):
            parity.check(model, path, spec, {"x": x})
    else:
        report = parity.check(model, path, spec, {"x": x})
        assert report.max_difference == pytest.approx(shift, rel=0.1)


def test_another_top1_with_a_clear_margin_is_named(exported, tmp_path):
    def swap(b):
        return b + np.float32(100) * np.eye(4, dtype=np.float32)[2]

    path = tampered(exported.path, tmp_path / "t.onnx", "head.bias", swap)
    with pytest.raises(ParityError, match="top-1 differs on"):
        parity.check(exported.model, path, SPEC, images())


def test_outputs_that_are_not_finite_fail_on_their_side(exported, tmp_path):
    path = tampered(exported.path, tmp_path / "t.onnx", "head.bias", lambda b: b * np.nan)
    with pytest.raises(ParityError, match="not finite"):
        parity.check(exported.model, path, SPEC, images())
    broken = small_net()
    with torch.no_grad():
        broken.get_parameter("head.bias").fill_(torch.inf)
    with pytest.raises(StageError, match="PyTorch network's own outputs"):
        parity.check(broken, exported.path, SPEC, images())


def test_fewer_than_64_samples_are_refused(exported):
    with pytest.raises(ConfigError, match="63 samples"):
        parity.check(exported.model, exported.path, SPEC, images(63))


def test_a_file_that_mixes_the_samples_of_a_batch_is_caught(tmp_path):
    """x - mean over the batch: the same numbers only when all samples run at once."""

    class Centred(nn.Module):
        def forward(self, x):
            return x - x.mean(0, keepdim=True)

    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["logits"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("x", "y")]
    ends[1].name = "logits"
    axes = numpy_helper.from_array(np.array([0]), "axes")
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [axes])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, ir_version=10, opset_imports=opsets), tmp_path / "m.onnx")
    spec = ModelSpec("x:y", {}, ("a", "b", "c"), {"x": InputSpec((3,), "float32")})
    samples = {"x": np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)}
    parity.check(Centred(), tmp_path / "m.onnx", spec, samples, batches=(64,))
    with pytest.raises(ParityError, match="batch 1,"):
        parity.check(Centred(), tmp_path / "m.onnx", spec, samples)


def test_a_file_with_other_inputs_or_outputs_is_a_parity_error(exported, tmp_path):
    other = ModelSpec("x:y", {}, SPEC.classes, {"picture": SPEC.inputs["image"]})
    with pytest.raises(ParityError, match="picture"):
        parity.check(exported.model, exported.path, other, {"picture": images()["image"]})

    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = small_net()

        def forward(self, x):
            return self.inner(x)[:, :3]

    with pytest.raises(ParityError, match=r"outputs \[70, 4\], PyTorch gives \[70, 3\]"):
        parity.check(Short(), exported.path, SPEC, images())
