"""The comparisons run without torch on a file that is already there."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import yaml

from compressor.core import results
from compressor.core.results import OutputRecord, RunResults, StageRecord
from compressor.core.store import Store
from compressor.core.types import DATASET, ONNX, TimingProtocol
from compressor.runtime import metadata
from tests.quantization.graphs import zoo
from tests.stages.test_quantize import dataset as noise


@pytest.fixture
def peers(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "benchmarks"))
    names = ("peers_nets", "peers_quantizers", "int8_peers", "int8_trained", "quantize_cost")
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
    assert row["aa"]["low"] <= row["aa"]["value"] <= row["aa"]["high"]
    (means,) = json.loads(table.read_text())["means"]
    assert means["networks"] == ["toy"]
    assert means["variants"]["ort_u8s8"]["over_peer"] == pytest.approx(1.0)
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
    assert json.loads(table.read_text())["summary"] == {
        "plain": {
            "networks": 1, "mean_drop": found["drop"], "worst_upper": found["drop_upper"],
            "least_agreement": found["agreement"], "median_sqnr": found["sqnr"],
            "least_sqnr": found["sqnr"],
        }
    }  # fmt: skip
    assert "| noise-plain-aaaaaaaa | 5 |" in table.with_suffix(".md").read_text()


def timed(network, aa_low=0.98, **speeds):
    """A row of the table: variant to speed-up; intervals are 1 % wide, SQNR is 10 x speed-up."""
    cells = {
        k: {"speedup": {"value": v, "low": v * 0.995, "high": v * 1.005}, "sqnr": 10 * v}
        for k, v in speeds.items()
    }
    return {"network": network, "aa": {"low": aa_low}, "variants": cells}


def test_means_are_geometric_and_over_the_same_networks(peers):
    rows = [timed("a", ort_u8s8=2.0, plain=4.0), timed("b", ort_u8s8=0.5, plain=1.0)]
    means = peers.int8_peers.mean_ratios([*rows, timed("c", plain=2.0)])
    assert means["ort_u8s8"]["over_fp32"] == pytest.approx(1.0)
    plain = means["plain"]
    assert plain == pytest.approx(
        {"over_fp32": 2.0, "over_peer": 2.0, "networks": 3, "slower": 0, "sqnr_over_peer": 5.0}
    )


def test_slower_than_fp32_is_below_its_interval_and_that_of_the_control(peers):
    speeds = {"clearly": 0.9, "as_noisy_as_the_control": 0.985, "not": 1.0}
    rows = [timed(name, plain=speed) for name, speed in speeds.items()]
    assert peers.int8_peers.mean_ratios(rows)["plain"]["slower"] == 1


def test_networks_of_the_table_and_others_have_means_of_their_own(peers):
    room = peers.int8_peers
    rows = [timed("resnet18", plain=2.0), timed("densenet121", plain=3.0), timed("toy", plain=1.0)]
    table, others = room.grouped(rows)
    assert [r["network"] for r in others[0]] == ["densenet121", "toy"]
    assert table[1]["plain"]["over_fp32"] == pytest.approx(2.0)
    assert others[1]["plain"]["over_fp32"] == pytest.approx(3**0.5)


def test_rounds_fit_the_seconds_and_slow_networks_get_the_fewest(peers):
    protocol = TimingProtocol(rounds=30, min_cell_ms=50.0)
    fitting = peers.int8_peers.fitting
    assert fitting([5.0, 5.0], protocol, 60.0) == 30
    # Three cells of 500 + 500 ms a round, with the control's.
    assert fitting([500.0, 500.0], protocol, 60.0) == 20
    assert fitting([500.0, 500.0], protocol, 1.0) == 10


def test_only_the_asked_for_variants_are_quantized(toy):
    folder, run = toy
    run("quantize", "--variants", "plain")
    made = {path.stem for path in (folder / "toy").glob("*.json")}
    assert made == {"plain"}
    with pytest.raises(SystemExit):
        run("quantize", "--variants", "plane")


def test_data_and_control_come_from_the_cache_of_the_recipe(request):
    root = request.config.rootpath
    networks, recipe = (
        yaml.safe_load((root / name).read_text())
        for name in ("benchmarks/fashion_networks.yaml", "pipelines/fashion_mnist.yaml")
    )
    assert networks["seed"] == recipe["seed"]
    for stage in ("data", "control"):
        assert networks["stages"][stage] == recipe["stages"][stage]


def test_the_summary_is_of_the_networks_that_a_variant_was_judged_on(peers):
    def row(drop, upper, agreement, sqnr):
        found = {"drop": drop, "drop_upper": upper, "agreement": agreement, "sqnr": sqnr}
        return {"variants": {"plain": found, "nncf": {"error": "ValueError"}}}

    rows = [row(0.1, 0.3, 99.9, 30.0), row(-0.1, 0.2, 99.0, 40.0), {"variants": {}}]
    ((key, found),) = peers.int8_trained.summary(rows, ["plain", "nncf"]).items()
    assert key == "plain"
    assert found["networks"] == 2
    assert found["mean_drop"] == pytest.approx(0.0)
    assert found["worst_upper"] == 0.3
    assert found["least_agreement"] == 99.0
    assert found["least_sqnr"] == 30.0


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


def test_a_process_is_charged_its_own_time_and_memory(peers):
    room = peers.quantize_cost
    busy = "import time; x = bytearray(80 << 20); e = time.process_time() + 0.2\n"
    loop = "while time.process_time() < e: pass\nprint(len(x))"
    found = room.spent([sys.executable, "-c", busy + loop])
    assert found.text == f"{80 << 20}\n"
    assert found.cpu_s >= 0.2
    assert 80 < found.peak_mb < 120  # neither this process's memory nor
    small = room.spent([sys.executable, "-c", "pass"])  # that of the largest child so far
    assert small.peak_mb < 40


def test_a_process_that_fails_is_an_error_with_its_last_words(peers):
    words = "import sys; print('no memory', file=sys.stderr); sys.exit(3)"
    with pytest.raises(RuntimeError, match=r"exit 3: no memory$"):
        peers.quantize_cost.spent([sys.executable, "-c", words])


def test_cost_is_the_ratio_of_wall_times_round_by_round(peers, monkeypatch, tmp_path):
    room = peers.quantize_cost
    (tmp_path / "toy").mkdir()
    onnx.save(zoo(), tmp_path / "toy" / "fp32.onnx")
    walls, shapes = {room.OURS: 2.0, room.AGAIN: 2.0, "peer": 3.0}, []

    def commands(fp32, feed, out):
        with np.load(feed) as arrays:
            shapes.extend(array.shape for array in arrays.values())
        return {name: [name] for name in walls}

    table = {"placement": {"seconds": 1.5}, "verdict": "int8 is faster"}

    def spent(command):
        wall = walls.get(command[0], 4.0)
        return room.Spent(wall, wall, 100 * wall, json.dumps(table))

    monkeypatch.setattr(room, "commands", commands)
    monkeypatch.setattr(room, "spent", spent)
    places = ["--work", str(tmp_path), "--results", str(tmp_path)]
    room.main(["--plain", "toy", "--default", "toy", "--samples", "5", *places])
    (path,) = tmp_path.glob("quantize_cost.*.json")
    found = json.loads(path.read_text())
    over = {name: r["value"] for name, r in found["plain"]["over_ours"].items()}
    assert over == pytest.approx({room.AGAIN: 1.0, "peer": 1.5})
    assert found["plain"]["peak_mb"]["peer"] == pytest.approx(300.0)
    assert len(found["plain"]["runs"][room.OURS]) == 3
    assert [shape[0] for shape in shapes] == [5]
    assert found["default"]["counted_s"] == 1.5
    assert found["default"]["wall_s"] == 4.0


@pytest.mark.slow
def test_both_quantizers_run_in_processes_of_their_own(peers, tmp_path):
    (tmp_path / "toy").mkdir()
    onnx.save(zoo(), tmp_path / "toy" / "fp32.onnx")
    ends = ["--rounds", "1", "--samples", "20", "--work", str(tmp_path), "--results", str(tmp_path)]
    peers.quantize_cost.main(["--plain", "toy", "--default", "", *ends])
    (path,) = tmp_path.glob("quantize_cost.*.json")
    found = json.loads(path.read_text())["plain"]
    assert {name: len(runs) for name, runs in found["runs"].items()} == {
        "compressor": 1, "compressor again": 1,
        "quantize_static, batch 32": 1, "quantize_static, batch 8": 1,
    }  # fmt: skip
