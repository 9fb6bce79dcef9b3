import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from compressor.core.errors import IntegrityError
from compressor.core.types import InputSpec, ModelSpec
from compressor.runtime import metadata


def tiny() -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 2]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


INPUTS = {
    "b": InputSpec((1, 2), "uint8", (0.1,), (0.3,)),
    "a": InputSpec((3,), "float32"),
}
SPEC = ModelSpec("x:y", {}, ("ü", 'q"'), INPUTS)


@settings(max_examples=25)
@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_what_is_written_is_read_and_the_rest_stays(props):
    model = tiny()
    model.metadata_props.add(key="author\0", value="someone")
    metadata.write_(model, props)
    assert metadata.read(model) == {"author\0": "someone", **props}
    again = onnx.ModelProto.FromString(model.SerializeToString())
    assert metadata.read(again) == metadata.read(model)


def test_order_of_writing_does_not_change_the_bytes():
    a, b = tiny(), tiny()
    metadata.write_(a, {"k": "1", "l": "2"})
    metadata.write_(b, {"l": "0"})
    metadata.write_(b, {"l": "2", "k": "1"})
    assert a.SerializeToString() == b.SerializeToString()


def test_a_spec_survives_the_file_in_its_order(tmp_path):
    model = tiny()
    metadata.write_(model, metadata.of_spec(SPEC))
    onnx.save(model, tmp_path / "m.onnx")
    assert metadata.labels(tmp_path / "m.onnx") == SPEC.classes
    assert metadata.inputs(tmp_path / "m.onnx") == SPEC.inputs
    assert list(metadata.inputs(tmp_path / "m.onnx")) == ["b", "a"]
    assert metadata.read(tmp_path / "m.onnx")[metadata.TASK] == "classification"


def test_a_file_made_elsewhere_has_no_labels_and_no_inputs():
    assert metadata.labels(tiny()) == ()
    assert metadata.inputs(tiny()) == {}


@pytest.mark.parametrize("text", ["no json", '{"a": 1}', "[1, 2]"])
def test_malformed_labels_are_an_integrity_error(text):
    model = tiny()
    metadata.write_(model, {metadata.CLASSES: text})
    with pytest.raises(IntegrityError, match="classes"):
        metadata.labels(model)


@pytest.mark.parametrize("text", ["no json", "[]", '{"x": {"shape": "?"}}'])
def test_malformed_inputs_are_an_integrity_error(text):
    model = tiny()
    metadata.write_(model, {metadata.INPUTS: text})
    with pytest.raises(IntegrityError, match="inputs"):
        metadata.inputs(model)


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 40, b"PK\3\4 not a model"])
def test_what_is_no_onnx_file_is_an_integrity_error(content, tmp_path):
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"m\.onnx"):
        metadata.read(path)
