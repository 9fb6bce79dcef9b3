import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compressor.core import environment
from compressor.runtime import predict, verify
from compressor.stages.bundle import BUNDLE, BundleConfig
from tests.runtime import bundles, nets


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    given = bundles.inputs(folder, {"baseline": 4.0, "fp32": 1.0, "int8": 0.5})
    return BUNDLE.run(BundleConfig(max_drop=50), given, bundles.context(folder)).outputs["bundle"]


@pytest.fixture
def bundle(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "bundle"))


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Timing is informational; the tests need no precision."""
    for name, value in {"_WARM_MS": 5.0, "_TIMED_MS": 10.0, "_CELL_MS": 1.0, "_ROUNDS": 6}.items():
        monkeypatch.setattr(verify, name, value)


def problems(folder):
    report = verify.verify(folder, latency=False)
    assert verify.main([str(folder), "--json", os.devnull]) == (0 if report.ok else 5)
    return "\n".join(report.problems)


def edit(bundle, change):
    """Change the manifest; keep the rest."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def rehash(bundle, name):
    """What an attacker does who may edit the manifest too."""
    data = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    edit(bundle, lambda m: m["files"].update({name: {"sha256": data}}))


def test_an_untouched_bundle_is_ok(bundle):
    assert problems(bundle) == ""


def test_any_flipped_byte_in_any_file_is_found(bundle):
    rng = np.random.default_rng(0)
    files = [p for p in bundle.rglob("*") if p.is_file() and p.name != "manifest.json"]
    for path in files:
        data = path.read_bytes()
        for at in {0, len(data) - 1, *rng.integers(0, len(data), 3).tolist()}:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            report = verify.verify(bundle, latency=False)
            assert report.problems == [
                f"{path.relative_to(bundle).as_posix()}: its sha256 is not the manifest's"
            ]
        path.write_bytes(data)
    assert verify.verify(bundle, latency=False).ok


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "verify.py", "variants/fp32.onnx"])
def test_truncated_and_missing_files_are_found(bundle, name):
    path = bundle / name
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{name}: its sha256" in problems(bundle)
    path.unlink()
    assert f"{name}: missing" in problems(bundle)


@pytest.mark.parametrize("name", ["extra.txt", "variants/more.onnx", ".hidden", "new/file"])
def test_extra_files_are_found(bundle, name):
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).write_bytes(b"x")
    assert f"{name}: not in the manifest" in problems(bundle)


def test_links_are_refused_even_to_the_same_bytes(bundle, tmp_path):
    outside = tmp_path / "outside.onnx"
    shutil.move(bundle / "model.onnx", outside)
    (bundle / "model.onnx").symlink_to(outside)
    assert "model.onnx: a link or no plain file" in problems(bundle)


def test_a_linked_folder_is_not_walked(bundle, tmp_path):
    shutil.move(bundle / "variants", tmp_path / "variants")
    (bundle / "variants").symlink_to(tmp_path / "variants")
    found = problems(bundle)
    assert "variants: a link" in found
    assert "variants/fp32.onnx: missing" in found


def test_a_pipe_is_refused_and_not_read(bundle):
    os.mkfifo(bundle / "pipe")
    assert "pipe: a link or no plain file" in problems(bundle)


def test_a_linked_manifest_is_refused(bundle, tmp_path):
    shutil.move(bundle / "manifest.json", tmp_path / "m.json")
    (bundle / "manifest.json").symlink_to(tmp_path / "m.json")
    assert "no manifest" in problems(bundle)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../secret", "variants/../model.onnx", "C:\\x", "a\\b", "",
     ".", "./model.onnx", "variants//fp32.onnx", "a\0b"],
)  # fmt: skip
def test_manifest_paths_cannot_leave_the_bundle(bundle, tmp_path, name):
    (tmp_path / "secret").write_bytes(b"s")
    row = {"sha256": hashlib.sha256(b"s").hexdigest()}
    edit(bundle, lambda m: m["files"].update({name: row}))
    assert "leaves the bundle" in problems(bundle)


def test_the_model_and_golden_paths_must_be_listed_files(bundle, tmp_path):
    nets.convnet(tmp_path / "evil.onnx")
    edit(bundle, lambda m: m["model"].update(file="../evil.onnx"))
    assert "'../evil.onnx' is used and not listed" in problems(bundle)
    edit(bundle, lambda m: (m["model"].update(file="model.onnx"),
                            m["golden"].update(file="/etc/passwd")))  # fmt: skip
    assert "'/etc/passwd' is used and not listed" in problems(bundle)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"schema": 2}', '{"schema": 1}', '{"schema": 1, "files": []}',
     "[" * 100_000, '{"schema": 1, "files": {}, "golden": 3}'],
)  # fmt: skip
def test_a_malformed_manifest_is_refused_without_a_traceback(bundle, text):
    (bundle / "manifest.json").write_text(text)
    assert problems(bundle) != ""


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("target", "threads"), "1"), (("target", "threads"), True), (("target", "batch"), 0),
        (("target", "batch"), 10**12), (("golden", "tolerance"), None), (("task",), 3),
        (("variants",), []), (("claims", "p50_ms"), []), (("model", "precision"), None),
    ],
)  # fmt: skip
def test_fields_of_a_wrong_type_are_refused(bundle, where, value):
    def change(manifest):
        inner = manifest
        for key in where[:-1]:
            inner = inner[key]
        inner[where[-1]] = value

    edit(bundle, change)
    report = verify.verify(bundle, choose=True)
    assert not report.ok
    assert "manifest" in report.problems[0]


def golden(bundle, change):
    with np.load(bundle / "golden.npz", allow_pickle=False) as arrays:
        found = {n: arrays[n] for n in arrays.files}
    change(found)
    (bundle / "golden.npz").write_bytes(predict.npz_bytes(found))
    rehash(bundle, "golden.npz")


def test_another_prediction_is_found_with_all_hashes_right(bundle):
    def swap(arrays):
        arrays["output.logits"][0] = -arrays["output.logits"][0]

    golden(bundle, swap)
    assert "1 of 16 golden predictions differ" in problems(bundle)


def test_a_swapped_model_is_found_with_all_hashes_right(bundle):
    nets.convnet(bundle / "model.onnx", width=8, seed=9)
    rehash(bundle, "model.onnx")
    assert "golden" in problems(bundle)


def shift(arrays):
    """Larger than the noise, the same predictions."""
    top = arrays["output.logits"].argmax(1)
    arrays["output.logits"][np.arange(len(top)), top] += 100.0


def test_values_decide_on_the_recorded_instruction_set(bundle):
    golden(bundle, shift)
    assert "golden outputs differ by 100" in problems(bundle)


def test_elsewhere_int8_is_judged_by_its_predictions(bundle):
    golden(bundle, shift)
    edit(bundle, lambda m: m["target"].update(instruction_set="other"))
    report = verify.verify(bundle, latency=False)
    assert report.ok
    assert "all predictions agree" in report.notes[0]
    edit(bundle, lambda m: m["model"].update(precision="fp32"))
    assert not verify.verify(bundle, latency=False).ok


def test_pickles_and_bombs_are_refused(bundle):
    evil = np.array([{"a": 1}], dtype=object)
    np.savez(bundle / "golden.npz", **{"input.x": evil, "output.logits": evil})
    rehash(bundle, "golden.npz")
    assert "not golden arrays" in problems(bundle)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update({"input.x": np.float32(1.0)}),
        lambda a: a.update({"input.x": np.zeros((16, 2), np.float32)}),
        lambda a: a.update({"output.logits": np.full(a["output.logits"].shape, "no")}),
        lambda a: a.update({n: v[:0] for n, v in a.items()}),
        lambda a: a["output.logits"].fill(np.nan),
    ],
)
def test_golden_arrays_that_do_not_fit_are_refused_without_a_traceback(bundle, change):
    golden(bundle, change)
    assert problems(bundle) != ""


def test_a_tolerance_that_is_no_number_proves_nothing(bundle):
    edit(bundle, lambda m: m["golden"].update(tolerance=float("nan")))
    assert "not finite" in problems(bundle)


def test_a_close_call_may_flip_and_is_noted(bundle):
    def close(arrays):
        rows = np.sort(arrays["output.logits"][0])
        top = arrays["output.logits"][0].argmax()
        arrays["output.logits"][0, top] = rows[-2] - 1e-3

    golden(bundle, close)
    edit(bundle, lambda m: m["golden"].update(tolerance=1e3))
    report = verify.verify(bundle, latency=False)
    assert report.ok
    assert report.golden["same_top1"] == 15
    assert "close calls" in report.notes[0]


def test_golden_files_that_are_too_large_are_not_read(bundle, monkeypatch):
    monkeypatch.setattr(verify, "_MAX_ARRAYS", 1000)
    assert "too large" in "\n".join(verify.verify(bundle, latency=False).problems)


def test_a_model_is_not_loaded_when_a_hash_is_wrong(bundle, monkeypatch):
    def never(*_):
        raise AssertionError("loaded an unverified model")

    monkeypatch.setattr(verify, "_open", never)
    (bundle / "model.onnx").write_bytes(b"x")
    assert not verify.verify(bundle).ok


def test_latency_is_reported_beside_the_claim(bundle):
    report = verify.verify(bundle)
    assert report.latency["p50_ms"] > 0
    assert report.latency["claimed_ms"] == pytest.approx(0.5, rel=0.02)
    assert "claimed" in verify.text(report)


def test_a_provider_that_is_claimed_and_not_here_is_said(bundle):
    edit(bundle, lambda m: m["target"].update(provider="cuda"))
    assert "cuda is claimed and not here; latencies are the CPU's" in verify.verify(bundle).notes


def test_findings_are_not_written_into_the_bundle_that_they_are_about(bundle, capsys):
    assert verify.main([str(bundle), "--json", str(bundle / "found.json")]) == 2
    assert "write elsewhere" in capsys.readouterr().err
    assert problems(bundle) == ""


def test_choose_times_what_is_accurate_and_names_a_file(bundle, tmp_path, capsys):
    out = tmp_path / "f.json"
    assert verify.main([str(bundle), "--choose", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["variants"]) == {"model.onnx", "variants/fp32.onnx"}
    assert found["fastest"] in found["variants"]
    assert found["variants"]["model.onnx"]["speedup"] == 1.0
    assert "fastest" in capsys.readouterr().out
    edit(bundle, lambda m: m["variants"]["fp32"].update(within=False))
    assert verify.main([str(bundle), "--choose", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["variants"]) == {"model.onnx"}
    assert "left out" in found["notes"][0]


def test_choose_names_a_variant_only_if_it_is_proven_faster(bundle, monkeypatch):
    times = {"model.onnx": 1.0, "variants/fp32.onnx": 0.5}
    monkeypatch.setattr(verify, "_contenders", lambda *_: dict.fromkeys(times))
    names = []
    real = verify.random.Random

    class Order(real):
        def sample(self, population, k):
            names[:] = super().sample(population, k)
            return list(names)

    monkeypatch.setattr(verify.random, "Random", Order)
    monkeypatch.setattr(verify, "_cell", lambda call, ms: [times[names.pop(0)] if names else 1.0])
    report = verify.Report("b")
    verify._choose(bundle, {}, report)
    assert report.fastest == "variants/fp32.onnx"
    assert report.variants["variants/fp32.onnx"]["speedup"] == pytest.approx(2.0)
    times["variants/fp32.onnx"] = 1.0
    report = verify.Report("b")
    verify._choose(bundle, {}, report)
    assert report.fastest == "model.onnx"


def test_a_folder_without_a_manifest_says_so(tmp_path, capsys):
    assert verify.main([str(tmp_path)]) == 5
    assert "no manifest here" in capsys.readouterr().out


def test_without_onnxruntime_the_exit_code_is_6(monkeypatch, capsys):
    monkeypatch.setattr(verify, "onnxruntime", None)
    assert verify.main([]) == 6
    assert "pip install onnxruntime" in capsys.readouterr().err


def test_the_file_imports_only_the_standard_library_numpy_and_onnxruntime():
    tree = ast.parse(Path(verify.__file__).read_text())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            roots.add(str(node.module).split(".")[0])
    assert roots - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_the_copy_in_the_bundle_runs_where_compressor_is_not_importable(bundle, tmp_path):
    script = tmp_path / "block.py"
    script.write_text(
        "import sys, runpy\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'compressor', 'torch', 'onnx', 'pydantic'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-I", str(script), str(bundle / "verify.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{bundle}: ok" in done.stdout
    (bundle / "labels.json").write_text("[]")
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 5
    assert "REFUSED" in done.stdout
    assert done.stderr == ""


def test_instruction_sets_are_named_as_in_core():
    assert verify.instruction_set() == environment.instruction_set()
