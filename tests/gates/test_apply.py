"""Gates against hand-made run folders: which stages they mean and which evidence they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.core.errors import ConfigError, IntegrityError
from compressor.core.results import GateRecord
from compressor.gates import Gate, evaluate, exit_code
from tests.gates.builders import N, Run, metric, right_wrong


def verdicts_of(run: Run, *gates: dict[str, Any]) -> list[GateRecord]:
    return list(evaluate([Gate(**g) for g in gates], run.folder, run.done(), baseline=None))


DROP = {"metric": "int8.accuracy", "versus": "teacher.accuracy", "max_drop": 1.0}


def test_accuracy_is_compared_sample_by_sample_within_a_run(tmp_path: Path) -> None:
    base, new = right_wrong(9, 6)
    run = Run(tmp_path).add("teacher", predicted=base).add("int8", predicted=new)
    (found,) = verdicts_of(run, DROP)
    assert found.gate == "int8.accuracy versus teacher.accuracy max_drop 1"
    assert found.verdict == "PASS"
    assert "9 new errors, 6 fixed" in found.sentence


def test_samples_are_paired_by_id_and_not_by_position(tmp_path: Path) -> None:
    base, new = right_wrong(9, 6)
    run = Run(tmp_path).add("teacher", predicted=base).add("int8", predicted=new)
    file = tmp_path / "predictions" / "int8.test.npz"
    from compressor.runtime import predict

    p, order = predict.load(file), np.random.default_rng(0).permutation(N)
    predict.save(
        file,
        predict.Predictions(p.ids[order], p.labels[order], p.predicted[order], p.outputs[order]),
    )
    (found,) = verdicts_of(run, DROP)
    assert "9 new errors, 6 fixed" in found.sentence


def test_predictions_of_other_samples_in_one_run_are_an_integrity_error(tmp_path: Path) -> None:
    base, new = right_wrong(9, 6)
    run = Run(tmp_path).add("teacher", predicted=base).add("int8", predicted=new, first_id=5)
    with pytest.raises(IntegrityError, match="only one test set"):
        verdicts_of(run, DROP)


def test_damaged_or_missing_predictions_are_an_integrity_error(tmp_path: Path) -> None:
    base, new = right_wrong(9, 6)
    run = Run(tmp_path).add("teacher", predicted=base).add("int8", predicted=new)
    file = tmp_path / "predictions" / "int8.test.npz"
    file.write_bytes(b"half a file")
    with pytest.raises(IntegrityError, match="not a predictions file"):
        verdicts_of(run, DROP)
    file.unlink()
    with pytest.raises(IntegrityError, match="run the pipeline again"):
        verdicts_of(run, DROP)


def test_a_file_outside_the_run_folder_is_not_read(tmp_path: Path) -> None:
    base, _ = right_wrong(0, 0)
    run = Run(tmp_path / "run").add("int8", predicted=base)
    (tmp_path / "run/predictions/int8.test.npz").rename(tmp_path / "outside.npz")
    run.stages[0].predictions["test"] = "../outside.npz"  # type: ignore[index]
    with pytest.raises(IntegrityError, match="outside the run folder"):
        verdicts_of(run, {"metric": "int8.accuracy", "min": 90})


def test_the_same_model_file_must_predict_the_same(tmp_path: Path) -> None:
    base, new = right_wrong(1, 1)
    gate = {"metric": "bundle.accuracy", "versus": "int8.accuracy", "max_drop": 5.0}
    run = Run(tmp_path / "a").add("int8", predicted=base, scale=1.0)
    run.add("bundle", "bundle", predicted=base, scale=1.0)
    (found,) = verdicts_of(run, gate)
    assert (found.verdict, "0 of 1797" in found.sentence) == ("PASS", True)
    run = Run(tmp_path / "b").add("int8", predicted=base, scale=1.0)
    run.add("bundle", "bundle", predicted=new, scale=1.0)
    (found,) = verdicts_of(run, gate)
    assert (found.verdict, "2 of 1797" in found.sentence) == ("FAIL", True)


def test_a_gate_on_a_matrix_holds_for_every_member_against_its_own_counterpart(
    tmp_path: Path,
) -> None:
    base, new = right_wrong(9, 6)
    _, bad = right_wrong(60, 0)
    run = Run(tmp_path)
    run.add("teacher[seed=0]", predicted=base).add("teacher[seed=1]", predicted=bad)
    run.add("int8[seed=0]", predicted=new).add("int8[seed=1]", predicted=bad)
    found = verdicts_of(run, DROP)
    assert [(r.gate.partition(" ")[0], r.verdict) for r in found] == [
        ("int8[seed=0].accuracy", "PASS"),
        ("int8[seed=1].accuracy", "PASS"),
    ]
    (only,) = verdicts_of(run, {"metric": "int8[seed=1].accuracy", "floor": 96.0})
    assert only.verdict == "FAIL"
    both = verdicts_of(run, {"metric": "int8.accuracy", "versus": "teacher[seed=0].accuracy",
                             "max_drop": 1.0})  # fmt: skip
    assert [r.verdict for r in both] == ["PASS", "FAIL"]


def test_sizes_ratios_and_floors_of_one_run(tmp_path: Path) -> None:
    base, _ = right_wrong(0, 0)
    ratios = [5.0 + 0.01 * i for i in range(30)]
    rows = {"bytes": metric(58_112, "bytes"), "speedup": metric(5.1, "x", ratios)}
    run = Run(tmp_path).add("fp32", metrics={"bytes": metric(200_000, "bytes")})
    run.add("bundle", "bundle", predicted=base, metrics=rows | {"unstable": metric(0, "flag")})
    found = verdicts_of(
        run,
        {"metric": "bundle.bytes", "max": 60_000},
        {"metric": "bundle.bytes", "versus": "fp32.bytes", "max_ratio": 0.25},
        {"metric": "bundle.speedup", "min": 4.0},
        {"metric": "bundle.speedup", "min": 6.0},
        {"metric": "bundle.accuracy", "floor": 96.0},
        {"metric": "bundle.accuracy", "min": 97.1},
    )
    assert [r.verdict for r in found] == ["PASS", "FAIL", "PASS", "FAIL", "PASS", "INCONCLUSIVE"]
    assert all("\n" not in r.sentence and r.sentence for r in found)


def test_unstable_timings_make_a_speedup_inconclusive_and_leave_bytes_alone(
    tmp_path: Path,
) -> None:
    rows = {
        "bytes": metric(58_112, "bytes"),
        "speedup": metric(5.1, "x", [5.1] * 30),
        "unstable": metric(1, "flag"),
    }
    run = Run(tmp_path).add("bundle", "bundle", metrics=rows)
    found = verdicts_of(
        run, {"metric": "bundle.speedup", "min": 4.0}, {"metric": "bundle.bytes", "max": 60_000}
    )
    assert [r.verdict for r in found] == ["INCONCLUSIVE", "PASS"]


def test_unknown_metrics_are_named_all_at_once_with_the_nearest(tmp_path: Path) -> None:
    run = Run(tmp_path).add("bundle", "bundle", metrics={"bytes": metric(1), "speedup": metric(2)})
    with pytest.raises(ConfigError) as caught:
        verdicts_of(
            run,
            {"metric": "bundle.byts", "max": 1},
            {"metric": "bundle.bytes", "max": 1},
            {"metric": "bundle.bytes", "versus": "bundel.bytes", "max_ratio": 1},
        )
    assert "gates.0.metric: this run has no 'bundle.byts'; did you mean 'bundle.bytes'?" in str(
        caught.value
    )
    assert "gates.2.versus" in str(caught.value)
    assert len(caught.value.problems) == 2


def test_a_failed_stage_fails_its_gates(tmp_path: Path) -> None:
    run = Run(tmp_path).add("int8", "quantize", state="failed")
    (found,) = verdicts_of(run, {"metric": "int8.bytes", "max": 1})
    assert (found.verdict, found.sentence[:17]) == ("FAIL", "stage int8 failed")


def test_a_bundle_beyond_its_max_drop_fails_the_run_whatever_its_gates_say(tmp_path: Path) -> None:
    rows = {"bytes": metric(1, "bytes"), "within": metric(0, "flag")}
    run = Run(tmp_path).add("bundle", "bundle", metrics=rows, config={"max_drop": 1.0})
    found = verdicts_of(run, {"metric": "bundle.bytes", "max": 2})
    assert [r.verdict for r in found] == ["PASS", "FAIL"]
    assert found[1].gate == "bundle.within (max_drop 1.0 on val)"
    assert exit_code(verdicts_of(run), strict=False) == 3


def test_gates_against_a_baseline_are_skipped_without_one(tmp_path: Path) -> None:
    run = Run(tmp_path).add("bundle", "bundle", metrics={"bytes": metric(1)}, scale=1.0)
    found = verdicts_of(
        run,
        {"metric": "bundle.bytes", "versus": "baseline", "max_ratio": 1},
        {"metric": "bundle.latency", "versus": "baseline", "max_ratio": 1.1},
    )
    assert [r.verdict for r in found] == ["SKIPPED", "SKIPPED"]
    assert exit_code(found, strict=True) == 0


def test_a_regression_run_is_judged_by_its_own_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    base, worse = truth + 0.1, truth + 0.5
    run = Run(tmp_path).add("teacher", predicted=base, labels=truth, score="mae")
    run.add("int8", predicted=worse, labels=truth, score="mae")
    found = verdicts_of(
        run,
        {"metric": "int8.mae", "versus": "teacher.mae", "max_drop": 0.3},
        {"metric": "int8.mae", "versus": "teacher.mae", "max_drop": 0.45},
        {"metric": "int8.mae", "max": 0.6},
    )
    assert [r.verdict for r in found] == ["FAIL", "PASS", "PASS"]


@pytest.mark.parametrize(
    ("states", "strict", "code"),
    [
        ([], True, 0),
        (["PASS", "SKIPPED"], True, 0),
        (["PASS", "INCONCLUSIVE"], False, 0),
        (["PASS", "INCONCLUSIVE"], True, 4),
        (["INCONCLUSIVE", "FAIL"], True, 3),
        (["FAIL"], False, 3),
    ],
)
def test_fail_beats_inconclusive_which_counts_only_when_strict(
    states: list[str], strict: bool, code: int
) -> None:
    assert exit_code([GateRecord("g", s, "") for s in states], strict) == code
