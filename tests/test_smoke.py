"""The shipped smoke pipeline through the command line, once; what users do with its run after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from compressor.core import results, yaml
from compressor.core.hashing import digest_path
from tests.helpers import Outcome, compressor

ROOT = Path(__file__).parents[1]
FILE = ROOT / "pipelines" / "smoke.yaml"


@dataclass(frozen=True)
class Smoke:
    folder: Path
    first: Outcome

    @property
    def latest(self) -> Path:
        return self.folder / "runs" / "smoke" / "latest"

    def go(self, *words: object) -> Outcome:
        """A command in the folder where the pipeline ran."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            return compressor(*words)
        finally:
            os.chdir(before)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("smoke")
    made = Smoke(folder, Outcome(0, "", "")).go("run", FILE)
    assert made.code == 0, made
    return Smoke(folder, made)


def test_the_table_is_on_stdout_and_progress_on_stderr(smoke: Smoke) -> None:
    out, err = smoke.first.out, smoke.first.err
    for name in ("teacher", "pruned", "int8", "bundle"):
        assert f"\n{name} " in out
    assert "PASS" in out
    assert "next: compressor verify runs/smoke/latest/bundle" in out
    assert "teacher" in err
    assert "ran in" in err
    assert "ran in" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_the_run_folder_is_complete(smoke: Smoke) -> None:
    assert smoke.latest.is_symlink()
    files = {p.name for p in smoke.latest.iterdir()}
    assert files >= {"results.json", "resolved.yaml", "report.html", "summary.md", "junit.xml",
                     "predictions", "models", "timings", "bundle"}  # fmt: skip
    assert [p.name for p in smoke.latest.resolve().parent.iterdir() if p.name[0] == "."] == []
    found = results.load(smoke.latest)
    for stage in found.stages:
        for output in stage.outputs.values():
            if output.file:
                assert digest_path(smoke.latest / output.file) == output.digest
        for file in stage.predictions.values():
            assert (smoke.latest / file).is_file()
    assert [g.verdict for g in found.gates] == ["PASS"]


def test_what_is_counted_on_a_network_is_what_is_counted_on_its_file(smoke: Smoke) -> None:
    """MACs and parameters, once from PyTorch's modules and once from the ONNX graph."""
    found = results.load(smoke.latest)

    def macs(name: str) -> float:
        stage = found.stage(name)
        assert stage is not None
        assert {"accuracy", "macs", "parameters", "bytes"} <= set(stage.metrics)
        return stage.metrics["macs"].value

    assert macs("baseline") == macs("teacher")
    assert macs("plain") == macs("student")
    assert macs("fp32") == macs("pruned") <= 0.75 * macs("student")
    assert macs("int8") == macs("fp32")


def test_the_bundle_verifies_and_a_changed_byte_is_refused(smoke: Smoke, tmp_path: Path) -> None:
    assert smoke.go("verify", smoke.latest / "bundle").code == 0
    import shutil

    broken = tmp_path / "bundle"
    shutil.copytree(smoke.latest / "bundle", broken)
    model = next(broken.glob("*.onnx"))
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    outcome = smoke.go("verify", broken)
    assert outcome.code == 5
    assert model.name in outcome.out


def test_afterwards_everything_is_cached_and_a_second_run_computes_nothing(smoke: Smoke) -> None:
    outcome = smoke.go("--json", "plan", FILE)
    assert {row["state"] for row in outcome.json} == {"cached"}
    assert "everything is cached" in smoke.go("plan", FILE).out
    before = digest_path(smoke.latest.resolve() / "bundle")
    again = smoke.go("run", FILE, "--json")
    assert again.code == 0
    assert again.json["computed"] == []
    assert again.err == ""
    assert digest_path(smoke.latest.resolve() / "bundle") == before
    only = smoke.go("run", FILE, "--only", "fp32")
    assert (only.code, only.out) == (0, "up to date: fp32\n")


def test_the_resolved_file_is_the_same_pipeline(smoke: Smoke) -> None:
    """Its every default is written out, so it finds everything in the cache."""
    outcome = smoke.go("plan", smoke.latest / "resolved.yaml", "--json")
    assert {row["state"] for row in outcome.json} == {"cached"}
    assert yaml.load_file(smoke.latest / "resolved.yaml").value["seed"] == 0


def test_a_run_passes_against_itself_as_the_baseline(smoke: Smoke, tmp_path: Path) -> None:
    """With the gates that apply to a file without any."""
    assert smoke.go("run", FILE, "--set", "gates=[]").code == 0
    base, junit, summary = tmp_path / "base", tmp_path / "j.xml", tmp_path / "s.md"
    assert smoke.go("baseline", "accept", smoke.latest, base).code == 0
    words = ("gate", smoke.latest, "--baseline", base, "--junit", junit, "--summary", summary)
    outcome = smoke.go("--json", *words)
    verdicts = {g["gate"]: g["verdict"] for g in outcome.json["gates"]}
    assert outcome.code == 0, outcome
    assert set(verdicts.values()) <= {"PASS", "INCONCLUSIVE"}
    assert list(verdicts.values()).count("PASS") >= 3  # accuracy, bytes, MACs
    assert len(verdicts) >= 5
    assert junit.read_text().startswith("<?xml")
    assert "PASS" in summary.read_text()


def test_report_writes_the_pages_again(smoke: Smoke) -> None:
    page = smoke.latest / "report.html"
    page.unlink()
    outcome = smoke.go("report", smoke.latest)
    assert outcome.code == 0
    assert "teacher" in outcome.out
    assert page.is_file()


CHILD = """
import json, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "torch_pruning", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
sys.path.insert(0, sys.argv[1])
from tests.helpers import compressor
for words in json.loads(sys.argv[2]):
    got = compressor(*words)
    print(json.dumps([words[0], got.code, (got.out + got.err)[-500:]]))
"""


def test_commands_that_need_no_torch_work_without_it(smoke: Smoke, tmp_path: Path) -> None:
    run = str(smoke.latest)
    model = f"{run}/models/fp32.onnx"
    shape = (32, 1, 32, 32)
    np.savez(tmp_path / "c.npz", image=np.random.default_rng(0).random(shape, dtype=np.float32))
    commands = [
        ["plan", str(FILE)],
        ["baseline", "accept", run, str(tmp_path / "base")],
        ["gate", run, "--baseline", str(tmp_path / "base")],
        ["report", run],
        ["bench", model, "--rounds", "3"],
        [
            "quantize",
            model,
            "--calibration",
            str(tmp_path / "c.npz"),
            "-o",
            str(tmp_path / "q"),
            "--budget",
            "2s",
        ],
        ["verify", f"{run}/bundle"],
        ["doctor"],
        ["cache", "verify"],
        ["run", str(FILE)],  # everything is cached
        ["run", str(FILE), "--set", "seed=1"],  # and here it is not
    ]
    words = [sys.executable, "-c", CHILD, str(ROOT), json.dumps(commands)]
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # its own machine lock
    done = subprocess.run(words, capture_output=True, text=True, cwd=smoke.folder, env=env)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(commands)
    assert [row for row in rows[:-1] if row[1] != 0] == []
    name, code, text = rows[-1]
    assert (name, code) == ("run", 6)
    assert 'needs torch; `pip install "compressor[train]"`' in text


# -- CIFAR-10 -----------------------------------------------------------------------------------


def write_cifar(folder: Path, each: int = 60) -> Path:
    """Random images with a coloured stripe per class, in the files of CIFAR's binary version."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        labels = np.arange(each) % 10
        images = rng.integers(0, 100, (each, 3, 32, 32), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label % 3, 3 * label : 3 * label + 3] += 150
        rows = np.concatenate([labels[:, None].astype(np.uint8), images.reshape(each, -1)], axis=1)
        (folder / name).write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{k}" for k in range(10)) + "\n")
    return folder


SMALLER = {
    "stages.data.with.calibration": "64",
    "stages.teacher.with.model": "{name: resnet, depth: 8, width: 16}",
    "stages.student.with.model": "{name: resnet, depth: 8, width: 8}",
    "stages.teacher.with.epochs": "2",
    "stages.student.with.epochs": "2",
    "stages.pruned.with.finetune.epochs": "1",
    "stages.int8.with.calibration": "64",
    "stages.bench.with": "{rounds: 10, min_cell_ms: 0, warmup_ms: 0, memory: 0}",
    "stages.bundle.with.max_drop": "100",
}


@pytest.mark.slow
def test_the_cifar_pipeline_runs_on_files_of_cifars_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "data" / "cifar-10-batches-bin")
    changes = {**SMALLER, "stages.data.with.root": "data", "gates": "[]"}
    words = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    outcome = compressor("run", ROOT / "pipelines" / "cifar10.yaml", *words)
    assert outcome.code == 0, outcome
    found = results.load(tmp_path / "runs" / "cifar10" / "latest")
    data = found.stage("data")
    assert data is not None
    assert (data.metrics["test"].value, data.metrics["classes"].value) == (60, 10)
    assert compressor("verify", "runs/cifar10/latest/bundle").code == 0


@pytest.mark.slow
def test_the_starter_project_runs_as_it_is(tmp_path: Path) -> None:
    """In a process of its own: it imports the user's modules from the working folder."""
    command = [sys.executable, "-m", "compressor.cli"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([*command, "init", "mine"], cwd=tmp_path, check=True, env=env)
    project = tmp_path / "mine"
    done = subprocess.run(
        [*command, "run", "pipeline.yaml"], cwd=project, env=env, capture_output=True, text=True
    )
    assert done.returncode in (0, 3), done.stderr  # its gates may fail; its stages may not
    assert "Traceback" not in done.stderr
    verify = [*command, "verify", "runs/mine/latest/bundle"]
    assert subprocess.run(verify, cwd=project, env=env, capture_output=True).returncode == 0
