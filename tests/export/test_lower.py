import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from compressor.core.errors import CompressorError, ConfigError, StageError
from compressor.core.types import InputSpec, ModelSpec
from compressor.data.dataset import as_float, normalise
from compressor.export import names, parity
from compressor.export.lower import TINY, lower
from compressor.runtime import metadata, predict
from compressor.runtime.session import open_session
from tests.export.conftest import PLANTED, SPEC, images, small_net


def dims(value) -> list:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_form_is_opset_18_ir_10_named_and_dynamic_in_batch(exported):
    model = onnx.load(exported.path)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert exported.report.opset == 18
    assert model.ir_version == exported.report.ir_version <= 10
    (image,), (logits,) = model.graph.input, model.graph.output
    assert (image.name, dims(image)) == ("image", ["batch", 2, 8, 8])
    assert image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert (logits.name, dims(logits)) == ("logits", ["batch", 4])
    session = open_session(exported.path)
    for batch in (1, 2, 7):
        feed = {"image": np.zeros((batch, 2, 8, 8), np.float32)}
        assert session.run(None, feed)[0].shape == (batch, 4)


def test_batch_norms_are_folded_and_weights_keep_their_names(exported):
    graph = onnx.load(exported.path).graph
    assert "BatchNormalization" not in {n.op_type for n in graph.node}
    weights = {t.name for t in graph.initializer}
    assert {"stem.0.weight", "head.weight", "input_mean", "input_inv_std"} <= weights


def test_one_file_without_external_data(exported):
    assert [p.name for p in exported.path.parent.iterdir()] == ["model.onnx"]
    assert exported.path.stat().st_size == exported.report.bytes
    for tensor in onnx.load(exported.path, load_external_data=False).graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT
        assert tensor.HasField("raw_data") or tensor.ByteSize() < 200


def test_no_stack_trace_path_or_shape_debris_is_left(exported):
    data = exported.path.read_bytes()
    places = [str(Path.cwd()), str(Path.home()), sys.prefix]
    for needle in [".py", 'File "', "stack_trace", "site-packages", "pkg.torch", *places]:
        assert len(needle) < 3 or needle.encode() not in data
    model = onnx.load(exported.path)
    assert not model.doc_string
    assert not model.graph.value_info
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)
    assert {p.key.split(".")[0] for p in model.metadata_props} == {"compressor"}


def test_metadata_holds_classes_inputs_and_provenance(exported):
    props = metadata.read(exported.path)
    assert metadata.labels(exported.path) == SPEC.classes
    assert metadata.inputs(exported.path) == SPEC.inputs
    assert props["compressor.source"] == "abc"
    assert props["compressor.precision"] == "fp32"
    assert json.loads(props["compressor.classes"])[0] == "äpfel"
    runtime = open_session(exported.path).get_modelmeta().custom_metadata_map
    assert dict(runtime) == props


def test_normalisation_in_the_graph_equals_that_of_the_data(exported):
    stored, spec = images()["image"], SPEC.inputs["image"]
    ready = torch.from_numpy(normalise(as_float(stored, spec), spec))
    with torch.inference_mode():
        expected = small_net().eval()(ready).numpy()
    got = predict.run(exported.path, {"image": as_float(stored, spec)})
    np.testing.assert_allclose(got, expected, atol=1e-5)
    bare = predict.run(exported.path, {"image": np.asarray(ready)})
    assert np.abs(bare - expected).max() > 0.01  # normalised twice is something else


def test_uint8_variant_equals_float_variant(exported, exported_uint8):
    image = onnx.load(exported_uint8).graph.input[0]
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    stored = images()
    feed = {"image": as_float(stored["image"], SPEC.inputs["image"])}
    np.testing.assert_allclose(
        predict.run(exported_uint8, stored), predict.run(exported.path, feed), atol=1e-6
    )


def test_denormal_weights_are_flushed_and_counted(exported):
    assert exported.report.denormals_flushed == PLANTED
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(exported.path).graph.initializer}
    for values in weights.values():
        assert not ((values != 0) & (np.abs(values) < TINY)).any()
    assert np.float32(2e-30) in weights["head.weight"]


def test_the_users_model_is_left_alone(exported):
    after = exported.model.state_dict()
    assert exported.before.keys() == after.keys()
    for name, tensor in exported.before.items():
        assert torch.equal(tensor, after[name]), name
    assert exported.model.training
    assert all(p.requires_grad for p in exported.model.parameters())
    convolution = exported.model.get_parameter("stem.0.weight")
    assert convolution.is_contiguous(memory_format=torch.channels_last)


def test_a_second_export_is_silent_keeps_the_rng_and_gives_the_same_bytes(
    exported, tmp_path, capfd, caplog
):
    state = torch.get_rng_state()
    lower(exported.model, SPEC, tmp_path / "b.onnx", metadata={"compressor.source": "abc"})
    assert torch.equal(state, torch.get_rng_state())
    assert (tmp_path / "b.onnx").read_bytes() == exported.path.read_bytes()
    assert capfd.readouterr() == ("", "")
    # torch's own debug trace ignores logging.disable on purpose and reaches no terminal
    assert not [r for r in caplog.records if r.levelno > logging.DEBUG]


class Mixed(nn.Module):
    """Three inputs of three kinds, with names that the exporter likes to use itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.table = nn.Conv2d(1, 4, 3), nn.Embedding(5, 4)
        self.head = nn.Linear(7, 2)

    def forward(self, picture, features, code):
        pooled = self.conv(picture).relu().mean((2, 3)) + self.table(code)
        return self.head(torch.cat([pooled, features], 1))


def test_several_named_inputs_of_different_kinds(tmp_path):
    torch.manual_seed(0)
    spec = ModelSpec("tests:Mixed", {}, ("no", "yes"), {
        "relu": InputSpec((1, 6, 6), "uint8", (0.5,), (0.25,)),
        "linear": InputSpec((3,), "float32", (1.0, 2.0, 3.0), (1.0, 0.5, 2.0)),
        "code": InputSpec((), "int64"),
    })  # fmt: skip
    model = Mixed().eval()
    lower(model, spec, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert [(i.name, dims(i)) for i in graph.input] == [
        ("relu", ["batch", 1, 6, 6]), ("linear", ["batch", 3]), ("code", ["batch"])
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    samples = {
        "relu": rng.integers(0, 256, (64, 1, 6, 6), dtype=np.uint8),
        "linear": rng.normal(2, 1, (64, 3)).astype(np.float32),
        "code": rng.integers(0, 5, 64),
    }
    report = parity.check(model, tmp_path / "m.onnx", spec, samples)
    assert report.top1 == 100


class Head(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(128, 4), forward

    def forward(self, x):
        return self.function(self.linear, x)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda f, x: f(x.flatten(1)).mean(0, keepdim=True), "ignores the batch dimension"),
        (lambda f, x: f(torch.special.bessel_j0(x).flatten(1)), "bessel_j0.*\nthis operator"),
    ],
    ids=["batch-ignored", "operator"],
)
def test_what_cannot_be_exported_is_said_in_one_screen(forward, words, tmp_path):
    with pytest.raises(StageError, match=words) as error:
        lower(Head(forward), SPEC, tmp_path / "m.onnx")
    assert len(str(error.value).splitlines()) <= 8
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda f, x: f(x.view(2, 128)), r"torch.flatten\(x, 1\)"),
        (lambda f, x: f(x.flatten(1) + x.sum()) if x.sum() > 0 else x, "branch on tensor values"),
        (lambda f, x: (f(x.flatten(1)),) * 2, "2 outputs"),
        (lambda f, x: f(x.flatten(1))[:, :3], r"expected \['batch', 4\]"),
        (lambda f, x: f(x), "same reduction dim"),
    ],
    ids=["batch-fixed", "branch", "two-outputs", "classes", "own-error"],
)
def test_further_failures_are_said_in_one_screen(forward, words, tmp_path):
    with pytest.raises(StageError, match=words) as error:
        lower(Head(forward), SPEC, tmp_path / "m.onnx")
    assert len(str(error.value).splitlines()) <= 8


@pytest.mark.parametrize("opset", [13, 17, 24])
def test_an_opset_out_of_range_is_refused(opset, tmp_path):
    with pytest.raises(ConfigError, match="18 to 23"):
        lower(small_net(), SPEC, tmp_path / "m.onnx", opset=opset)


def test_an_opset_that_torch_changed_in_silence_is_refused(exported, tmp_path, monkeypatch):
    raw = onnx.load(exported.path)
    monkeypatch.setattr("compressor.export.lower.trace", lambda *_: raw)
    with pytest.raises(StageError, match="asked for opset 19, PyTorch wrote 18"):
        lower(small_net(), SPEC, tmp_path / "m.onnx", opset=19)


def test_a_path_of_the_machine_left_in_the_graph_is_our_bug(exported, tmp_path, monkeypatch):
    raw = onnx.load(exported.path)
    raw.graph.node[0].name = f"{Path.cwd()}/net.py"
    monkeypatch.setattr("compressor.export.lower.trace", lambda *_: raw)
    with pytest.raises(CompressorError, match="a path of this machine") as error:
        lower(small_net(), SPEC, tmp_path / "m.onnx")
    assert error.value.exit_code == 1


def test_names_that_the_exporter_took_are_given_way_to(exported, tmp_path, monkeypatch):
    raw = onnx.load(exported.path)
    names.rename_(raw.graph, ["inputs_0"], ["linear"])
    raw.graph.node[0].output[0] = raw.graph.node[1].input[0] = "image"
    next(t for t in raw.graph.initializer if t.name == "head.bias").name = "logits"
    raw.graph.node[-1].input[2] = "logits"
    monkeypatch.setattr("compressor.export.lower.trace", lambda *_: raw)
    lower(small_net(), SPEC, tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    assert (graph.input[0].name, graph.output[0].name) == ("image", "logits")
    assert "logits_" in {t.name for t in graph.initializer}
    parity.check(exported.model, tmp_path / "m.onnx", SPEC, images())


def test_a_network_that_returns_its_input_is_exported_through_an_identity():
    ends = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])] * 2
    graph = helper.make_graph([], "g", ends[:1], ends[1:])
    names.rename_(graph, ["features"], ["values"])
    assert [(n.op_type, *n.input, *n.output) for n in graph.node] == [
        ("Identity", "features", "values")
    ]


def test_uint8_needs_an_input_that_is_stored_so(tmp_path):
    spec = ModelSpec("x:y", {}, ("a", "b"), {"x": InputSpec((3,), "float32")})
    with pytest.raises(ConfigError, match="use float"):
        lower(nn.Linear(3, 2), spec, tmp_path / "m.onnx", input="uint8")


def test_an_input_named_like_the_output_is_refused(tmp_path):
    spec = ModelSpec("x:y", {}, ("a", "b"), {"logits": InputSpec((3,), "float32")})
    with pytest.raises(ConfigError, match="rename"):
        lower(nn.Linear(3, 2), spec, tmp_path / "m.onnx")


@pytest.mark.slow
def test_large_weights_stay_in_the_single_file(tmp_path):
    spec = ModelSpec("x:y", {}, (), {"x": InputSpec((1500,), "float32")}, "regression")
    model = nn.Sequential(nn.Linear(1500, 1500), nn.Linear(1500, 1))
    report = lower(model, spec, tmp_path / "m.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert report.bytes > 9e6
    assert onnx.load(tmp_path / "m.onnx").graph.output[0].name == "values"


_AGAIN = """
import sys; from pathlib import Path
from compressor.export.lower import lower
from tests.export.conftest import SPEC, small_net
lower(small_net(), SPEC, Path(sys.argv[1]), metadata={"compressor.source": "abc"})
"""


@pytest.mark.slow
@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_gives_the_same_bytes(exported, tmp_path, hash_seed):
    path = tmp_path / "m.onnx"
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", _AGAIN, str(path)], env=env, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"")
    assert path.read_bytes() == exported.path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("opset", [19, 20, 21, 22, 23])
def test_every_offered_opset_is_written_and_right(opset, tmp_path):
    model = small_net()
    report = lower(model, SPEC, tmp_path / "m.onnx", opset=opset)
    assert report.opset == opset
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == opset
    parity.check(model, tmp_path / "m.onnx", SPEC, images())
