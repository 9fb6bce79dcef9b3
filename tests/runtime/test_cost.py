import numpy as np
import pytest
from onnx import TensorProto, helper

from compressor.core.errors import ConfigError, IntegrityError
from compressor.runtime.cost import Graph, graph_cost, sizes
from tests.runtime import nets
from tests.runtime.nets import info, model, tensor


def graph(nodes, shape, weights, output="y"):
    return Graph(model(nodes, [info("x", ["N", *shape])], [info(output, None)], weights))


def zeros(name, *shape):
    return tensor(name, np.zeros(shape, np.float32))


def test_a_known_network_has_known_cost(tmp_path):
    found = graph_cost(nets.convnet(tmp_path / "m.onnx"))
    assert found.macs == 4 * 64 * 9 + 4 * 3
    assert found.parameters == 36 + 4 + 12 + 3
    assert found.bytes == (tmp_path / "m.onnx").stat().st_size


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_a_fixed_batch_counts_one_sample(tmp_path, batch):
    free = graph_cost(nets.convnet(tmp_path / "a.onnx"))
    assert graph_cost(nets.convnet(tmp_path / "b.onnx", batch=batch)).macs == free.macs


def test_an_int8_file_costs_what_its_float_original_costs(tmp_path):
    fp32 = graph_cost(nets.convnet(tmp_path / "a.onnx"))
    int8 = graph_cost(nets.qdq_convnet(tmp_path / "b.onnx"))
    assert (int8.macs, int8.parameters) == (fp32.macs, fp32.parameters)


@pytest.mark.parametrize(
    ("attributes", "weight", "expected"),
    [
        ({"pads": [1, 1, 1, 1]}, (8, 6, 3, 3), 8 * 100 * 6 * 9),
        ({"strides": [2, 2]}, (8, 6, 3, 3), 8 * 16 * 6 * 9),
        ({"group": 6, "pads": [1, 1, 1, 1]}, (6, 1, 3, 3), 6 * 100 * 9),
        ({"group": 2}, (8, 3, 1, 1), 8 * 100 * 3),
        ({"dilations": [2, 2]}, (8, 6, 3, 3), 8 * 36 * 6 * 9),
    ],
)
def test_convolutions(attributes, weight, expected):
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    made = graph([node], (6, 10, 10), [zeros("w", *weight)])
    assert made.macs() == expected
    assert made.parameters() == int(np.prod(weight))


def test_a_transposed_convolution_counts_input_elements():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    assert graph([node], (6, 5, 5), [zeros("w", 6, 4, 2, 2)]).macs() == 6 * 25 * 4 * 4


def test_products_count_rows_times_in_times_out():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),  # [N, 5, 8] x [8, 3]
        helper.make_node("Add", ["b", "m"], ["y"]),
    ]
    made = graph(nodes, (5, 8), [zeros("w", 8, 3), zeros("b", 3)])
    assert made.macs() == 5 * 8 * 3
    assert made.parameters() == 24 + 3


@pytest.mark.parametrize(("trans", "shape"), [(0, (8, 3)), (1, (3, 8))])
def test_gemm_in_both_layouts(trans, shape):
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=trans)
    assert graph([node], (8,), [zeros("w", *shape)]).macs() == 24


def test_normalisation_constants_statistics_and_scales_are_no_parameters():
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["s"]),
        helper.make_node("BatchNormalization", ["s", "g", "b", "m", "v"], ["y"]),
    ]
    weights = [zeros("mean", 1, 6, 1, 1), *(zeros(n, 6) for n in "gbmv")]
    made = graph(nodes, (6, 4, 4), weights)
    assert made.parameters() == 12
    assert made.macs() == 0


def test_shared_weights_count_once_and_their_macs_twice():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    made = graph(nodes, (4,), [zeros("w", 4, 4)])
    assert (made.parameters(), made.macs()) == (16, 32)


def test_products_of_activations_do_not_count():
    node = helper.make_node("MatMul", ["x", "x"], ["y"])
    assert graph([node], (4, 4), []).macs() == 0


def test_weights_are_found_behind_transpose_cast_and_constant_nodes():
    value = helper.make_tensor("v", TensorProto.FLOAT16, (3, 8), np.zeros(24, np.float16))
    nodes = [
        helper.make_node("Constant", [], ["h"], value=value),
        helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["f"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    made = graph(nodes, (8,), [])
    assert (made.parameters(), made.macs()) == (24, 24)


def test_qlinear_operators_count_too():
    weights = [
        tensor("s", np.float32(1)), tensor("z", np.uint8(0)), tensor("zw", np.int8(0)),
        tensor("w", np.zeros((8, 6, 1, 1), np.int8)), tensor("b", np.zeros(8, np.int32)),
    ]  # fmt: skip
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "zw", "s", "z", "b"], ["y"])
    made = Graph(model([node], [info("x", ["N", 6, 5, 5], TensorProto.UINT8)],
                       [info("y", None, TensorProto.UINT8)], weights))  # fmt: skip
    assert (made.parameters(), made.macs()) == (56, 8 * 25 * 6)


def test_local_functions_are_counted():
    inner = helper.make_function(
        "local", "Layer", ["a", "k"], ["o"], [helper.make_node("MatMul", ["a", "k"], ["o"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    made = model([helper.make_node("Layer", ["x", "w"], ["y"], domain="local")],
                 [info("x", ["N", 4])], [info("y", None)], [zeros("w", 4, 2)])  # fmt: skip
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.functions.append(inner)
    assert Graph(made).macs() == 8


def test_an_unknown_shape_is_named():
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c")
    made = Graph(model([node], [info("x", ["N", 6, "H", "W"])], [info("y", None)],
                       [zeros("w", 8, 6, 1, 1)]), "net.onnx")  # fmt: skip
    with pytest.raises(ConfigError, match=r"net.onnx: the shape of 'y' \(made by Conv 'c'\)"):
        made.macs()


def test_zeros_compress_and_folders_sum_up(tmp_path):
    (tmp_path / "a").write_bytes(bytes(10_000))
    (tmp_path / "b").write_bytes(bytes(5))
    plain, packed = sizes(tmp_path)
    assert plain == 10_005
    assert packed < 100
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(IntegrityError):
        graph_cost(tmp_path / "a")
