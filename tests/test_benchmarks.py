"""The comparisons run without torch on a file that is already there."""

from __future__ import annotations

import json
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from compressor.core import results
from compressor.core.results import OutputRecord, RunResults, StageRecord
from compressor.core.store import Store
from compressor.core.types import DATASET, ONNX
from compressor.runtime import metadata
from tests.quantization.graphs import zoo
from tests.stages.test_quantize import dataset as noise


@pytest.fixture
def peers(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "benchmarks"))
    names = ("peers_nets", "peers_quantizers", "int8_peers", "int8_trained")
    return SimpleNamespace(**{name: import_module(name) for name in names})


def failing(*_):
    raise ValueError("no such | operator")


@pytest.fixture
def toy(peers, monkeypatch, tmp_path):
    """A folder with one network, and three quantizers of which one fails."""
    room = peers.peers_quantizers
    chosen = {name: room.VARIANTS[name] for name in ("ort_u8s8", "plain")}
    chosen["broken"] = room.Variant("broken", failing)
    chosen["absent"] = room.Variant("absent", failing, lambda: "not installed")
    monkeypatch.setattr(peers.int8_peers, "VARIANTS", chosen)
    (tmp_path / "toy").mkdir()
    onnx.save(zoo(), tmp_path / "toy" / "fp32.onnx")
    quick = ["--rounds", "10", "--cell-ms", "1", "--warmup-ms", "1"]
    ends = ["--work", str(tmp_path), "--results", str(tmp_path / "results"), *quick]
    return tmp_path, lambda *steps: peers.int8_peers.main([*steps, "--networks", "toy", *ends])


def test_quantizes_times_and_reports_and_a_failure_is_a_result(toy):
    folder, run = toy
    run("quantize", "time", "report")
    (table,) = (folder / "results").glob("int8_peers.*.json")
    (row,) = json.loads(table.read_text())["networks"]
    assert set(row["variants"]) == {"ort_u8s8", "plain", "broken"}
    assert row["variants"]["broken"] == {"error": "ValueError: no such | operator"}
    for name in ("ort_u8s8", "plain"):
        found = row["variants"][name]
        assert found["sqnr"] > 20
        assert found["speedup"]["low"] <= found["speedup"]["value"] <= found["speedup"]["high"]
        assert found["versions"]["onnxruntime"]
    assert row["aa"] > 0
    assert row["machine"]["cpu"]
    text = table.with_suffix(".md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| toy"))
    assert line.count("|") == 7
    assert "failed: ValueError: no such / operator" in line
    assert row["date"] in text


def test_what_is_there_is_not_made_again_and_another_file_is_timed_again(toy):
    folder, run = toy
    run("quantize", "time")
    paths = [folder / "toy" / name for name in ("plain.json", "broken.json", "timing.json")]
    before = [path.stat().st_mtime_ns for path in paths]
    run("quantize", "time")
    assert [path.stat().st_mtime_ns for path in paths] == before
    (folder / "toy" / "plain.onnx").write_bytes((folder / "toy" / "fp32.onnx").read_bytes())
    run("time")
    assert paths[2].stat().st_mtime_ns > before[2]
    assert not list((folder / "toy").glob("*.part*"))


def test_trained_networks_of_a_run_are_judged_on_its_test_split(peers, monkeypatch, tmp_path):
    store, run = Store(tmp_path / "store"), tmp_path / "run"
    made = noise(tmp_path / "data")
    kept = store.object(made.digest)
    kept.parent.mkdir(parents=True)
    made.path.rename(kept)
    model = zoo()
    metadata.write_(model, {metadata.PRECISION: "fp32"})
    run.mkdir()
    onnx.save(model, run / "fp32.onnx")
    record = partial(StageRecord, uses="", key="", state="ran", seconds=0.0)
    stages = (
        record("data", outputs={"data": OutputRecord(DATASET, made.digest, 1)}),
        record("plain", outputs={"model": OutputRecord(ONNX, "a" * 64, 1, "fp32.onnx")}),
        record("bundle", outputs={"model": OutputRecord(ONNX, "a" * 64, 1, "fp32.onnx")}),
    )
    results.save(RunResults("noise", "", "", 0, {}, stages), run / "results.json")
    room = peers.peers_quantizers
    chosen = {"plain": room.VARIANTS["plain"], "broken": room.Variant("broken", failing)}
    monkeypatch.setattr(peers.int8_trained, "VARIANTS", chosen)
    ends = ["--store", str(store.root), "--work", str(tmp_path / "w"), "--results", str(tmp_path)]
    peers.int8_trained.main([str(run), *ends])
    (table,) = tmp_path.glob("int8_trained.*.json")
    (row,) = json.loads(table.read_text())["networks"]
    assert row["network"] == "noise-plain-aaaaaaaa"
    assert row["samples"] == 5
    found = row["variants"]["plain"]
    assert found["drop"] <= found["drop_upper"]
    assert 0 <= found["agreement"] <= 100
    assert found["sqnr"] > 15
    assert "no such" in row["variants"]["broken"]["error"]
    assert "| noise-plain-aaaaaaaa | 5 |" in table.with_suffix(".md").read_text()


def test_means_are_geometric_and_over_the_same_networks(peers):
    def row(**speeds):
        return {"variants": {k: {"speedup": {"value": v}} for k, v in speeds.items()}}

    rows = [row(ort_u8s8=2.0, plain=4.0), row(ort_u8s8=0.5, plain=1.0), row(plain=2.0)]
    means = peers.int8_peers.mean_ratios(rows)
    assert means["ort_u8s8"]["over_fp32"] == pytest.approx(1.0)
    assert means["plain"] == pytest.approx({"over_fp32": 2.0, "over_peer": 2.0, "networks": 3})


def test_bicubic_weights_are_those_of_the_cubic_kernel_by_hand(peers):
    twice = peers.peers_nets.bicubic(6, 12)
    # Row 5 lies at 2.25: the kernel with a = -0.75 at distances 1.25, 0.25, 0.75 and 1.75.
    assert twice[5].tolist() == [0, -0.10546875, 0.87890625, 0.26171875, -0.03515625, 0]
    assert twice.sum(axis=1) == pytest.approx(np.ones(12))


def test_images_have_unit_variance_and_the_measured_ones_are_others(peers):
    calibrate, measure = peers.peers_nets.images(32, 32)
    assert (calibrate.shape, measure.shape) == ((32, 3, 32, 32), (64, 3, 32, 32))
    assert np.concatenate([calibrate, measure]).var() == pytest.approx(1.0, rel=1e-4)
    again, _ = peers.peers_nets.images(32, 32)
    assert np.array_equal(again, calibrate)
    assert not {x.tobytes() for x in calibrate} & {x.tobytes() for x in measure}


def test_an_unknown_step_is_named(peers, capsys):
    with pytest.raises(SystemExit):
        peers.int8_peers.main(["tyme"])
    assert "unknown step tyme" in capsys.readouterr().err


def test_a_command_without_measured_placement_is_left_out_with_a_reason(peers, monkeypatch):
    room = peers.peers_quantizers
    monkeypatch.setattr(room, "_command", lambda arguments: "--calibration FILE")
    assert "no --placement" in room.no_placement()
    monkeypatch.setattr(room, "_command", lambda arguments: "--placement [measured|none]")
    assert room.no_placement() == ""
    assert "no_such_package is not installed" in room.no_module("no_such_package")()
