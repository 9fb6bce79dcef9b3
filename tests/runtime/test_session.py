import os

import numpy as np
import onnx
import onnxruntime
import pytest

from compressor.core.errors import ConfigError, IntegrityError, MissingError
from compressor.runtime import session
from compressor.runtime.session import check_file, open_session
from tests.runtime import nets


def test_runs_on_the_cpu_with_the_threads_that_were_asked_for(tmp_path):
    opened = open_session(nets.convnet(tmp_path / "m.onnx"), threads=2)
    options = opened.get_session_options()
    assert opened.get_providers() == ["CPUExecutionProvider"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_optimize_none_keeps_every_node(tmp_path):
    path = nets.convnet(tmp_path / "m.onnx", width=16)
    ops = {}
    for level in ("all", "none"):
        open_session(path, optimize=level, dump=tmp_path / f"{level}.onnx")
        ops[level] = [n.op_type for n in onnx.load(tmp_path / f"{level}.onnx").graph.node]
    assert ops["none"].count("Relu") == 1
    assert ops["all"].count("Relu") == 0


def test_config_entries_and_denormals_reach_the_session(tmp_path):
    opened = open_session(
        nets.relu(tmp_path / "m.onnx"),
        config={"session.x64quantprecision": "1"},
        denormals_as_zero=True,
    )
    options = opened.get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == "1"
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("opset", {"opset": 28}, "opset 28; ONNX Runtime"),
        ("ir", {"ir": 14}, "IR version 14; ONNX Runtime"),
    ],
)
def test_too_new_a_file_names_the_versions_in_one_line(tmp_path, kind, options, words):
    with pytest.raises(ConfigError) as caught:
        open_session(nets.relu(tmp_path / "new.onnx", **options))
    message = str(caught.value)
    assert words in message
    assert "reads up to" in message
    assert "\n" not in message
    assert len(message) < 200 + len(str(tmp_path))


def test_unknown_operator_is_named(tmp_path):
    path = nets.relu(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[0].op_type = "Frobnicate"
    onnx.save(model, path)
    with pytest.raises(ConfigError, match="no operator Frobnicate in opset 18"):
        open_session(path)


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_damaged_files_are_integrity_errors(tmp_path, cut):
    path = nets.convnet(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IntegrityError):
        open_session(path)


def test_text_and_folders_are_no_models(tmp_path):
    (tmp_path / "t.onnx").write_text("hello")
    with pytest.raises(IntegrityError, match="not an ONNX file"):
        open_session(tmp_path / "t.onnx")
    with pytest.raises(IntegrityError, match="not a file"):
        open_session(tmp_path)
    with pytest.raises(ConfigError, match="no such file"):
        open_session(tmp_path / "none.onnx")


def external(folder, location):
    """A model whose weight lies in another file."""
    made = onnx.load(nets.convnet(folder / "m.onnx"))
    weight = made.graph.initializer[0]
    data = weight.raw_data
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return folder / "m.onnx", data


def test_external_data_beside_the_model_is_accepted(tmp_path):
    path, data = external(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(data)
    x = np.zeros((1, 1, 8, 8), np.float32)
    assert open_session(path).run(None, {"x": x})[0].shape == (1, 3)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "sub/w.bin", "", "..", "a\\b"])
def test_external_data_elsewhere_is_refused(tmp_path, location):
    path, data = external(tmp_path, location)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(data)
    with pytest.raises(IntegrityError, match="external data"):
        check_file(path)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_external_data_behind_a_link_is_refused(tmp_path, link):
    path, data = external(tmp_path, "w.bin")
    secret = tmp_path / "secret"
    secret.write_bytes(data)
    link(secret, tmp_path / "w.bin")
    with pytest.raises(IntegrityError, match="link"):
        check_file(path)


def test_missing_external_data_is_named(tmp_path):
    path, _ = external(tmp_path, "w.bin")
    with pytest.raises(IntegrityError, match=r"'w\.bin' is not there"):
        check_file(path)


def test_external_data_in_a_subgraph_is_found(tmp_path):
    path = nets.relu(tmp_path / "m.onnx")
    made = onnx.load(path)
    inner = onnx.helper.make_graph([], "inner", [], [])
    hidden = inner.initializer.add(name="h", data_type=1, data_location=1)
    hidden.external_data.add(key="location", value="../out")
    made.graph.node[0].attribute.append(onnx.helper.make_attribute("body", inner))
    path.write_bytes(made.SerializeToString())
    with pytest.raises(IntegrityError, match="'h' lies in"):
        check_file(path)


def test_unknown_provider_is_a_config_error_with_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'cuda'"):
        open_session(nets.relu(tmp_path / "m.onnx"), provider="cudaa")
    with pytest.raises(ConfigError, match="threads: 0"):
        open_session(nets.relu(tmp_path / "m.onnx"), threads=0)


def test_missing_cuda_says_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingError, match=r"'cuda' is not in .*it has cpu") as caught:
        open_session(nets.relu(tmp_path / "m.onnx"), provider="cuda")
    assert caught.value.exit_code == 6


def test_a_provider_that_silently_falls_back_is_an_error(tmp_path, monkeypatch):
    names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    real = onnxruntime.InferenceSession
    seen = {}

    def fallen(path, options, **keywords):
        seen["entry"] = options.get_session_config_entry("session.disable_cpu_ep_fallback")
        seen.update(keywords)
        return real(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fallen)
    with pytest.raises(MissingError, match="asked for CUDAExecutionProvider, got CPU"):
        open_session(nets.relu(tmp_path / "m.onnx"), provider="cuda")
    assert seen["entry"] == "1"
    assert seen["enable_fallback"] == 0
    assert seen["providers"] == [("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})]


def test_nodes_without_a_kernel_on_the_provider_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "check_provider", lambda name: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)

    def refuse(*_, **__):
        raise RuntimeError("nodes are assigned to the default CPU EP, but fallback to CPU EP "
                           "has been explicitly disabled by the user.")  # fmt: skip

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(MissingError, match="no kernel in CUDAExecutionProvider"):
        open_session(nets.relu(tmp_path / "m.onnx"), provider="cuda")


def test_two_onnxruntime_packages_are_refused(tmp_path, monkeypatch):
    def both():
        raise MissingError("two packages")

    monkeypatch.setattr(session, "check_onnxruntime", both)
    with pytest.raises(MissingError, match="two packages"):
        open_session(nets.relu(tmp_path / "m.onnx"))


def test_input_shapes_refuse_open_and_fixed_dimensions(tmp_path):
    opened = open_session(nets.convnet(tmp_path / "four.onnx", batch=4))
    assert session.fixed_batch(opened) == 4
    assert session.input_shapes(opened, 4) == {"x": (4, 1, 8, 8)}
    with pytest.raises(ConfigError, match="fixed at batch 4, asked for 1"):
        session.input_shapes(opened, 1)
    path = nets.convnet(tmp_path / "open.onnx", size="H")
    with pytest.raises(ConfigError, match="open shape"):
        session.input_shapes(open_session(path), 1)
