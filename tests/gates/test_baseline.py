"""``baseline accept`` and ``gate RUN --baseline DIR``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.core.errors import ConfigError, IntegrityError, SystemFault
from compressor.core.results import GateRecord
from compressor.core.types import Timing, TimingProtocol
from compressor.gates import Gate, accept, baseline, evaluate, exit_code, judge, latency
from compressor.runtime.predict import npz_bytes
from compressor.runtime.timing import feed_digest, interleave
from tests.gates.builders import HERE, Clock, Run, metric, onnx_file, right_wrong, shipped

FILES = ["bench_inputs.npz", "model.onnx", "predictions.npz", "resolved.yaml", "results.json"]
BASE, NEW = right_wrong(9, 6)


def accepted(tmp_path: Path, **metrics: float) -> Path:
    shipped(tmp_path / "old", BASE, 1.0, **metrics).done()
    accept(tmp_path / "old", tmp_path / "base")
    return tmp_path / "base"


def states(records: tuple[GateRecord, ...]) -> dict[str, str]:
    return {r.gate.split()[0]: r.verdict for r in records}


def test_accept_writes_five_files_and_nothing_beside_them(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == FILES
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "old"]
    held = baseline.load(folder)
    assert held.model.read_bytes() == (tmp_path / "old/models/fp32.onnx").read_bytes()
    assert baseline.inputs(held)["image"].shape == (16, 4)


def test_accepting_the_same_run_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    accept(tmp_path / "old", folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_bench_inputs_are_the_golden_inputs_of_a_bundle(tmp_path: Path) -> None:
    run = Run(tmp_path / "old").add("fp32", predicted=BASE, scale=2.0)
    run.add("bundle", "bundle", predicted=BASE, scale=1.0).add("late", scale=3.0).done()
    golden = np.arange(40, dtype=np.uint8).reshape(10, 4)
    (tmp_path / "old/bundle").mkdir()
    arrays = {"input.image": golden, "output.logits": np.zeros((10, 4), np.float32)}
    (tmp_path / "old/bundle/golden.npz").write_bytes(npz_bytes(arrays))
    assert accept(tmp_path / "old", tmp_path / "base").name == "bundle"
    held = baseline.inputs(baseline.load(tmp_path / "base"))
    assert list(held) == ["image"]
    np.testing.assert_array_equal(held["image"], np.resize(golden, (16, 4)))


def test_a_folder_with_anything_else_in_it_is_never_replaced(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        accept(tmp_path / "old", folder)
    assert (folder / "thesis.tex").exists()


def test_an_older_baseline_survives_an_accept_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = accepted(tmp_path)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    shipped(tmp_path / "new", NEW, 2.0).done()
    real, calls = os.rename, []

    def rename(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:  # the older one is aside, the new one not yet in place
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(SystemFault, match="full"):
        accept(tmp_path / "new", folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "new", "old"]


def test_a_run_whose_model_changed_or_is_missing_is_not_accepted(tmp_path: Path) -> None:
    shipped(tmp_path / "old", BASE).done()
    onnx_file(tmp_path / "old/models/fp32.onnx", 7.0)
    with pytest.raises(IntegrityError, match="not the bytes"):
        accept(tmp_path / "old", tmp_path / "base")
    (tmp_path / "old/models/fp32.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"\.onnx of fp32"):
        accept(tmp_path / "old", tmp_path / "base")
    Run(tmp_path / "none").add("teacher", "train", predicted=BASE).done()
    with pytest.raises(ConfigError, match="nothing is shipped"):
        accept(tmp_path / "none", tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_a_missing_or_damaged_baseline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no baseline here; `compressor baseline accept"):
        baseline.load(tmp_path)
    folder = accepted(tmp_path)
    (folder / "model.onnx").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(IntegrityError, match="Git LFS"):
        baseline.load(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(IntegrityError, match=r"without model\.onnx"):
        baseline.load(folder)


def test_damaged_bench_inputs_are_an_integrity_error(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    file = folder / "bench_inputs.npz"
    for damage in (file.read_bytes()[:-60], b"text", b""):
        file.write_bytes(damage)
        with pytest.raises(IntegrityError, match="not arrays"):
            baseline.inputs(baseline.load(folder))


def test_without_gates_of_its_own_a_run_gets_the_five_defaults(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    shipped(tmp_path / "run", NEW, 2.0).done()
    found = judge(tmp_path / "run", folder, Clock(1.0))
    assert states(found) == {
        "fp32.accuracy": "PASS",
        "fp32.latency": "PASS",
        "fp32.bytes": "PASS",
        "fp32.macs": "PASS",
        "parity": "PASS",
    }
    assert exit_code(found, strict=True) == 0


def test_each_default_catches_its_own_regression(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    _, bad = right_wrong(60, 0)
    shipped(tmp_path / "a", bad, 2.0, bytes=58_001.0, macs=1001.0).done()
    found = states(judge(tmp_path / "a", folder, Clock(1.3)))
    parity = found.pop("parity")
    assert set(found.values()) == {"FAIL"}
    assert parity == "PASS"
    Run(tmp_path / "b").add("int8", "quantize", predicted=NEW, scale=2.0).done()
    found = states(judge(tmp_path / "b", folder, Clock(1.0)))
    assert found["int8.bytes"] == found["parity"] == "INCONCLUSIVE"


def test_gates_of_the_run_replace_the_defaults(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    gates = [
        {"metric": "fp32.latency", "versus": "baseline", "max_ratio": 1.5},
        {"metric": "fp32.accuracy", "versus": "baseline", "max_drop": 0.1},
        {"metric": "fp32.bytes", "max": 60_000},
    ]
    shipped(tmp_path / "run", NEW, 2.0).done(gates)
    found = judge(tmp_path / "run", folder, Clock(1.3))
    assert [r.verdict for r in found] == ["PASS", "FAIL", "PASS"]
    alone = judge(tmp_path / "run", None)
    assert [r.verdict for r in alone] == ["SKIPPED", "SKIPPED", "PASS"]


def test_a_baseline_that_no_gate_looks_at_is_said(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    shipped(tmp_path / "run", NEW, 2.0).done([{"metric": "fp32.bytes", "max": 60_000}])
    found = judge(tmp_path / "run", folder)
    assert states(found) == {"fp32.bytes": "PASS", "baseline": "SKIPPED"}


def test_the_same_artifact_is_held_to_identical_predictions(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    shipped(tmp_path / "same", BASE, 1.0).done()
    shipped(tmp_path / "flip", right_wrong(1, 1)[1], 1.0).done()
    same = judge(tmp_path / "same", folder, Clock(1.0))[0]
    flip = judge(tmp_path / "flip", folder, Clock(1.0))[0]
    assert (same.verdict, flip.verdict) == ("PASS", "FAIL")
    assert "identity gate" in same.sentence
    assert "2 of 1797" in flip.sentence


def test_another_cpu_is_said_and_ends_the_identity_gate(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    other = {"cpu": "Elsewhere 9000", "instruction_set": "arm64"}
    run = Run(tmp_path / "run", other)
    run.add("fp32", predicted=right_wrong(1, 1)[1], scale=1.0).done()
    found = judge(tmp_path / "run", folder, Clock(1.0))[0]
    assert found.verdict == "PASS"
    assert "the same model; 2 predictions differ" in found.sentence
    assert f"({HERE['instruction_set']}), these from Elsewhere 9000 (arm64)" in found.sentence


def test_the_same_class_of_cpu_with_other_instructions_ends_the_identity_gate(
    tmp_path: Path,
) -> None:
    folder = accepted(tmp_path)
    run = Run(tmp_path / "run", HERE | {"features": ["avx2", "avx512f"]})
    run.add("fp32", predicted=right_wrong(1, 1)[1], scale=1.0).done()
    found = judge(tmp_path / "run", folder, Clock(1.0))[0]
    assert (found.verdict, "2 predictions differ" in found.sentence) == ("PASS", True)


def test_the_same_regression_model_may_differ_in_the_last_bit(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).normal(size=400)
    run = Run(tmp_path).add("int8", predicted=truth, labels=truth, score="mae", scale=1.0)
    run.add("bundle", predicted=truth + 1e-7, labels=truth, score="mae", scale=1.0)
    gate = Gate(metric="bundle.mae", versus="int8.mae", max_drop=0.01)
    (found,) = evaluate([gate], tmp_path, run.done())
    assert found.verdict == "PASS"


def test_a_stage_that_does_not_ship_is_held_to_its_namesake_in_the_baseline(
    tmp_path: Path,
) -> None:
    def grown(folder: Path, bytes_: float) -> Run:
        big = {"bytes": metric(bytes_, "bytes")}
        run = Run(folder).add("fp32", scale=3.0, metrics=big)
        return run.add("int8", predicted=BASE, scale=1.0, metrics={"bytes": metric(60, "bytes")})

    grown(tmp_path / "old", 200).done()
    accept(tmp_path / "old", tmp_path / "base")
    gate = {"metric": "fp32.bytes", "versus": "baseline", "max_ratio": 1.0}
    grown(tmp_path / "same", 200).done([gate])
    grown(tmp_path / "more", 201).done([gate])
    assert states(judge(tmp_path / "same", tmp_path / "base")) == {"fp32.bytes": "PASS"}
    assert states(judge(tmp_path / "more", tmp_path / "base")) == {"fp32.bytes": "FAIL"}


def test_another_test_set_is_not_comparable_rather_than_an_error(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    run = Run(tmp_path / "run").add("fp32", predicted=NEW, scale=2.0, first_id=7)
    run.done()
    found = judge(tmp_path / "run", folder, Clock(1.0))
    assert found[0].verdict == "INCONCLUSIVE"
    assert found[0].sentence.startswith("not comparable: the baseline has predictions for 1797")
    assert exit_code(found[:1], strict=True) == 4


def test_latency_is_measured_on_the_baselines_inputs_by_the_runs_protocol(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    run = shipped(tmp_path / "run", NEW, 2.0)
    run.add("bench", "bench", config={"provider": "cpu", "threads": 2, "batch": 32}).done()
    clock = Clock(1.0)
    judge(tmp_path / "run", folder, clock)
    (protocol,), (feed,) = clock.protocols, clock.feeds
    assert (protocol.provider, protocol.threads, protocol.batch) == ("cpu", 2, 32)
    assert feed["image"].shape == (32, 4)
    assert protocol.inputs == feed_digest(feed)


def test_latency_is_measured_as_the_bench_that_timed_the_model_did(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    run = shipped(tmp_path / "run", NEW, 2.0)
    run.add("first", "bench", config={"threads": 2}, inputs={"candidates": ("other",)})
    run.add("second", "bench", config={"threads": 4}, inputs={"candidates": ("fp32", "x")})
    record = run.done()
    clock = Clock(1.0)
    judge(tmp_path / "run", folder, clock)
    assert clock.protocols[0].threads == 4
    stage = record.stage("fp32")
    assert stage is not None
    bundle = replace(stage, name="ship", inputs={"timings": ("first",)})
    assert latency.protocol_of(record, bundle).threads == 2
    assert latency.protocol_of(record, replace(stage, name="y")).threads == 2


def test_a_fail_must_be_seen_twice(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    shipped(tmp_path / "run", NEW, 2.0).done()
    once, twice = Clock(1.3, 1.0), Clock(1.3, 1.25)
    first = judge(tmp_path / "run", folder, once)[1]
    second = judge(tmp_path / "run", folder, twice)[1]
    assert first.verdict == "INCONCLUSIVE"
    assert "not confirmed: p50 latency ratio 1.00" in first.sentence
    assert second.verdict == "FAIL"
    assert [len(c.protocols) for c in (once, twice)] == [2, 2]
    assert twice.protocols[0].seed != twice.protocols[1].seed


def test_nothing_is_decided_on_a_noisy_machine(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    shipped(tmp_path / "run", NEW, 2.0).done()
    for clock in (Clock(1.3, control=1.2), Clock(1.3, unstable=True)):
        found = judge(tmp_path / "run", folder, clock)[1]
        assert found.verdict == "INCONCLUSIVE"
        assert found.sentence.startswith("machine too noisy")
        assert len(clock.protocols) == 1  # interleave() has repeated by itself already


def quick(
    models: Mapping[str, Path], protocol: TimingProtocol, feed: Mapping[str, Any] | None
) -> Timing:
    short = replace(protocol, rounds=8, min_cell_ms=0.2, warmup_ms=1.0)
    return interleave(models, short, feed)


def test_two_real_models_are_measured_side_by_side(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    shipped(tmp_path / "run", NEW, 2.0).done()
    found = judge(tmp_path / "run", folder, quick)[1]
    assert "8 interleaved rounds; A/A control" in found.sentence


def test_a_model_with_other_inputs_is_not_comparable(tmp_path: Path) -> None:
    folder = accepted(tmp_path)
    run = shipped(tmp_path / "run", NEW, 2.0)
    onnx_file(tmp_path / "run/models/fp32.onnx", name="sound")
    run.done()
    found = judge(tmp_path / "run", folder, quick)[1]
    assert (found.verdict, "not comparable" in found.sentence) == ("INCONCLUSIVE", True)
    assert "sound" in found.sentence


def test_a_regression_run_may_lose_one_percent_of_the_baselines_score(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).normal(size=400)
    for name, off in (("old", 0.5), ("good", 0.501), ("bad", 0.51)):
        Run(tmp_path / name).add(
            "fp32", predicted=truth + off, labels=truth, scale=off, score="mae",
            metrics={"mae": metric(off, "units")},
        ).done()  # fmt: skip
    accept(tmp_path / "old", tmp_path / "base")
    verdicts = [judge(tmp_path / n, tmp_path / "base", Clock(1.0))[0] for n in ("good", "bad")]
    assert [v.verdict for v in verdicts] == ["PASS", "FAIL"]


def test_importing_the_gates_loads_neither_torch_nor_onnxruntime() -> None:
    import subprocess

    code = (
        "import sys; sys.modules['torch'] = None; import compressor.gates; "
        "print([m for m in ('onnxruntime', 'torchvision', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
