"""What a user gets wrong: one screen that says where, what and what would work; nothing left."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from compressor.core import environment
from tests.helpers import Outcome, compressor, litter, tree, write_arrays
from tests.runtime.nets import convnet, relu

STAGES = """\
name: bad
stages:
  data: {uses: data, with: {dataset: arrays, root: data.npz, calibration: 64}}
  teacher: {uses: train, with: {model: {name: mlp, hidden: [8]}, epochs: 1, batch_size: 32}}
"""
NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, kind, outputs=3):
        super().__init__()
        self.kind, self.head = kind, nn.Linear(64, outputs)

    def forward(self, x):
        if self.kind == "flat":
            return self.head(x.reshape(1, -1)[:, :64])
        x = x.flatten(1)
        return self.head(x - x.mean(0, keepdim=True) if self.kind == "mean" else x)

def flat(): return Net("flat")
def mean(): return Net("mean")
def five(): return Net("plain", 5)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with good data; each test spoils one thing."""
    monkeypatch.chdir(tmp_path)
    write_arrays(tmp_path / "data.npz", n=120)
    return tmp_path


def run(here: Path, old: str = "", new: str = "", *words: object, more: str = "") -> Outcome:
    """Run the pipeline with ``old`` replaced by ``new``."""
    assert old in STAGES
    (here / "p.yaml").write_text(STAGES.replace(old, new) + more)
    return compressor("run", "p.yaml", *words)


def refused(outcome: Outcome, code: int, *words: str, lines: int = 6) -> None:
    """The exit code, the words, one screen, no traceback, nothing on stdout."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    error = outcome.err[outcome.err.rindex("error: ") :] if "error: " in outcome.err else ""
    for word in words:
        assert word in error, outcome.err
    assert "Traceback" not in outcome.err
    assert len(error.splitlines()) <= lines
    assert len(error) < 1000


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("epochs", "epocks", ("p.yaml:4: stages.teacher.with.epocks", "did you mean 'epochs'?")),
        ("epochs: 1", 'epochs: "1"', ("p.yaml:4: stages.teacher.with.epochs", 'got "1"', "number")),
        ("hidden: [8]", "hidden: [0]", ("mlp.hidden.0: got 0; needs at least 1",)),
        ("hidden: [8]", "hidden: x", ('mlp.hidden: got "x"; needs a list',)),
        ("calibration: 64", "options: {max_gib: x}", ('options.max_gib: got "x"; needs a number',)),
        ("name: mlp", "name: mpl", ("p.yaml:4", "'mpl'", "did you mean 'mlp'?")),
        ("arrays", "arays", ("p.yaml:3", "'arays'", "did you mean 'arrays'?")),
        ("uses: train", "uses: trian", ("p.yaml:4", "'trian'", "did you mean 'train'?")),
        ("data.npz", "none.npz", ("p.yaml:3: stages.data.with", "none.npz", "not there")),
        ("hidden: [8]", "weights: w.safetensors", ("p.yaml:4: stages.teacher", "w.safetensors")),
        ("hidden: [8]", "weights: w.pt", ("w.pt", "pickle", "save_file")),
    ],
)
def test_a_wrong_word_is_found_before_anything_runs(here, old, new, words):
    before = tree(here)
    refused(run(here, old, new), 2, *words)
    assert tree(here) - before <= {"p.yaml", ".compressor/externals.json"}  # a memo of hashes


def test_everything_wrong_with_a_file_is_said_at_once(here):
    more = (
        "  fp32: {uses: export, in: {model: tacher}}\ngates:\n  - {metric: fp32.accuracy, mni: 3}\n"
    )
    outcome = run(here, "epochs", "epocks", more=more)
    refused(outcome, 2, "3 problems", "p.yaml:4", "tacher", "'min'")


def test_a_stage_that_is_wrong_itself_is_not_reported_as_missing(here):
    outcome = run(here, "epochs", "epocks", more="  fp32: {uses: export, in: {model: teacher}}\n")
    refused(outcome, 2, "epocks", lines=1)


def test_a_missing_pipeline_file(here):
    refused(compressor("run", "none.yaml"), 2, "none.yaml: no such file")


# -- data ---------------------------------------------------------------------------------------


def spoil(here: Path, **changes: np.ndarray) -> None:
    write_arrays(here / "data.npz", n=120, **changes)


def test_an_empty_class(here):
    labels = np.arange(120) % 3
    spoil(here, y=np.where(labels == 1, 2, labels))
    refused(run(here), 2, "data: dataset data: class '1'", "no samples", "take it out")


def test_a_class_count_that_does_not_match_the_names(here):
    spoil(here, classes=np.array(["a", "b"]))
    refused(run(here), 2, "40 labels are outside 0..1", "2 classes", "sample 2")


def test_a_class_count_that_does_not_match_the_network(here):
    (here / "five_nets.py").write_text(NETS)
    outcome = run(here, "{name: mlp, hidden: [8]}", '"five_nets:five"')
    refused(outcome, 2, "teacher", "5 outputs", "3 classes", "num_classes")


@pytest.mark.parametrize(
    ("net", "words"),
    [("flat", ("(1, 3), not (3, 3)", "flatten(x, 1)")), ("mean", ("other samples of its batch",))],
)
def test_a_model_that_ignores_the_batch_dimension(here, net, words):
    (here / "batch_nets.py").write_text(NETS)
    refused(run(here, "{name: mlp, hidden: [8]}", f'"batch_nets:{net}"'), 2, "teacher", *words)
    assert litter(here) == []


def test_nan_in_data(here):
    images = np.load(here / "data.npz")["x"].astype(np.float32)
    images[7, 0, 1, 2] = np.nan
    spoil(here, x=images)
    refused(run(here), 2, "input x", "NaN", "sample 7 at [0, 1, 2]", "repair")


def test_too_few_calibration_samples(here):
    refused(run(here, "calibration: 64", "calibration: 5000"), 2, "5000", "give 1 to ")


def test_images_of_unequal_size_and_an_empty_class_folder(here):
    image = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (here / "img" / name).mkdir(parents=True)
        for i in range(4):
            wide = 9 if (name, i) == ("b", 3) else 8
            image.new("L", (wide, 8)).save(here / "img" / name / f"{i}.png")
    old, new = "dataset: arrays, root: data.npz", "dataset: image_folder, root: img"
    refused(run(here, old, new), 2, "a/0.png is 8 x 8", "b/3.png is 8 x 9", "size: [h, w]")
    for file in (here / "img" / "b").iterdir():
        file.unlink()
    refused(run(here, old, new), 2, "class 'b'", "img/b", "remove the folder")
    assert litter(here) == []


# -- files for the commands without a pipeline ----------------------------------------------------


@pytest.fixture
def model(here: Path) -> Path:
    return convnet(here / "model.onnx")


def calibration(here: Path, n: int = 40, name: str = "x", size: int = 8, fill: float = 0.5) -> Path:
    np.savez(here / "cal.npz", **{name: np.full((n, 1, size, 8), fill, np.float32)})
    return here / "cal.npz"


@pytest.mark.parametrize(
    ("opset", "ir", "words"),
    [(99, 10, ("opset 99", "up to ")), (18, 99, ("IR version 99", "up to "))],
)
def test_an_onnx_of_the_future_cannot_be_benched(here, opset, ir, words):
    relu(here / "f.onnx", opset=opset, ir=ir)
    refused(compressor("bench", "f.onnx"), 2, "f.onnx", *words)


@pytest.mark.parametrize("opset", [7, 99])
def test_an_onnx_with_an_unsupported_opset_cannot_be_quantized(here, opset):
    relu(here / "f.onnx", opset=opset)
    outcome = compressor("quantize", "f.onnx", "--calibration", calibration(here), "-o", "q.onnx")
    refused(outcome, 2, f"opset {opset}", "supported are 11 to ")
    assert not (here / "q.onnx").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0}, ("0 samples", "at least 1")),
        ({"name": "z"}, ("inputs are x", "got z")),
        ({"size": 9}, ("expected shape [n, 1, 8, 8]", "got [n, 1, 9, 8]")),
        ({"fill": np.nan}, ("x[0]", "NaN")),
        ({"n": 40, "name": "two"}, ("inputs are x", "got two")),
    ],
)
def test_calibration_samples_that_do_not_fit(here, model, changes, words):
    given = calibration(here, **changes)
    outcome = compressor("quantize", model, "--calibration", given, "-o", "q.onnx")
    refused(outcome, 2, *words)
    assert not (here / "q.onnx").exists()
    assert litter(here) == []


def test_files_that_are_not_what_they_should_be(here, model):
    (here / "noise.onnx").write_bytes(b"noise" * 50)
    (here / "noise.npz").write_bytes(b"noise" * 50)
    refused(compressor("bench", "noise.onnx"), 5, "noise.onnx: not an ONNX file")
    refused(compressor("bench", "none.onnx"), 2, "none.onnx: no such file")
    for name, word in (("noise", "not a readable .npz"), ("none", "no such file")):
        given = ("--calibration", f"{name}.npz", "-o", "q.onnx")
        refused(compressor("quantize", model, *given), 2, f"{name}.npz: {word}")


def test_a_file_with_a_fixed_batch_cannot_be_benched_at_another(here):
    convnet(here / "one.onnx", batch=1)
    refused(compressor("bench", "one.onnx", "--batch", 4), 2, "fixed at batch 1", "asked for 4")


def test_an_existing_output_is_not_overwritten(here, model):
    (here / "q.onnx").write_text("precious")
    outcome = compressor("quantize", model, "--calibration", calibration(here), "-o", "q.onnx")
    refused(outcome, 2, "q.onnx: exists", "--force")
    assert (here / "q.onnx").read_text() == "precious"


# -- machine --------------------------------------------------------------------------------------


def test_a_device_that_is_not_there(here):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("it is there")
    refused(run(here, "", "", "--device", "cuda"), 6, "--device cuda", "use --device cpu")
    assert litter(here) == []


BENCH = """\
  fp32: {uses: export}
  bench: {uses: bench, in: {baseline: fp32, candidates: [fp32]}, with: {provider: cuda}}
"""


def test_a_provider_that_is_not_there_is_said_before_hours_of_training(here):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is there")
    outcome = run(here, more=BENCH)
    refused(outcome, 6, "p.yaml:6: stages.bench.with.provider: 'cuda'", "compressor[gpu]")
    assert "ran in" not in outcome.err
    assert litter(here) == []
    planned = compressor("plan", "p.yaml")
    assert (planned.code, planned.err) == (6, "")
    assert "cannot run here: p.yaml:6: stages.bench.with.provider" in planned.out


def test_a_provider_that_is_not_there(here, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is there")
    refused(compressor("bench", model, "--provider", "cuda"), 6, "'cuda'", "compressor[gpu]")


def test_two_onnxruntime_packages_are_refused_before_anything_runs(here, model, monkeypatch):
    real = environment.version
    twins = ("onnxruntime", "onnxruntime-gpu")
    monkeypatch.setattr(environment, "version", lambda d: "1.31" if d in twins else real(d))
    words = ("onnxruntime and onnxruntime-gpu are both installed", "pip uninstall -y onnxruntime ")
    refused(compressor("bench", model), 6, *words)
    refused(run(here, more="  fp32: {uses: export}\n"), 6, *words)
    assert "data" not in {p.name for p in (here / ".compressor").glob("keys/*")}
    outcome = compressor("doctor")
    assert (outcome.code, words[0] in outcome.out) == (6, True)


@contextlib.contextmanager
def small_disk(folder: Path, kib: int, *options: str) -> Iterator[Path]:
    """A mounted file system of that size, where this process may mount one."""
    folder.mkdir()
    what = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kib}k", *options]), "tmpfs", folder]
    try:
        subprocess.run(what, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # memory maps may still live


@pytest.mark.parametrize("kib", [4, 12, 40, 80])
def test_a_full_disk_leaves_nothing_half_written(here, kib):
    with small_disk(here / "disk", kib) as disk:
        outcome = run(here, "", "", "--store", disk / "store")
        refused(outcome, 7, str(disk), "the disk is full", "cache gc")
        assert litter(disk) == []
        assert not list((disk / "store").glob("tmp/*"))


def test_a_full_disk_for_the_run_folder_leaves_no_run(here):
    assert run(here).code == 0
    with small_disk(here / "disk", 8) as disk:
        refused(run(here, "", "", "--runs", disk / "runs"), 7, str(disk), "the disk is full")
        assert tree(disk) == set()


def test_a_read_only_folder(here, model):
    with small_disk(here / "disk", 100, "ro") as disk:
        words = (str(disk), "Read-only file system", "--store")
        refused(run(here, "", "", "--store", disk / "store"), 7, *words)
        refused(run(here, "", "", "--runs", disk / "runs"), 7, *words)
        assert not (here / ".compressor" / "keys").exists()  # before anything ran
        refused(compressor("init", disk / "new"), 7, *words)
        given = ("--calibration", calibration(here), "-o", disk / "q.onnx")
        refused(compressor("quantize", model, *given), 7, f"{disk}/q.onnx", words[1])


def test_a_folder_that_a_program_may_not_write(here, monkeypatch):
    """As above where nothing can be mounted: the system refuses every new file."""
    real = os.open

    def refuse(path, flags, *rest, **named):
        if flags & os.O_CREAT or flags & getattr(os, "O_TMPFILE", 0) == os.O_TMPFILE:
            raise OSError(30, os.strerror(30), path)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    outcome = run(here)
    monkeypatch.undo()
    refused(outcome, 7, str(here), "Read-only file system", "COMPRESSOR_STORE")
    assert not (here / ".compressor").exists()


@pytest.mark.parametrize("words", [("--store", "data.npz/s"), ("--runs", "data.npz/r")])
def test_a_file_where_a_folder_should_be(here, words):
    refused(run(here, "", "", *words), 7, words[1], "data.npz is a file")


def test_no_memory(here, monkeypatch):
    from compressor.data import prepare

    def huge(*args: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(prepare, "prepare", huge)
    refused(run(here), 7, "data: out of memory")
    assert litter(here) == []


def test_a_bug_of_ours_says_where_and_how_to_see_more(here, monkeypatch):
    from compressor.data import prepare

    def bug(*args: object, **named: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(prepare, "prepare", bug)
    refused(run(here), 1, "ZeroDivisionError: oops", "--debug")
    assert "Traceback" in run(here, "", "", "--debug").err
    assert litter(here) == []


def test_a_gate_on_a_metric_that_does_not_exist_leaves_no_run(here):
    outcome = run(here, more="gates:\n  - {metric: teacher.acuracy, min: 3}\n")
    refused(outcome, 2, "gates.0.metric", "did you mean 'teacher.accuracy'?")
    assert litter(here) == []
    assert re.search(r"^teacher +ran", outcome.err, re.MULTILINE)
