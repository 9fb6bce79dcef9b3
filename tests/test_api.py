"""What ``import compressor`` gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import compressor
from compressor import api
from compressor.core.errors import ConfigError, MissingError

TOYS = """\
name: toy
stages:
  a: {uses: "tests.pipeline.toys:SOURCE", with: {value: 3.0}}
  b: {uses: "tests.pipeline.toys:SCALE", in: {number: a}}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOYS)
    return tmp_path


def test_every_public_name_is_there_and_none_hides_a_package():
    folder = Path(compressor.__file__).parent
    for name in compressor.__all__:
        assert getattr(compressor, name) is not None
        assert not (folder / name).exists(), name
        assert not (folder / f"{name}.py").exists(), name
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        _ = compressor.rnu


def test_a_run_in_a_fresh_interpreter_needs_no_other_import(toy):
    code = (
        "import compressor\n"
        "outcome = compressor.run('toy.yaml')\n"
        "print(outcome.computed, outcome.results.find('b.value')[0][1].value)\n"
        "print(compressor.write_report(outcome.folder).name, len(compressor.plan('toy.yaml')))\n"
    )
    root = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": root}
    )
    assert done.stdout == "('a', 'b') 6.0\nreport.html 2\n", done.stderr
    assert done.stderr == ""


def test_only_brings_a_part_up_to_date_without_gates_or_a_run(toy):
    outcome = api.run("toy.yaml", only=["a"])
    assert (outcome.computed, outcome.folder, outcome.exit_code) == (("a",), None, 0)
    assert not (toy / "runs").exists()
    assert api.run("toy.yaml").computed == ("b",)
    with pytest.raises(ConfigError, match="--only c: no such stage; known: a, b"):
        api.run("toy.yaml", only=["c"])


def test_an_edit_of_no_stage_cannot_be_accepted(toy):
    with pytest.raises(ConfigError, match="--accept-code c: no such stage; known: a, b"):
        api.run("toy.yaml", accept_code=["c"])
    assert not (toy / ".compressor").exists()


def test_a_member_of_a_matrix_can_be_run_alone(toy):
    text = TOYS.replace("with: {value: 3.0}", "matrix: {seed: [0, 1]}")
    (toy / "toy.yaml").write_text(text)
    assert api.run("toy.yaml", only=["b[seed=1]"]).computed == ("a[seed=1]", "b[seed=1]")


def test_threads_and_device_do_not_matter_to_a_stage_that_does_not_compute_with_them(toy):
    api.run("toy.yaml", threads=1)
    assert api.run("toy.yaml", threads=2, device="cuda").computed == ()


def test_two_runs_in_one_second_get_folders_of_their_own(toy):
    folders = {api.run("toy.yaml").folder for _ in range(3)}
    assert len(folders) == 3
    latest = toy / "runs" / "toy" / "latest"
    assert latest.resolve() in {(toy / f).resolve() for f in folders}


def test_the_store_is_the_argument_else_the_environment_else_here(monkeypatch):
    assert api.store_path() == Path(".compressor")
    monkeypatch.setenv("COMPRESSOR_STORE", "/elsewhere")
    assert api.store_path() == Path("/elsewhere")
    assert api.store_path("/given") == Path("/given")


def test_int8_on_cuda_is_refused_or_flagged_by_bench_too(tmp_path):
    pytest.importorskip("onnxruntime")
    from compressor.runtime.profile import optimized_graph
    from tests.runtime.nets import onnx, qdq_convnet

    qdq, fused, told = qdq_convnet(tmp_path / "qdq.onnx", width=16), tmp_path / "fused.onnx", []
    onnx.save(optimized_graph(qdq), fused)
    with pytest.raises(MissingError, match=r"fused: int8 on CUDA: \d+ nodes would fall back"):
        api.bench([qdq, fused], provider="cuda", told=told.append)
    with pytest.raises(MissingError, match="provider"):  # flagged, and there is no CUDA here
        api.bench([qdq], provider="cuda", told=told.append)
    assert [line.startswith("qdq: int8 on CUDA: 1 layers run in float32") for line in told] == [
        True
    ]
