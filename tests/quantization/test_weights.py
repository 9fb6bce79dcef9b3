from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compressor.quantization.observers import Range
from compressor.quantization.scales import parameters
from compressor.quantization.target import resolve
from compressor.quantization.weights import bias_scale, fits_16_bits, quantize_weight

ONE = np.float32(1.0)


def test_a_symmetric_range_has_its_zero_in_the_middle_of_255_steps():
    by = parameters(Range(-1.0, 1.0))
    assert by.scale == np.float32(2 / 255)
    assert by.zero_point == 127  # 1 / float32(2 / 255) is a little below 127.5


def test_a_range_behind_relu_starts_at_integer_zero():
    by = parameters(Range(0.0, 5.1))
    assert (by.scale, by.zero_point) == (np.float32(5.1 / 255), 0)
    assert by.quantize(np.array([-3.0, 0.0, 5.1, 9.0], np.float32)).tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize(("low", "high"), [(2.0, 5.1), (-5.1, -2.0)])
def test_zero_is_always_representable(low, high):
    by = parameters(Range(low, high))
    assert by.scale == np.float32(5.1 / 255)
    assert by.zero_point == (0 if low > 0 else 255)


def test_signed_activations_are_the_same_grid_moved_by_128():
    unsigned, signed = parameters(Range(-0.5, 2.0)), parameters(Range(-0.5, 2.0), signed=True)
    assert signed.scale == unsigned.scale
    assert signed.zero_point == unsigned.zero_point - 128
    assert signed.span == unsigned.span


def test_a_never_active_tensor_keeps_scale_one():
    by = parameters(Range(0.0, 0.0))
    assert (by.scale, by.zero_point) == (1.0, 0)


def test_quantize_rounds_half_to_even_as_onnx_specifies():
    by = parameters(Range(0.0, 255.0))
    values = np.array([0.5, 1.5, 2.5], np.float32)
    assert by.quantize(values).tolist() == [0, 2, 2]


def test_seven_bits_by_hand():
    got = quantize_weight(np.array([[0.64, -0.32, 0.005]], np.float32), None, ONE, "7")
    assert got.values.tolist() == [[64, -32, 0]]  # 0.005 is half a step, to even
    assert got.scale[0] == np.float32(0.01)
    assert got.bits == 7


def test_bias_has_the_scale_of_input_times_weight_per_channel():
    weight = np.array([[1.27], [0.127]], np.float32)
    got = quantize_weight(weight, np.array([1.0, -1.0], np.float32), np.float32(0.5), "8")
    assert got.scale == pytest.approx([0.01, 0.001])
    assert bias_scale(np.float32(0.5), got.scale) == pytest.approx([0.005, 0.0005])
    assert got.bias is not None
    assert got.bias.tolist() == [200, -2000]


def test_a_lone_large_weight_proves_itself_8_bits():
    got = quantize_weight(np.array([[1.0, 0.005, -0.9]], np.float32), None, ONE, "proven")
    assert got.grid.tolist() == [127]
    assert got.values.tolist() == [[127, 1, -114]]
    assert got.bits == 8


def test_two_equal_weights_get_7_bits():
    got = quantize_weight(np.array([[1.0, 1.0]], np.float32), None, ONE, "proven")
    assert got.values.tolist() == [[64, 64]]


@pytest.mark.parametrize(
    ("row", "fits"),
    [([127, 1, -127, -1], True), ([127, 2, 0, 0], False), ([0, 0, -127, -2], False),
     ([64, 64, -64, -64], True), ([65, 64, 0, 0], False), ([127, -127, 0, 0], True)],
)  # fmt: skip
def test_the_proof_is_255_times_the_two_largest_of_one_sign(row, fits):
    values = np.array([row], np.int8)
    assert fits_16_bits(values).tolist() == [fits]
    pairs = [
        x * int(a) + y * int(b)
        for i, a in enumerate(row) for b in row[i + 1 :] for x in (0, 255) for y in (0, 255)
    ]  # fmt: skip
    assert (min(pairs) >= -32768 and max(pairs) <= 32767) == fits


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)),
           elements=st.floats(-4, 4, width=32)),
)  # fmt: skip
def test_the_proven_grid_is_safe_no_coarser_than_7_bits_and_half_a_step_exact(weight):
    got = quantize_weight(weight, None, ONE, "proven")
    coarse = quantize_weight(weight, None, ONE, "7")
    assert fits_16_bits(got.values).all()
    used = np.abs(weight).max(axis=1) >= 1e-30
    assert (got.scale <= coarse.scale)[used].all()
    error = np.abs(got.values * got.scale[:, None].astype(np.float64) - weight)
    assert (error <= got.scale[:, None] * 0.5001).all()


def test_a_bias_larger_than_int32_widens_only_its_channel():
    weight = np.array([[1e-6, -1e-6], [1e-6, 1e-6]], np.float32)
    bias = np.array([1000.0, 1e-6], np.float32)
    got = quantize_weight(weight, bias, np.float32(1e-6), "7")
    assert got.bias is not None
    back = got.bias * bias_scale(np.float32(1e-6), got.scale).astype(np.float64)
    assert back == pytest.approx(bias, rel=1e-3)
    assert got.scale[1] == np.float32(1e-6 / 64)


def test_a_pruned_channel_keeps_its_bias():
    got = quantize_weight(
        np.zeros((2, 4), np.float32), np.array([0.123, 0.0], np.float32), np.float32(0.02), "7"
    )
    assert got.bias is not None
    assert got.bias * bias_scale(np.float32(0.02), got.scale) == pytest.approx([0.123, 0], rel=1e-5)
    assert not got.values.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.floats(1e-20, 1e6), st.floats(-1e9, 1e9), st.floats(1e-8, 1e3))
def test_products_and_bias_never_overflow_32_bits(reduction, size, bias, scale):
    weight = np.full((1, reduction), size, np.float32)
    got = quantize_weight(weight, np.array([bias], np.float32), np.float32(scale), "8")
    assert got.bias is not None
    total = 255 * np.abs(got.values.astype(np.int64)).sum() + abs(int(got.bias[0]))
    assert total <= 2**31 - 1


@pytest.mark.parametrize(
    ("name", "bits", "host", "expected"),
    [("portable", "auto", "", ("portable", False, "proven")),
     ("portable", 7, "", ("portable", False, "7")),
     ("portable", 8, "", ("portable", False, "8")),
     ("x86-vnni", "auto", "", ("x86-vnni", False, "8")),
     ("arm64", "auto", "", ("arm64", True, "8")),
     ("host", "auto", "x86-vnni", ("x86-vnni", False, "8")),
     ("host", "auto", "x86", ("portable", False, "proven")),
     ("host", "auto", "arm64", ("arm64", True, "8")),
     ("host", "auto", "riscv64", ("portable", False, "proven"))],
)  # fmt: skip
def test_a_target_decides_signs_and_bits(name, bits, host, expected):
    got = resolve(name, bits, host)
    assert (got.name, got.signed, got.bits) == expected
    assert got.reason


def test_other_integers_are_taken_where_they_round_the_same_weights_on_the_same_grid():
    weight = np.array([[0.64, 0.332, -0.107]] * 4, np.float32)
    up, far, large = [64, 34, -10], [64, 40, -11], [65, 33, -11]
    given = np.array([up, far, large, [64, 33, -11]], np.int8)
    got = quantize_weight(weight, None, ONE, "7", given)
    assert got.values.tolist() == [up, [64, 33, -11], [64, 33, -11], [64, 33, -11]]


def test_other_integers_never_break_the_proof():
    # On the grid of 67: -67, 64.4 and 63.4; 65 + 64 is one too much, either alone is not.
    weight = np.array([[-1.0, 0.9612, 0.9463]] * 3, np.float32)
    given = np.array([[-67, 65, 64], [-67, 65, 63], [-67, 64, 64]], np.int8)
    got = quantize_weight(weight, None, ONE, "proven", given)
    assert got.grid.tolist() == [67, 67, 67]
    assert got.values.tolist() == [[-67, 64, 63], [-67, 65, 63], [-67, 64, 64]]
