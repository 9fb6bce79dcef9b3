import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.hashing import digest_path
from compressor.runtime import verify
from compressor.stages.bundle import BUNDLE, BundleConfig
from tests.runtime import bundles

FAST = {"baseline": 4.0, "fp32": 1.0, "int8": 0.5}
SLOW = {"baseline": 4.0, "fp32": 1.0, "int8": 1.3}
ANY = BundleConfig(max_drop=50.0)


def make(folder, times=FAST, config=ANY, **options):
    ctx = bundles.context(folder)
    return BUNDLE.run(config, bundles.inputs(folder, times, **options), ctx), ctx


def test_the_faster_int8_file_ships_with_its_proof(tmp_path):
    result, ctx = make(tmp_path)
    folder = result.outputs["bundle"]
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert names == {
        "model.onnx", "variants/fp32.onnx", "labels.json", "preprocessing.json", "golden.npz",
        "manifest.json", "README.md", "verify.py",
    }  # fmt: skip
    int8 = tmp_path / "models" / "int8.onnx"
    assert result.outputs["model"].read_bytes() == int8.read_bytes()
    assert (folder / "model.onnx").read_bytes() == int8.read_bytes()
    assert result.metrics["speedup"].value == pytest.approx(8.0, rel=0.02)
    assert len(result.metrics["speedup"].samples) == 12
    assert result.metrics["bytes"].value == int8.stat().st_size
    assert result.metrics["within"].value == 1.0
    assert result.metrics["unstable"].value == 0.0
    assert set(result.metrics) == {
        "speedup", "bytes", "bytes_ratio", "drop_val", "unstable", "within",
    }  # fmt: skip
    assert ctx.progress.lines[-1].startswith("ships int8: 8.0")
    report = verify.verify(folder, latency=False)
    assert report.problems == []
    assert report.golden["same_top1"] == report.golden["samples"] >= 16


def test_a_slower_int8_file_does_not_ship_and_is_said_to_be_slower(tmp_path):
    result, ctx = make(tmp_path, SLOW)
    manifest = json.loads((result.outputs["bundle"] / "manifest.json").read_text())
    assert manifest["model"] == {"name": "fp32", "file": "model.onnx", "precision": "fp32"}
    assert any("int8 is 0.77x here" in line and "shipping fp32" in line
               for line in ctx.progress.lines)  # fmt: skip
    assert "int8 is 0.77x here" in (result.outputs["bundle"] / "README.md").read_text()


def test_unstable_timings_ship_fp32_and_say_so(tmp_path):
    result, _ = make(tmp_path, unstable=True)
    assert result.metrics["unstable"].value == 1.0
    manifest = json.loads((result.outputs["bundle"] / "manifest.json").read_text())
    assert manifest["model"]["name"] == "fp32"
    assert "unstable" in (result.outputs["bundle"] / "README.md").read_text()


def test_nothing_within_ships_fp32_with_the_flag_down(tmp_path):
    result, ctx = make(tmp_path, config=BundleConfig(max_drop=1.0), wrong=40)
    assert result.metrics["within"].value == 0.0
    assert result.metrics["drop_val"].value > 10
    assert (tmp_path / "models/fp32.onnx").read_bytes() == result.outputs["model"].read_bytes()
    assert "nothing is within max_drop" in ctx.progress.lines[-1]
    assert "No candidate was within" in (result.outputs["bundle"] / "README.md").read_text()


@pytest.mark.parametrize(("needed", "said"), [(0.0, 0), (1e6, 1)])
def test_golden_samples_without_a_clear_margin_are_said(tmp_path, monkeypatch, needed, said):
    monkeypatch.setattr("compressor.runtime.golden._CLEAR", needed)
    _, ctx = make(tmp_path)
    lines = [line for line in ctx.progress.lines if line.startswith("golden samples: ")]
    assert len(lines) == said


def test_the_same_timings_give_the_same_bytes(tmp_path):
    first, _ = make(tmp_path / "a")
    second, _ = make(tmp_path / "b")
    assert digest_path(first.outputs["bundle"]) == digest_path(second.outputs["bundle"])


def test_preprocessing_is_enough_to_feed_the_model(tmp_path):
    import onnxruntime

    folder = make(tmp_path)[0].outputs["bundle"]
    spec = json.loads((folder / "preprocessing.json").read_text())["inputs"]
    assert spec["x"] == {
        "shape": ["batch", 1, 8, 8], "layout": "NCHW", "dtype": "float32", "range": [0, 1],
        "from": "uint8", "divide_by": 255,
    }  # fmt: skip
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        raw, expected = arrays["input.x"], arrays["output.logits"]
    row = spec["x"]
    feed = {"x": (raw / row["divide_by"]).astype(row["dtype"])}
    outputs = onnxruntime.InferenceSession(folder / "model.onnx").run(None, feed)[0]
    assert np.array_equal(outputs.argmax(1), expected.argmax(1))


def test_the_program_on_the_card_runs(tmp_path):
    folder = make(tmp_path)[0].outputs["bundle"]
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    command = [sys.executable, "-c", code + "print(outputs.shape)"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.stdout == "(1, 3)\n", done.stderr


def test_the_manifest_claims_what_was_measured(tmp_path):
    manifest = json.loads((make(tmp_path)[0].outputs["bundle"] / "manifest.json").read_text())
    claims = manifest["claims"]
    assert claims["p50_ms"] == pytest.approx(0.5, rel=0.02)
    assert claims["speedup"]["baseline"]["low"] <= claims["speedup"]["baseline"]["value"]
    assert claims["teacher"] == {"name": "teacher", "score_val": 100.0}
    assert claims["drop_val"] == pytest.approx(100.0 - claims["score_val"])
    assert claims["drop_val_bound"] >= claims["drop_val"]
    assert claims["size"]["macs"] == 8 * 64 * 9 + 24
    assert manifest["variants"]["fp32"]["within"] is True
    assert manifest["target"]["provider"] == "cpu"
    assert "verify.py" in manifest["files"]
    assert "manifest.json" not in manifest["files"]


def test_names_from_users_are_no_markup_on_the_card(tmp_path):
    from compressor.runtime import readme

    given = bundles.inputs(tmp_path, FAST)
    result = BUNDLE.run(ANY, given, bundles.context(tmp_path))
    manifest = json.loads((result.outputs["bundle"] / "manifest.json").read_text())
    manifest["reasons"] = ["<script>|x\n# big"]
    text = readme.text(manifest)
    assert "<script>" not in text.replace("\\<", "")
    assert "\n# big" not in text
    labels = json.loads((result.outputs["bundle"] / "labels.json").read_text())
    assert labels == list(bundles.CLASSES)


def test_matrix_names_become_file_names(tmp_path):
    from dataclasses import replace

    given = bundles.inputs(tmp_path, FAST)
    record = json.loads(given["timings"].path.read_text())
    cell = record["cells"][0]
    for table in (cell["models"], cell["speedup"], record["size"]):
        table["fp32[seed=0,x=../y]"] = table.pop("fp32")
    given["timings"].path.write_text(json.dumps(record))
    fp32, int8 = given["candidates"]
    given["candidates"] = (replace(fp32, name="fp32[seed=0,x=../y]"), int8)
    folder = BUNDLE.run(ANY, given, bundles.context(tmp_path)).outputs["bundle"]
    assert [p.name for p in (folder / "variants").iterdir()] == ["fp32_seed_0_x_.._y.onnx"]
    assert verify.verify(folder, latency=False).ok


def test_a_candidate_that_was_not_measured_is_named(tmp_path):
    given = bundles.inputs(tmp_path, FAST)
    record = json.loads(given["timings"].path.read_text())
    del record["cells"][0]["models"]["int8"]
    given["timings"].path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="int8 is not in the timings"):
        BUNDLE.run(ANY, given, bundles.context(tmp_path))


def test_timings_of_another_file_are_refused(tmp_path):
    given = bundles.inputs(tmp_path, FAST)
    shutil.copy(given["candidates"][0].path, given["candidates"][1].path)
    fresh = bundles.artifact("int8", "onnx", given["candidates"][1].path)
    given["candidates"] = (given["candidates"][0], fresh)
    with pytest.raises(IntegrityError, match="of another int8"):
        BUNDLE.run(ANY, given, bundles.context(tmp_path))


def test_a_file_without_a_precision_is_refused(tmp_path):
    from tests.runtime import nets

    given = bundles.inputs(tmp_path, FAST)
    record = json.loads(given["timings"].path.read_text())
    path = nets.convnet(given["candidates"][0].path, width=8)
    fresh = bundles.artifact("fp32", "onnx", path)
    record["cells"][0]["models"]["fp32"]["digest"] = fresh.digest
    given["timings"].path.write_text(json.dumps(record))
    given["candidates"] = (fresh, given["candidates"][1])
    with pytest.raises(ConfigError, match=r"fp32 has no compressor\.precision"):
        BUNDLE.run(ANY, given, bundles.context(tmp_path))


def test_damaged_timings_are_refused(tmp_path):
    given = bundles.inputs(tmp_path, FAST)
    given["timings"].path.write_text("{}")
    with pytest.raises(IntegrityError, match="not a timings file"):
        BUNDLE.run(ANY, given, bundles.context(tmp_path))
