from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.quantization.graph import Graph
from compressor.quantization.plain import Options, quantize
from compressor.quantization.prepare import clean
from compressor.quantization.regions import divide, edges, excluded, parts, split, tensors
from compressor.quantization.select import select
from compressor.runtime.profile import fusion
from tests.quantization.graphs import AXES, build, images, put, random_network, zoo


def world(model):
    graph = Graph(clean(model))
    selection = select(graph)
    regions = divide(graph, selection)
    return graph, selection, regions, edges(graph, selection, regions)


def inside(selection):
    return {*selection.kinds, *(fold.name for fold in selection.folds.values())}


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_every_int8_operator_is_in_exactly_one_region(seed):
    _, selection, regions, _ = world(random_network(seed))
    names = [name for region in regions for name in region.nodes]
    assert len(names) == len(set(names))
    assert set(names) == inside(selection)
    assert all(region.weighted for region in regions)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), choice=st.randoms(use_true_random=False))
def test_borders_are_where_the_writer_puts_them(seed, choice):
    graph, selection, regions, found = world(random_network(seed))
    floats = frozenset(i for i in range(len(regions)) if choice.random() < 0.5)
    chosen = select(graph, excluded(regions, floats))
    for i, region in enumerate(regions):
        kinds = {chosen.kinds.get(name) for name in region.weighted}
        assert kinds == ({None} if i in floats else {"weighted"})
    assert set(chosen.entries) == {e.tensor for e in found if e.quantized(floats)}
    assert set(chosen.ranges_needed()) <= set(tensors(graph, selection))


def test_a_choice_of_one_form_has_borders_only_at_the_ends():
    _, _, regions, found = world(zoo())
    everything = frozenset(range(len(regions)))
    assert [e.tensor for e in found if e.quantized(frozenset())] == ["x"]
    assert not any(e.quantized(everything) or e.dequantized(everything) for e in found)


def test_a_layer_takes_its_activation_pool_and_addition_with_it():
    _, _, regions, _ = world(zoo())
    by_name = {region.name: region.nodes for region in regions}
    assert by_name["Conv_a"] == ("Conv_a", "Relu_ar")
    assert by_name["Conv_d"] == ("Conv_d", "Add_e", "Relu_er", "MaxPool_mp")
    assert by_name["Conv_v"][:3] == ("Conv_v", "Sigmoid_vs", "Mul_t")


def test_branches_that_end_in_one_concat_are_one_region():
    model = build(
        "s = Conv(x, w0) r = Relu(s) a = Conv(r, w1) ar = Relu(a) b = Conv(r, w2) br = Relu(b)"
        " c = Concat<axis=1>(ar, br) p = MaxPool<kernel_shape=[2,2]>(c) y = Conv(p, w3)",
        {"w0": (4, 3, 1, 1), "w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (4, 8, 1, 1)},
        outputs="float[N,4,7,7] y",
    )
    _, _, regions, _ = world(model)
    assert [region.weighted for region in regions] == [
        ("Conv_s",), ("Conv_a", "Conv_b"), ("Conv_y",)
    ]  # fmt: skip
    assert "MaxPool_p" in regions[1].nodes


def test_a_skip_connection_does_not_join_what_it_skips():
    model = build(
        "a = Conv(x, w0) ar = Relu(a) b = Conv(ar, w1) e = Add(b, ar) er = Relu(e)"
        " c = Conv(er, w2) f = Add(c, er) y = Flatten(f)",
        {"w0": (4, 3, 1, 1), "w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1)}, constants=AXES,
    )  # fmt: skip
    _, _, regions, found = world(model)
    assert [region.weighted for region in regions] == [("Conv_a",), ("Conv_b",), ("Conv_c",)]
    edge = next(e for e in found if e.tensor == "ar")
    assert (edge.producer, edge.readers, edge.outside) == (0, (1, 1), 0)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), choice=st.randoms(use_true_random=False))
def test_float_regions_are_float_in_a_plain_session_and_no_border_is_stray(
    tmp_path_factory, seed, choice
):
    folder = tmp_path_factory.mktemp("net")
    model = random_network(seed)
    _, _, regions, found = world(model)
    floats = frozenset(i for i in range(1, len(regions)) if choice.random() < 0.5)
    out = folder / "int8.onnx"
    quantize(put(model, folder / "fp32.onnx"), out, {"x": images()},
             Options(exclude=excluded(regions, floats)))  # fmt: skip
    ops = fusion(out).ops
    layers = sum(len(regions[i].weighted) for i in floats)
    heads = {"Gemm", "MatMul", "FusedGemm", "FusedMatMul"}
    kinds = {"Conv", "FusedConv"} | heads
    assert sum(n for op, n in ops.items() if op in kinds) == layers
    written = Graph(onnx.load(out))
    for node in written.nodes:  # no Q right behind a DQ: that would be a border for nothing
        before = written.producer.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        assert before is None or before.op_type != "DequantizeLinear"
    assert ops["QuantizeLinear"] >= sum(e.quantized(floats) for e in found)


def branching(seed):
    """Blocks of two branches, each with or without layers of its own, that end in one operator."""
    rng = np.random.default_rng(seed)
    shapes = {"w0": (8, 3, 3, 3)}
    lines, now = ["t = Conv<pads=[1,1,1,1]>(x, w0) u = Relu(t)"], "u"
    for k in range(int(rng.integers(1, 4))):
        ends = []
        for side in "lr":
            end = now
            for depth in range(int(rng.integers(side == "l", 3))):
                name, act = f"{side}{k}{depth}", str(rng.choice(["Relu", "HardSwish", "Sigmoid"]))
                shapes["w" + name] = (8, 8, 1, 1)
                lines.append(f"{name} = Conv({end}, w{name})")
                end = name
                if rng.random() < 0.7:
                    lines.append(f"{name}v = {act}({name})")
                    end = name + "v"
            ends.append(end)
        ending = str(rng.choice(["Add", "Mul", "Concat<axis=1>"]))
        lines.append(f"j{k} = {ending}({ends[0]}, {ends[1]}) q{k} = Relu(j{k})")
        shapes[f"w{k}q"] = (8, 16 if "Concat" in ending else 8, 1, 1)
        lines.append(f"n{k} = Conv(q{k}, w{k}q)")
        now = f"n{k}"
    return build(" ".join(lines) + f" y = Flatten({now})", shapes, seed=seed)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_parts_cover_a_region_of_several_layers_once(seed):
    graph, _, regions, _ = world(branching(seed))
    found, inside = parts(graph, regions)
    assert found[: len(regions)] == regions
    assert set(inside) == {i for i, region in enumerate(regions) if len(region.weighted) > 1}
    for i, indexes in inside.items():
        names = [name for j in indexes for name in found[j].nodes]
        assert sorted(names) == sorted(regions[i].nodes)
        layers = [found[j].weighted for j in indexes if found[j].weighted]
        assert layers == [(name,) for name in regions[i].weighted]
    layers = [part for i, part in enumerate(found) if part.weighted and i not in inside]
    weighted = [name for region in regions for name in region.weighted]
    assert sorted(part.name for part in layers) == sorted(weighted)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_layer_alone_in_either_form_is_alone_and_needs_no_range_that_is_not_there(seed):
    graph, selection, regions, _ = world(branching(seed))
    found, inside = parts(graph, regions)
    layers = {name for region in regions for name in region.weighted}
    known = set(tensors(graph, selection))
    for i, indexes in inside.items():
        others = set(range(len(regions))) - {i}
        for j in (j for j in indexes if found[j].weighted):
            alone = {"int8": others.union(indexes) - {j}, "float": {j}}
            for form, floats in alone.items():
                chosen = select(graph, excluded(found, floats))
                int8 = {name for name in layers if chosen.kinds.get(name) == "weighted"}
                assert int8 == ({found[j].name} if form == "int8" else layers - {found[j].name})
                assert set(chosen.ranges_needed()) <= known


def test_a_layer_takes_its_activation_and_leaves_the_addition_to_nobody():
    model = build(
        "a = Conv(x, w0) ar = Relu(a) b = Conv(ar, w1) br = Relu(b) s = Conv(ar, w2)"
        " e = Add(br, s) er = Relu(e) y = Conv(er, w3)",
        {"w0": (4, 3, 1, 1), "w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (4, 4, 1, 1)},
        outputs="float[N,4,8,8] y",
    )
    graph, _, regions, _ = world(model)
    found = [(part.nodes, part.weighted) for part in split(graph, regions[1])]
    assert found == [
        (("Conv_b", "Relu_br"), ("Conv_b",)), (("Conv_s",), ("Conv_s",)), (("Add_e", "Relu_er"), ())
    ]  # fmt: skip
    assert split(graph, regions[0]) == ()
