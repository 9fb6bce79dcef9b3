import contextlib
import json

import onnx
import pytest
from pydantic import ValidationError

from compressor.core.errors import ConfigError, IntegrityError, MissingError
from compressor.core.locks import MachineLock
from compressor.runtime import bench, record
from compressor.runtime.profile import optimized_graph
from compressor.runtime.timing import feed_digest, interleave
from compressor.stages.bench import BENCH, BenchConfig
from tests.runtime import bundles, nets

TIMES = {"baseline": 4.0, "fp32": 1.0, "int8": 0.5}


def inputs(folder, *, reference=True):
    found = bundles.models(folder / "models")
    given = {"baseline": found["baseline"], "candidates": (found["fp32"], found["int8"])}
    if reference:
        given["reference"] = found["fp32"]
    given["data"] = bundles.data(folder / "data", found["fp32"].path)
    return given


def test_the_record_and_the_metrics_say_what_was_measured(tmp_path):
    given = inputs(tmp_path)
    ctx = bundles.context(tmp_path, bundles.Stored(TIMES))
    result = BENCH.run(BenchConfig(memory=0), given, ctx)
    metrics = result.metrics
    assert metrics["int8.p50"].value == pytest.approx(0.5, rel=0.02)
    assert metrics["int8.speedup"].value == pytest.approx(8.0, rel=0.02)
    assert metrics["int8.speedup_reference"].value == pytest.approx(2.0, rel=0.02)
    assert len(metrics["int8.speedup"].samples) == 12
    assert metrics["baseline.speedup"].value == 1.0
    assert metrics["aa"].value == pytest.approx(1.0, rel=0.02)
    assert metrics["unstable"].value == 0.0
    assert "int8.p90" not in metrics  # 12 calls support no tail
    raw = json.loads(result.outputs["timings"].read_text())
    assert (raw["schema"], raw["baseline"], raw["reference"], raw["primary"]) == (
        1, "baseline", "fp32", 0,
    )  # fmt: skip
    cell = raw["cells"][0]
    assert (cell["provider"], cell["threads"], cell["batch"]) == ("cpu", 1, 1)
    assert cell["models"]["int8"]["digest"] == given["candidates"][1].digest
    assert cell["models"]["int8"]["p99"] is None
    assert set(cell["speedup"]["int8"]["baseline"]) == {"value", "low", "high"}
    assert len(cell["aa"]) == 12
    assert raw["size"]["fp32"]["macs"] == 8 * 64 * 9 + 24
    assert raw["machine"]["cpu"]
    assert record.load(result.outputs["timings"]).main.digest == "d" * 64


def test_every_model_is_measured_once_and_the_baseline_is_first(tmp_path):
    stored = bundles.Stored(TIMES)
    BENCH.run(BenchConfig(memory=0), inputs(tmp_path), bundles.context(tmp_path, stored))
    ((models, _, _),) = stored.asked
    assert list(models) == ["baseline", "fp32", "int8"]


def test_lists_make_one_cell_per_combination_and_the_first_is_primary(tmp_path):
    stored = bundles.Stored(TIMES)
    config = BenchConfig(threads=[2, 1], batch=[1, 8], memory=0)
    result = BENCH.run(config, inputs(tmp_path), bundles.context(tmp_path, stored))
    asked = [(p.threads, p.batch) for _, p, _ in stored.asked]
    assert asked == [(2, 1), (2, 8), (1, 1), (1, 8)]
    assert "int8.p50" in result.metrics
    assert "int8.t1.b8.p50" in result.metrics
    assert "int8.t2.b1.p50" not in result.metrics


def test_calibration_samples_are_fed_in_whole_batches(tmp_path):
    stored = bundles.Stored(TIMES)
    given = inputs(tmp_path)
    BENCH.run(BenchConfig(batch=[1, 3, 100], memory=0), given, bundles.context(tmp_path, stored))
    lengths = []
    for _, protocol, feed in stored.asked:
        assert protocol.inputs == feed_digest(feed) != ""
        lengths.append(len(feed["x"]))
    assert lengths == [16, 48, 100]  # 64 samples: 16 batches, 16 batches, repeated to fill one


def test_int8_on_cuda_is_flagged_with_what_it_would_cost(tmp_path):
    given = inputs(tmp_path)
    qdq = nets.qdq_convnet(tmp_path / "qdq.onnx", width=16)
    given["candidates"] = (given["candidates"][0], bundles.artifact("int8", "onnx", qdq))
    ctx = bundles.context(tmp_path, bundles.Stored(TIMES))
    BENCH.run(BenchConfig(provider="cuda", memory=0), given, ctx)
    flagged = [line for line in ctx.progress.lines if "on CUDA" in line]
    assert len(flagged) == 1
    assert flagged[0].startswith("int8: int8 on CUDA: 1 layers run in float32")
    ctx = bundles.context(tmp_path, bundles.Stored(TIMES))
    BENCH.run(BenchConfig(provider="cpu", memory=0), given, ctx)
    assert not [line for line in ctx.progress.lines if "on CUDA" in line]


def test_integer_operators_on_cuda_are_refused_before_anything_is_measured(tmp_path):
    given = inputs(tmp_path)
    qdq = nets.qdq_convnet(tmp_path / "qdq.onnx", width=16)
    fused = tmp_path / "fused.onnx"
    onnx.save(optimized_graph(qdq), fused)
    given["candidates"] = (bundles.artifact("int8", "onnx", fused),)
    stored = bundles.Stored(TIMES)
    with pytest.raises(MissingError, match=r"int8 on CUDA: \d+ nodes .*QLinearConv.*fp16"):
        BENCH.run(BenchConfig(provider="cuda", memory=0), given, bundles.context(tmp_path, stored))
    assert stored.asked == []


def test_unstable_cells_are_flagged_and_said(tmp_path):
    ctx = bundles.context(tmp_path, bundles.Stored(TIMES, unstable=True))
    result = BENCH.run(BenchConfig(memory=0), inputs(tmp_path), ctx)
    assert result.metrics["unstable"].value == 1.0
    assert ctx.progress.lines[-1].startswith("unstable: busy; ")
    assert "--rebench" in ctx.progress.lines[-1]


def test_load_time_and_memory_come_from_fresh_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "MACHINE", MachineLock(tmp_path / "lock"))
    ctx = bundles.context(tmp_path, bundles.Stored(TIMES))
    result = BENCH.run(BenchConfig(memory=1), inputs(tmp_path, reference=False), ctx)
    raw = json.loads(result.outputs["timings"].read_text())
    assert set(raw["memory"]) == {"baseline", "fp32", "int8"}
    assert result.metrics["int8.load"].value > 0
    assert result.metrics["int8.load"].unit == "ms"
    assert result.metrics["int8.peak_memory"].unit == "MiB"
    assert "int8.speedup_reference" not in result.metrics
    assert raw["reference"] is None


@pytest.mark.parametrize("busy", [True, False])
def test_load_times_beside_a_training_are_noted(tmp_path, monkeypatch, busy):
    monkeypatch.setattr(bench, "MACHINE", MachineLock(tmp_path / "lock", patience=0.0))
    ctx = bundles.context(tmp_path, bundles.Stored(TIMES))
    given = inputs(tmp_path, reference=False)
    with MachineLock(tmp_path / "lock").share() if busy else contextlib.nullcontext():
        result = BENCH.run(BenchConfig(memory=1), given, ctx)
    note = record.load(result.outputs["timings"]).memory_note
    assert note.startswith("another process trains or measures here") == busy
    said = [line for line in ctx.progress.lines if line.startswith("load times")]
    assert len(said) == busy


def test_a_budget_takes_rounds_away_but_never_below_ten():
    assert bench.rounds_within(30, None, 3, 50.0) == 30
    assert bench.rounds_within(30, 3.0, 3, 50.0) == 15
    assert bench.rounds_within(30, 0.1, 3, 50.0) == 10
    assert bench.rounds_within(30, 60.0, 3, 50.0) == 30
    assert BenchConfig(budget="3m").budget == 180.0
    assert BenchConfig(budget="1.5s").budget == 1.5
    for bad in ("3 minutes", "0s", -1):
        with pytest.raises(ValidationError):
            BenchConfig(budget=bad)


def test_config_is_checked():
    for bad in ({"threads": 0}, {"batch": []}, {"provider": "tpu"}, {"rounds": 2}, {"thread": 1}):
        with pytest.raises(ValidationError):
            BenchConfig(**bad)


def test_records_are_checked_on_loading(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(IntegrityError, match="no timings here"):
        record.load(path)
    result = BENCH.run(
        BenchConfig(memory=0), inputs(tmp_path), bundles.context(tmp_path, bundles.Stored(TIMES))
    )
    raw = json.loads(result.outputs["timings"].read_text())
    for change, words in (({"schema": 2}, "schema 2"), ({"primary": 3}, "no cell 3")):
        path.write_text(json.dumps({**raw, **change}))
        with pytest.raises(IntegrityError, match=words):
            record.load(path)


def test_real_measurements_pass_through(tmp_path):
    class Engine:
        def measure(self, models, protocol, feed=None):
            return interleave(models, protocol, feed, lock=MachineLock(tmp_path / "lock"))

    config = BenchConfig(rounds=10, min_cell_ms=1.0, warmup_ms=1.0, memory=0)
    given = inputs(tmp_path)
    result = BENCH.run(config, given, bundles.context(tmp_path, Engine()))
    assert result.metrics["int8.p50"].value > 0
    assert result.metrics["int8.throughput"].value > 0


def test_an_unknown_baseline_cannot_happen_silently(tmp_path):
    from compressor.core.types import TimingProtocol

    models = {"a": tmp_path / "a"}
    timing = bundles.Stored().measure(models, TimingProtocol())
    with pytest.raises(ConfigError, match="b was not measured"):
        record.cell(timing, "b", None, {"a": "x"})
