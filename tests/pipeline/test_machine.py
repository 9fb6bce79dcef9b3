"""What this machine lacks is said before anything runs, with its place in the file."""

import pytest

from compressor.core.errors import MissingError
from compressor.pipeline import planning
from compressor.pipeline.execution import Options
from tests.pipeline import toys

LATE = """\
  a: {uses: "T:SOURCE", with: {value: 3.0}}
  b: {uses: "T:PICKY", in: {number: a}, with: {wants: gold}}
  c: {uses: "T:PICKY", in: {number: b}, with: {wants: gold}}
"""


@pytest.fixture
def wanting(bench, monkeypatch):
    """A pipeline whose second stage needs what is not there."""
    monkeypatch.setattr(toys, "HERE", {"wood"})
    bench.write(LATE)
    return bench


def steps(bench, overrides=(), device="cpu"):
    pipeline = bench.load(overrides)
    return planning.plan(pipeline, bench.state(device), pipeline.nodes, rebench=False)


def test_a_stage_that_cannot_run_here_is_refused_before_the_first_one_runs(wanting):
    with pytest.raises(MissingError, match=r"p\.yaml:5: stages\.b\.with\.wants: no gold here$"):
        wanting.run()
    assert toys.CALLS == []


def test_plan_shows_it_and_says_each_thing_once(wanting):
    found = steps(wanting)
    assert [bool(s.problem) for s in found] == [False, True, True]
    assert len(planning.problems(found)) == 1
    assert not planning.problems(steps(wanting, ["stages.b.with.wants=wood"])[:2])


def test_what_is_cached_needs_no_machine(wanting, monkeypatch):
    monkeypatch.setattr(toys, "HERE", {"wood", "gold"})
    wanting.run()
    monkeypatch.setattr(toys, "HERE", set())
    assert wanting.run()[1] == []
    assert planning.problems(steps(wanting)) == []
    with pytest.raises(MissingError, match=r"stages\.c"):
        wanting.run(["stages.c.with.by=7.0"])


def test_an_accepted_stage_is_not_asked_for(wanting, monkeypatch):
    accept = Options(accept_code=frozenset({"b", "c"}))
    with pytest.raises(MissingError, match=r"stages\.b"):
        wanting.run(options=accept)  # nothing to accept yet: it would have to run
    assert toys.CALLS == ["source 3.0"]


def test_a_missing_extra_is_found_without_importing_anything(bench, monkeypatch):
    real = toys.PICKY
    monkeypatch.setattr(toys, "NEEDY", type(real)(
        "needy", real.config, real.run, real.needs, real.makes, needs_extra=("torch_that_is_not",)
    ), raising=False)  # fmt: skip
    bench.write('  a: {uses: "T:SOURCE"}\n  b: {uses: "T:NEEDY", in: {number: a}}\n')
    (problem,) = planning.problems(steps(bench))
    assert problem.endswith(
        'stages.b: it needs torch_that_is_not; `pip install "compressor[train]"`'
    )
    with pytest.raises(MissingError, match="torch_that_is_not"):
        bench.run()
    assert toys.CALLS == []


def test_a_device_that_torch_does_not_see_is_one_problem_however_many_stages_need_it(
    bench, monkeypatch
):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    real = toys.PICKY
    monkeypatch.setattr(toys, "TORCHY", type(real)(
        "torchy", real.config, real.run, real.needs, real.makes, needs_extra=("torch",)
    ), raising=False)  # fmt: skip
    bench.write(
        '  a: {uses: "T:SOURCE"}\n  b: {uses: "T:TORCHY", in: {number: a}}\n'
        '  c: {uses: "T:TORCHY", in: {number: b}}\n'
    )
    (problem,) = planning.problems(steps(bench, device="cuda"))
    assert "stages.b: --device cuda: torch sees no CUDA device; use --device cpu" in problem
    assert planning.problems(steps(bench)) == []
