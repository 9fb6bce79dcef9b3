import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from compressor.core.errors import ParityError, StageError
from compressor.export import parity
from compressor.export.formats import to_fp16
from compressor.runtime import metadata
from tests.export.conftest import SPEC, images


@pytest.fixture(scope="module")
def half(exported, tmp_path_factory):
    path = tmp_path_factory.mktemp("half") / "m.onnx"
    to_fp16(exported.path, path)
    return path


def test_fp16_keeps_inputs_outputs_and_metadata_and_halves_the_weights(exported, half):
    graph = onnx.load(half).graph
    ends = [*graph.input, *graph.output]
    assert [(v.name, v.type.tensor_type.elem_type) for v in ends] == [
        ("image", TensorProto.FLOAT), ("logits", TensorProto.FLOAT)
    ]  # fmt: skip
    kinds = {t.data_type for t in graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    assert TensorProto.FLOAT not in kinds
    before, after = metadata.read(exported.path), metadata.read(half)
    assert after == {**before, "compressor.precision": "fp16"}
    assert half.stat().st_size < exported.path.stat().st_size


def test_fp16_agrees_within_its_own_bound_and_not_within_that_of_fp32(exported, half):
    report = parity.check(exported.model, half, SPEC, images(), tolerance=parity.FP16)
    assert report.max_difference > 0
    with pytest.raises(ParityError):
        parity.check(exported.model, half, SPEC, images())


def test_fp16_of_a_uint8_input_agrees(exported, exported_uint8, tmp_path):
    to_fp16(exported_uint8, tmp_path / "m.onnx")
    parity.check(exported.model, tmp_path / "m.onnx", SPEC, images(), tolerance=parity.FP16)


def test_fp16_twice_gives_the_same_bytes_and_of_fp16_is_refused(exported, half, tmp_path):
    to_fp16(exported.path, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == half.read_bytes()
    with pytest.raises(StageError, match="this one is fp16"):
        to_fp16(half, tmp_path / "n.onnx")


def test_fp16_needs_no_torch_and_leaves_the_rest_of_that_package_importable(
    exported, half, tmp_path
):
    code = (
        "import sys; from pathlib import Path\n"
        "sys.modules['torch'] = None\n"
        "from compressor.export.formats import to_fp16\n"
        "to_fp16(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        # its modules import each other by the folder that the package appends to sys.path
        "import onnxruntime.transformers.onnx_utils\n"
    )
    target = tmp_path / "m.onnx"
    command = [sys.executable, "-c", code, str(exported.path), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert target.read_bytes() == half.read_bytes()


def test_weights_beyond_the_fp16_range_are_clamped_not_infinite(exported, tmp_path):
    model = onnx.load(exported.path)
    bias = next(t for t in model.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(4, 1e6, np.float32), "head.bias"))
    onnx.save(model, tmp_path / "big.onnx")
    to_fp16(tmp_path / "big.onnx", tmp_path / "m.onnx")
    weights = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert all(np.isfinite(onnx.numpy_helper.to_array(t)).all() for t in weights)
