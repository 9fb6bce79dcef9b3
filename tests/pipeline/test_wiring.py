import pytest

from compressor.core.errors import ConfigError
from compressor.pipeline import record

CHAIN = """\
  a: {uses: "T:SOURCE", with: {value: 3.0}}
  b: {uses: "T:SCALE", in: {number: a}}
  c: {uses: "T:ADD", in: {numbers: [a, b]}, with: {plus: 1}}
"""


def names(pipeline):
    return [n.name for n in pipeline.nodes]


def wires(pipeline, name):
    node = pipeline.node(name)
    return {k: [r.node for r in refs] for k, refs in node.inputs.items()}


def test_a_chain_is_wired_as_written(bench):
    bench.write(CHAIN)
    pipeline = bench.load()
    assert names(pipeline) == ["a", "b", "c"]
    assert wires(pipeline, "c") == {"numbers": ["a", "b"]}


def test_a_required_input_with_one_candidate_may_be_left_out(bench):
    bench.write('  a: {uses: "T:SOURCE"}\n  b: {uses: "T:SCALE"}\n')
    assert wires(bench.load(), "b") == {"number": ["a"]}


def test_a_left_out_input_with_several_candidates_lists_them(problems):
    text = problems('  a: {uses: "T:SOURCE"}\n  b: {uses: "T:SOURCE"}\n  c: {uses: "T:SCALE"}\n')
    assert "candidates: a.number, b.number" in text
    assert ":5:" in text  # its line


def test_several_inputs_are_never_guessed(problems):
    assert "numbers is required" in problems('  a: {uses: "T:SOURCE"}\n  b: {uses: "T:ADD"}\n')


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ('  a: {uses: "T:SOURCE", wth: {}}\n', "did you mean 'with'"),
        ("  a: {uses: trian}\n", "did you mean 'train'"),
        ("  a: {with: {}}\n", "uses: is required"),
        ('  a: {uses: "T:NONE"}\n', "has no 'NONE'"),
        ('  a: {uses: "T:read"}\n', "not a Stage"),
        ('  a: {uses: "no_such_package.x:Y"}\n', "no module 'no_such_package'"),
        ('  a: {uses: "T:SOURCE", with: {vlaue: 1}}\n', "did you mean 'value'"),
        ('  a: {uses: "T:SOURCE", with: {value: "3"}}\n', 'got "3"; needs'),
        ('  a: {uses: "T:SOURCE", with: {value: true}}\n', "got true; needs"),
        ('  a: {uses: "T:SOURCE", with: [1]}\n', "needs a mapping"),
        ('  a: {uses: "T:SOURCE", value: 3.0}\n', "an option of source stands below `with`"),
        ('  a: {uses: "T:SCALE", number: b}\n', "an input of scale stands below `in`"),
        ('  a: {uses: "T:SOURCE", seed: -1}\n', "needs a whole number"),
        ('  1a: {uses: "T:SOURCE"}\n', "no digit first"),
        ('  a: {uses: "T:SCALE", in: {nmber: x}}\n', "did you mean 'number'"),
        ('  a: {uses: "T:SCALE", in: {number: b}}\n  b: {uses: "T:SOURCE"}\n', "stand above"),
        (
            '  a: {uses: "T:SOURCE"}\n  b: {uses: "T:SCALE", in: {number: a.nmber}}\n',
            "did you mean 'number'",
        ),
        (
            '  src: {uses: "T:SOURCE"}\n  b: {uses: "T:SCALE", in: {number: scr}}\n',
            "did you mean 'src'",
        ),
        (
            '  a: {uses: "T:SOURCE"}\n  b: {uses: "T:SCALE", in: {number: [a, a]}}\n',
            "number takes one",
        ),
        ('  a: {uses: "T:SOURCE", matrix: {seed: 3}}\n', "needs a list"),
        ('  a: {uses: "T:SOURCE", matrix: {vlaue: [1]}}\n', "did you mean 'value'"),
    ],
)
def test_a_wrong_file_says_where_what_and_what_would_work(problems, stages, expected):
    text = problems(stages)
    assert expected in text
    assert "p.yaml:" in text


def test_all_problems_are_found_at_once(problems):
    text = problems(
        '  a: {uses: "T:SOURCE", with: {vlaue: 1}}\n'
        '  b: {uses: "T:SCALE", in: {number: zzz}, with: {by: x}}\n'
        "  c: {uses: nothing}\n",
        "name: bad name\nsede: 1\n",
    )
    for word in ("vlaue", "by", "nothing", "bad name", "sede"):
        assert word in text
    assert len(text.splitlines()) >= 5


def test_top_level_must_be_a_mapping_with_stages(bench):
    said = {
        "- a\n": "got a list; a pipeline is a mapping with the keys name, seed, stages, gates",
        "": "got nothing; a pipeline is a mapping",
        "words\n": "got plain text; a pipeline is a mapping",
        "name: x\n": "needs a mapping with at least one stage",
        "name: x\nstages: []\n": "needs a mapping with at least one stage",
    }
    for text, words in said.items():
        bench.file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            bench.load()


def test_a_matrix_makes_one_node_per_combination_with_sorted_keys(bench):
    bench.write('  a: {uses: "T:SOURCE", matrix: {value: [1.0, 2.0], seed: [0, 7]}}\n')
    pipeline = bench.load()
    assert names(pipeline) == [
        "a[seed=0,value=1.0]",
        "a[seed=0,value=2.0]",
        "a[seed=7,value=1.0]",
        "a[seed=7,value=2.0]",
    ]
    node = pipeline.node("a[seed=7,value=2.0]")
    assert (node.seed, node.config.value) == (7, 2.0)


def test_a_matrix_spreads_through_single_inputs_and_gathers_in_many(bench):
    bench.write(
        '  a: {uses: "T:SOURCE", matrix: {seed: [0, 1]}}\n'
        '  b: {uses: "T:SCALE", in: {number: a}}\n'
        '  c: {uses: "T:ADD", in: {numbers: b}}\n'
        '  d: {uses: "T:SCALE", in: {number: "a[seed=1]"}}\n'
    )
    pipeline = bench.load()
    assert names(pipeline)[2:4] == ["b[seed=0]", "b[seed=1]"]
    assert wires(pipeline, "b[seed=1]") == {"number": ["a[seed=1]"]}
    assert wires(pipeline, "c") == {"numbers": ["b[seed=0]", "b[seed=1]"]}
    assert names(pipeline)[-1] == "d[seed=1]"


def test_two_matrix_inputs_join_on_equal_keys_and_multiply_otherwise(bench):
    bench.write(
        '  a: {uses: "T:SOURCE", matrix: {seed: [0, 1]}}\n'
        '  b: {uses: "T:SOURCE", matrix: {seed: [0, 1]}}\n'
        '  c: {uses: "T:SOURCE", matrix: {value: [1.0, 2.0]}}\n'
        '  ab: {uses: "T:PAIR", in: {left: a, right: b}}\n'
        '  ac: {uses: "T:PAIR", in: {left: a, right: c}}\n'
    )
    pipeline = bench.load()
    assert [n for n in names(pipeline) if n.startswith("ab")] == ["ab[seed=0]", "ab[seed=1]"]
    assert len([n for n in names(pipeline) if n.startswith("ac")]) == 4
    assert wires(pipeline, "ab[seed=1]") == {"left": ["a[seed=1]"], "right": ["b[seed=1]"]}


def test_a_matrix_that_explodes_is_refused(problems):
    values = ", ".join(str(i) for i in range(30))
    text = problems(f'  a: {{uses: "T:ADD", matrix: {{seed: [{values}], plus: [{values}]}}}}\n')
    assert "more than 256" in text


def test_set_overrides_before_checking(bench):
    bench.write(CHAIN)
    assert bench.load(["stages.a.with.value=1e-3"]).node("a").config.value == 0.001
    assert bench.load(["seed=5"]).seed == 5
    with pytest.raises(ConfigError, match="did you mean 'stages'"):
        bench.load(["stagse.a.with.value=1"])
    with pytest.raises(ConfigError, match=r"--set seed=\[: the value is not YAML \(.*\); quote it"):
        bench.load(["seed=["])
    with pytest.raises(ConfigError, match=r"did you mean 'stages\.a\.with\.value'"):
        bench.load(["a.value=1"])
    with pytest.raises(ConfigError, match=r"did you mean 'stages\.a\.with\.value'"):
        bench.load(["a.with.value=1"])
    with pytest.raises(ConfigError, match=r"key\.path=value"):
        bench.load(["seed"])
    with pytest.raises(ConfigError, match="vlaue"):
        bench.load(["stages.a.with.vlaue=1"])


def test_upstream_is_a_stage_and_what_it_needs(bench):
    bench.write(CHAIN)
    pipeline = bench.load()
    assert [n.name for n in pipeline.upstream(["b"])] == ["a", "b"]


def test_the_resolved_file_loads_again_to_the_same_nodes(bench):
    from compressor.core import yaml

    bench.write(
        CHAIN + '  d: {uses: "T:SOURCE", matrix: {seed: [0, 1]}}\n  e: {uses: "T:SCALE", '
        "in: {number: d}}\n"
    )
    first = bench.load(["stages.b.with.by=4.0"])
    bench.file.write_text(yaml.dump(record.resolved(first)))
    second = bench.load()
    assert first.nodes == second.nodes
