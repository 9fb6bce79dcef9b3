"""The command line: help, exit codes, streams, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest

from compressor import api, cli
from compressor.core import errors
from tests.helpers import compressor, litter, tree, write_arrays

PIPELINES = Path(__file__).parents[1] / "pipelines"
SHIPPED = sorted(p.name for p in PIPELINES.glob("*.yaml"))
TOY = """\
name: toy
stages:
  a: {uses: "tests.pipeline.toys:SOURCE", with: {value: 3.0}}
  b: {uses: "tests.pipeline.toys:SCALE", in: {number: a}}
"""


def commands(group: click.Group, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [above]
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found += commands(command, (*above, name))
        else:
            found.append((*above, name))
    return found


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(TOY)
    return tmp_path


@pytest.mark.parametrize("words", commands(cli.cli), ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_fits_a_terminal(words, option):
    outcome = compressor(*words, option)
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith("Usage: compressor")
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert "\\b" not in outcome.out
    assert "..." not in outcome.out.partition("Commands:")[2].replace("COMMAND [ARGS]...", "")


def test_every_option_says_what_it_does():
    def options(command: click.Command) -> list[str]:
        return [
            f"{command.name} {p.name}"
            for p in command.params
            if isinstance(p, click.Option)
            and not (p.help or isinstance(p.type, click.Choice) or p.show_default)
        ]

    flat = [c for w in commands(cli.cli) for c in [_resolve(w)] if not isinstance(c, click.Group)]
    assert [bad for command in flat for bad in options(command)] == []
    assert all(command.help for command in flat)


def _resolve(words: tuple[str, ...]) -> click.Command:
    command: click.Command = cli.cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


def test_the_version_is_that_of_the_package():
    from compressor import __version__

    assert compressor("--version").out == f"compressor, version {__version__}\n"


def test_the_package_runs_as_a_module(toy):
    root = str(Path(__file__).parents[1])
    for module in ("compressor", "compressor.cli"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--version"],
            capture_output=True, text=True, cwd=toy, env={**os.environ, "PYTHONPATH": root},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("compressor, version ")


# -- plan and run of toys -------------------------------------------------------------------------


def test_plan_and_run_of_a_pipeline_without_a_bundle(toy):
    outcome = compressor("plan", "toy.yaml")
    assert (outcome.code, outcome.err) == (0, "")
    assert "next: compressor run toy.yaml" in outcome.out
    assert "imports tests.pipeline" not in outcome.out  # that is for code that a config selects
    before = tree(toy)
    outcome = compressor("run", "toy.yaml", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.json["computed"] == ["a", "b"]
    assert Path(outcome.json["folder"]).is_dir()
    assert tree(toy) > before
    assert compressor("--quiet", "run", "toy.yaml").err == ""


def test_data_goes_to_stdout_and_progress_to_stderr(toy):
    outcome = compressor("run", "toy.yaml")
    assert "ran in" in outcome.err
    assert "ran in" not in outcome.out
    assert "report: runs/toy/latest/report.html" in outcome.out


def test_only_leaves_no_run_folder(toy):
    assert compressor("run", "toy.yaml", "--only", "a").out == "up to date: a\n"
    assert not (toy / "runs").exists()
    outcome = compressor("run", "toy.yaml", "--only", "aa")
    assert (outcome.code, "no such stage; did you mean" in outcome.err) == (2, True)


def test_json_errors_are_json_on_stdout(toy):
    outcome = compressor("run", "none.yaml", "--json")
    assert (outcome.code, outcome.err) == (2, "")
    assert outcome.json == {"error": "none.yaml: no such file", "exit_code": 2}
    outcome = compressor("run", "--json")
    assert outcome.json == {"error": "Missing argument 'FILE'.", "exit_code": 2}
    outcome = compressor("run", "toy.yaml", "--onyl", "a", "--json")
    assert (outcome.code, outcome.json["exit_code"]) == (2, 2)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("rnu",), "Did you mean 'run'?"),
        (("run", "toy.yaml", "--onyl", "a"), "--only"),
        (("run",), "Missing argument 'FILE'"),
        (("bench",), "Missing argument"),
        (("bench", "m.onnx", "--threads", "0"), "x>=1"),
        (("run", "toy.yaml", "--device", "gpu"), "'cpu', 'cuda'"),
        (("gate", "none", "--baseline", "b"), "'none' does not exist"),
        (("report", "none"), "'none' does not exist"),
        (("cache", "gc", "--store", "none"), "--store none: no such folder"),
        (("cache", "verify", "--store", "toy.yaml"), "'toy.yaml' is a file"),
        (("run", "toy.yaml", "--set", "b.by=3"), "did you mean 'stages.b.with.by'?"),
        (("verify", "none"), "'none' does not exist"),
    ],
)
def test_misuse_exits_2_with_a_hint(toy, words, hint):
    outcome = compressor(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert hint in outcome.err
    assert "Traceback" not in outcome.err


def test_init_writes_a_project_that_plans(toy):
    assert compressor("init", "mine").code == 0
    assert tree(toy / "mine") == {"pipeline.yaml", "nets.py", "dataset.py", "README.md"}
    os.chdir(toy / "mine")
    outcome = compressor("plan", "pipeline.yaml")
    assert outcome.code == 0, outcome
    assert "imports nets:tiny_cnn" in outcome.out
    assert "imports dataset:shapes" in outcome.out
    os.chdir(toy)
    before = (toy / "mine" / "nets.py").read_text()
    outcome = compressor("init", "mine")
    assert (outcome.code, "give a new folder" in outcome.err) == (2, True)
    assert (toy / "mine" / "nets.py").read_text() == before


def test_the_cache_is_listed_verified_and_emptied(toy):
    assert compressor("run", "toy.yaml").code == 0
    assert "2 results" in compressor("cache", "ls").out
    assert {row["uses"] for row in compressor("cache", "ls", "--json").json} == {"source", "scale"}
    assert compressor("cache", "verify").code == 0
    next((toy / ".compressor" / "objects").glob("??/*")).write_bytes(b"9")
    outcome = compressor("cache", "verify")
    assert (outcome.code, "1 damaged object" in outcome.err) == (5, True)
    assert compressor("cache", "gc", "--json").json["removed"] == 0  # a last run needs them
    assert compressor("cache", "gc", "--all", "--json").json["removed"] == 2
    assert compressor("cache", "ls", "--json").json == []


def test_plan_of_what_cannot_run_here_shows_the_wiring_and_exits_6(toy, monkeypatch):
    from tests.pipeline import toys

    monkeypatch.setattr(toys, "HERE", set())
    (toy / "toy.yaml").write_text(TOY.replace("SCALE", "PICKY"))
    outcome = compressor("plan", "toy.yaml")
    assert (outcome.code, outcome.err) == (6, "")
    assert outcome.out.startswith("stage")
    assert "cannot run here: toy.yaml:4: stages.b.with.wants: no wood here" in outcome.out
    outcome = compressor("plan", "toy.yaml", "--json")
    assert [bool(row["problem"]) for row in outcome.json] == [False, True]
    outcome = compressor("run", "toy.yaml")
    assert (outcome.code, "stages.b.with.wants" in outcome.err) == (6, True)
    assert "ran in" not in outcome.err


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_pipeline_plans(toy, name):
    """Where its data are not there, plan still says so in one line."""
    outcome = compressor("plan", PIPELINES / name)
    assert outcome.code == 0, outcome
    assert "bundle" in outcome.out


# -- exit codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.CompressorError, 1),
        (errors.ConfigError, 2),
        (errors.GateFailed, 3),
        (errors.GateInconclusive, 4),
        (errors.IntegrityError, 5),
        (errors.ParityError, 5),
        (errors.MissingError, 6),
        (errors.SystemFault, 7),
        (errors.StageError, 8),
        (errors.DivergedError, 8),
        (errors.TargetError, 8),
        (KeyboardInterrupt, 130),
        (MemoryError, 7),
        (ZeroDivisionError, 1),
    ],
)
def test_every_kind_of_error_has_its_exit_code(toy, monkeypatch, error, code):
    def fail(*args: object, **named: object) -> None:
        raise error("why")

    monkeypatch.setattr(api, "plan", fail)
    outcome = compressor("plan", "toy.yaml")
    assert outcome.code == code
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert len(outcome.err.strip().splitlines()) <= 2
    debug = compressor("plan", "toy.yaml", "--debug")
    assert debug.code == code
    assert ("Traceback" in debug.err) == (error is not KeyboardInterrupt)


def test_every_error_class_is_in_the_table():
    def below(cls: type) -> set[type]:
        return {cls, *(c for sub in cls.__subclasses__() for c in below(sub))}

    codes = {cls.exit_code for cls in below(errors.CompressorError)}
    assert codes == set(range(1, 9))


@pytest.mark.parametrize(("strict", "code"), [(False, 0), (True, 4)])
def test_a_gate_decides_the_exit_code_of_a_run(toy, monkeypatch, strict, code):
    from compressor import gates
    from compressor.core.results import GateRecord

    verdict = GateRecord("g", "INCONCLUSIVE", "too few samples")
    monkeypatch.setattr(gates, "evaluate", lambda *args, **named: (verdict,))
    assert compressor("run", "toy.yaml", *["--strict"] * strict).code == code
    failed = GateRecord("g", "FAIL", "no")
    monkeypatch.setattr(gates, "evaluate", lambda *args, **named: (failed,))
    outcome = compressor("run", "toy.yaml", "--json")
    assert (outcome.code, outcome.json["exit_code"]) == (3, 3)


# -- processes ------------------------------------------------------------------------------------


def test_plan_and_help_load_no_library_that_computes(toy):
    (toy / "real.yaml").write_text(
        "name: real\nstages:\n  data: {uses: data, with: {dataset: digits}}\n"
        "  teacher: {uses: train, with: {model: lenet5}}\n  fp32: {uses: export}\n"
        "  int8: {uses: quantize}\n"
    )
    code = (
        "import sys\nfrom compressor import cli\n"
        "for words in (['--help'], ['plan', 'real.yaml']):\n"
        "    try: cli.main(words)\n"
        "    except SystemExit as stop: assert not stop.code, stop.code\n"
        "    heavy = ['torch', 'onnxruntime', 'onnx', 'matplotlib', 'sklearn', 'scipy']\n"
        "    heavy += ['numpy', 'pydantic', 'rich'] if words == ['--help'] else []\n"
        "    assert not [m for m in heavy if m in sys.modules], words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=toy)
    assert done.returncode == 0, done.stderr
    assert "int8" in done.stdout


SLOW_STAGE = """
import time
from compressor.core.config import Config
from compressor.core.types import Stage, StageResult

class Nothing(Config):
    pass

def run(config, inputs, ctx):
    (ctx.workdir / "half.bin").write_bytes(b"half")
    print("started", flush=True)
    time.sleep(60)

SLEEP = Stage("sleep", Nothing, run, {}, {"out": "thing"})
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_ends_a_run_with_one_line_and_nothing_half_written(toy, number, code, word):
    (toy / "slow_stage.py").write_text(SLOW_STAGE)
    (toy / "slow.yaml").write_text('name: slow\nstages:\n  a: {uses: "slow_stage:SLEEP"}\n')
    command = [sys.executable, "-m", "compressor.cli", "run", "slow.yaml"]
    child = subprocess.Popen(
        command, cwd=toy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(toy)},
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.readline() == "started\n"
    time.sleep(0.1)
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    assert child.returncode == code
    assert out == ""
    assert err.strip() == f"{word}; what is finished is stored, run again to go on"
    assert litter(toy) == []
    assert not list((toy / ".compressor").glob("objects/??/*"))


def test_a_reader_that_goes_away_is_no_error(toy):
    command = f"{sys.executable} -m compressor.cli cache ls | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=toy)
    assert done.stderr == ""


def test_json_is_one_document(toy):
    for words in (("plan", "toy.yaml"), ("doctor",), ("cache", "ls")):
        assert json.loads(compressor(*words, "--json").out) is not None


def test_flags_of_one_call_do_not_stay_for_the_next(toy):
    compressor("plan", "toy.yaml", "--json")
    assert compressor("plan", "toy.yaml").out.startswith("stage")


def test_data_of_a_user_is_never_unpickled(toy):
    import numpy as np

    write_arrays(toy / "d.npz", x=np.array([{"a": 1}] * 120, dtype=object))
    text = "name: p\nstages:\n  data: {uses: data, with: {dataset: arrays, root: d.npz}}\n"
    (toy / "p.yaml").write_text(text)
    outcome = compressor("run", "p.yaml")
    assert (outcome.code, "holds Python objects" in outcome.err) == (2, True)
