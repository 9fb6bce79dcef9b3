import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.core.errors import IntegrityError, StageError
from compressor.core.types import InputSpec, ModelSpec
from compressor.pipeline import keys, planning
from compressor.pipeline.execution import Options
from tests.pipeline import toys
from tests.pipeline.test_wiring import CHAIN


def test_values_are_right_and_a_second_run_computes_nothing(bench):
    bench.write(CHAIN)
    values, calls = bench.run()
    assert values == {"a": 3.0, "b": 6.0, "c": 10.0}
    assert calls == ["source 3.0", "scale 2.0", "add 1"]
    assert bench.run() == (values, [])


def test_only_what_depends_on_a_change_is_computed_again(bench):
    bench.write(CHAIN)
    bench.run()
    values, calls = bench.run(["stages.c.with.plus=5"])
    assert (values["c"], calls) == (14.0, ["add 5"])
    assert bench.run(["stages.b.with.by=3.0"])[1] == ["scale 3.0", "add 1"]
    assert bench.run()[1] == []  # the older results are still there


def test_an_equal_result_stops_the_wave(bench):
    """An input's digest counts, not its key: the same bytes need no new computation."""
    bench.write(CHAIN)
    bench.run()
    assert bench.run(["stages.a.with.label=b"])[1] == ["source 3.0"]


@pytest.mark.parametrize("override", ["stages.a.with.value=4.0", "stages.a.with.label=z", "seed=1"])
def test_every_field_and_the_seed_change_the_key(bench, override):
    bench.write(CHAIN)
    before = bench.state().parts(bench.load().node("a"))
    after = bench.state().parts(bench.load([override]).node("a"))
    assert keys.digest(before) != keys.digest(after)


def test_a_changed_external_is_seen_and_named(bench, tmp_path):
    file = tmp_path / "data.txt"
    file.write_text("1")
    bench.write(f'  a: {{uses: "T:SOURCE", with: {{file: "{file}"}}}}\n')
    assert bench.run()[0] == {"a": 2.0}
    file.write_text("5")
    pipeline = bench.load()
    steps = planning.plan(pipeline, bench.state(), pipeline.nodes, rebench=False)
    assert steps[0].state == "stale"
    assert str(file) in steps[0].reason
    assert bench.run()[0] == {"a": 6.0}


def test_an_external_that_changes_while_the_stage_runs_is_not_published(
    bench, tmp_path, monkeypatch
):
    file = tmp_path / "data.txt"
    file.write_text("1")
    bench.write(f'  a: {{uses: "T:SOURCE", with: {{file: "{file}"}}}}\n')
    original = toys._write

    def meddle(ctx, value):
        file.write_text("12345")
        return original(ctx, value)

    monkeypatch.setattr(toys, "_write", meddle)
    with pytest.raises(IntegrityError, match="changed while it ran"):
        bench.run()
    monkeypatch.undo()
    assert bench.run()[0] == {"a": 12346.0}


def test_plan_says_why(bench):
    bench.write(CHAIN)

    def states(overrides=()):
        pipeline = bench.load(overrides)
        steps = planning.plan(pipeline, bench.state(), pipeline.nodes, rebench=False)
        return [(s.state, s.reason) for s in steps]

    assert [s for s, _ in states()] == ["new", "waits", "waits"]
    bench.run()
    assert [s for s, _ in states()] == ["cached"] * 3
    changed = states(["stages.b.with.by=5.0"])
    assert changed[1] == ("stale", "with.by 2.0 -> 5.0")
    assert changed[2][0] == "waits"


def test_differences_name_files_libraries_and_inputs():
    old = {"code": {"compressor.a": "1"}, "libraries": {"numpy": "1"}, "inputs": {"x": ["1"]}}
    new = {"code": {"compressor.a": "2"}, "libraries": {"numpy": "2"}, "inputs": {"x": ["2"]}}
    assert list(keys.differences(old, new)) == [
        "code changed: compressor/a.py",
        "input changed: x",
        "library changed: numpy 1 -> 2",
    ]


def test_a_failure_is_not_cached_and_leaves_nothing(bench):
    bench.write(CHAIN.replace("plus: 1", "fail: true"))
    with pytest.raises(ZeroDivisionError):
        bench.run()
    assert list((bench.store / "tmp").iterdir()) == []
    assert bench.run(["stages.c.with.fail=false"])[1] == ["add 0"]


@pytest.mark.parametrize("stage", ["LIAR", "OUTSIDE", "INFINITE"])
def test_a_stage_that_breaks_its_declaration_is_refused(bench, stage):
    bench.write(f'  a: {{uses: "T:{stage}"}}\n')
    with pytest.raises(StageError, match="a"):
        bench.run()


def test_damaged_bytes_are_computed_again_with_a_warning(bench):
    bench.write(CHAIN)
    values, _ = bench.run()
    for path in (bench.store / "objects").glob("??/*"):
        path.write_bytes(b"{}")
    assert bench.run() == (values, ["source 3.0", "scale 2.0", "add 1"])
    assert bench.warnings


def test_accept_code_keeps_a_result_whose_code_changed(bench, monkeypatch):
    bench.write(CHAIN)
    bench.run()
    real = keys.source.behind

    def edited(references, memo=None):
        code = real(references)
        return type(code)({**code.modules, "tests.pipeline.toys": "edited"}, code.libraries)

    monkeypatch.setattr(keys.source, "behind", edited)
    assert bench.run(options=Options(accept_code=frozenset({"a", "b", "c"})))[1] == []
    assert bench.run()[1] == []  # recorded, not only for that run


def test_parts_are_what_is_read_back_from_their_record():
    """Stored parts are compared with new ones, so no tuple may hide in a network's spec."""
    spec = ModelSpec("m:f", {"widths": (8, 16)}, ("a", "b"), {"x": InputSpec((1, 8, 8), "uint8")})
    plain = keys._plain(spec)
    assert plain == json.loads(json.dumps(plain))


def test_accept_code_does_not_hide_another_change(bench, monkeypatch):
    bench.write(CHAIN)
    bench.run()
    accept = Options(accept_code=frozenset({"a", "b", "c"}))
    assert bench.run(["stages.c.with.plus=9"], accept)[1] == ["add 9"]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.pipeline.conftest import Bench
b = Bench(Path({folder!r}))
values, calls = b.run()
print(values["c"], len(calls))
"""


@pytest.mark.slow
def test_eight_processes_share_one_computation(bench, tmp_path):
    bench.write(CHAIN)
    root = str(Path(__file__).parents[2])
    code = CHILD.format(root=root, folder=str(tmp_path))
    env = {**os.environ, "PYTHONPATH": root}
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
        for _ in range(8)
    ]
    rows = [c.communicate()[0].split() for c in children]
    assert {float(value) for value, _ in rows} == {10.0}
    assert sum(int(calls) for _, calls in rows) == 3


def test_the_second_plan_parses_no_source(bench, monkeypatch):
    bench.write(CHAIN)
    bench.run()
    monkeypatch.setattr(keys.source.syntax, "outline", None)  # called for each parsed file
    pipeline = bench.load()
    steps = planning.plan(pipeline, bench.state(), pipeline.nodes, rebench=False)
    assert [s.state for s in steps] == ["cached"] * 3
