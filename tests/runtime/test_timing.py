import gc
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compressor.core.errors import ConfigError, IntegrityError, MissingError
from compressor.core.locks import MachineLock
from compressor.core.types import TimingProtocol
from compressor.runtime import timing
from compressor.runtime.timing import AA, interleave, table
from tests.runtime import nets

FAST = TimingProtocol(rounds=6, min_cell_ms=1.0, warmup_ms=2.0)


class Lab:
    """A clock that only calls move: each model takes its own time, in microseconds."""

    def __init__(self, micros, noise=0.0, aa_factor=1.0):
        self.now = 0
        self.micros = micros
        self.noise = noise
        self.aa_factor = aa_factor
        self.opened = []
        self.visits = []  # names in the order of calls
        self.rng = random.Random(0)

    def clock(self):
        return self.now

    def open(self, path, protocol, feed):
        second = path.stem in self.opened
        self.opened.append(path.stem)
        name = AA if second else path.stem

        def call():
            factor = self.aa_factor if second else 1.0
            spread = 1 + self.noise * (self.rng.random() - 0.5)
            self.visits.append(name)
            self.now += int(1000 * self.micros[path.stem] * factor * spread)

        return call

    def measure(self, protocol, tmp_path):
        lock = MachineLock(tmp_path / "lock", patience=0.0)
        files = {name: Path(f"{name}.onnx") for name in self.micros}
        return interleave(files, protocol, clock=self.clock, opener=self.open, lock=lock)


def runs(visits):
    """Names with repeats folded: one entry per visit."""
    return [v for i, v in enumerate(visits) if i == 0 or visits[i - 1] != v]


def test_every_round_visits_every_model_and_the_control_once(tmp_path):
    found = Lab({"a": 100, "b": 50}).measure(FAST, tmp_path)
    assert set(found.rounds) == {"a", "b", AA}
    assert all(len(rounds) == 6 for rounds in found.rounds.values())
    assert not found.unstable
    assert found.note == ""


def test_the_order_is_random_and_follows_from_the_seed(tmp_path):
    orders = []
    for seed in (0, 0, 1):
        lab = Lab({"a": 100, "b": 100, "c": 100})
        lab.measure(replace(FAST, seed=seed, rounds=20), tmp_path)
        orders.append(runs(lab.visits))
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    firsts = {tuple(orders[0][i : i + 4]) for i in range(4, 60, 4)}
    assert len(firsts) > 5  # not one fixed order


def test_cells_last_as_long_as_asked_and_keep_every_call(tmp_path):
    found = Lab({"a": 130, "b": 40}).measure(FAST, tmp_path)
    assert len(found.calls["a"]) == 6 * 8  # 8 x 0.13 ms >= 1 ms
    assert len(found.calls["b"]) == 6 * 25
    for name in ("a", "b", AA):
        assert sum(found.calls[name]) >= 6 * FAST.min_cell_ms
    assert found.rounds["b"][0] == pytest.approx(0.04)


def test_warm_up_calls_are_not_counted(tmp_path):
    lab = Lab({"a": 100})
    found = lab.measure(FAST, tmp_path)
    warm = lab.visits.index(AA)
    assert warm == max(10, int(FAST.warmup_ms / 0.1))
    assert len(found.calls["a"]) + len(found.calls[AA]) < len(lab.visits) - 2 * warm


def test_warm_up_goes_on_until_calls_are_steady():
    times = iter([100 * 0.8**i for i in range(20)] + [1.0] * 100)
    now, calls = 0, 0

    def call():
        nonlocal now, calls
        calls += 1
        now += int(1e6 * next(times))

    timing._warm_up(call, replace(FAST, warmup_ms=500.0), lambda: now)
    assert 25 <= calls <= 30


def test_a_control_that_is_off_is_measured_thrice_and_marked(tmp_path):
    lab = Lab({"a": 100, "b": 50}, aa_factor=1.2)
    found = lab.measure(FAST, tmp_path)
    assert found.unstable
    assert "0.833x after 3 attempts" in found.note
    once = Lab({"a": 100, "b": 50})
    once.measure(FAST, tmp_path)
    # the control takes 1.2 times as long, so it fits fewer calls into a cell
    assert lab.visits.count("b") - 20 >= 3 * 0.9 * (once.visits.count("b") - 40)


@pytest.mark.parametrize(("factor", "unstable"), [(1.04, False), (0.96, False), (1.08, True)])
def test_the_control_may_be_five_percent_off(tmp_path, factor, unstable):
    found = Lab({"a": 100}, aa_factor=factor).measure(FAST, tmp_path)
    assert found.unstable is unstable


def test_a_busy_machine_is_said_and_marked(tmp_path):
    holder = MachineLock(tmp_path / "lock")
    with holder.share():
        found = Lab({"a": 100}).measure(FAST, tmp_path)
    assert found.unstable
    assert "another process trains or measures here" in found.note


def test_collector_and_affinity_are_put_back(tmp_path):
    mask = os.sched_getaffinity(0)
    seen = []

    class Looking(Lab):
        def clock(self):
            seen.append((gc.isenabled(), len(os.sched_getaffinity(0))))
            return super().clock()

    Looking({"a": 100}).measure(FAST, tmp_path)
    assert gc.isenabled()
    assert os.sched_getaffinity(0) == mask
    assert {enabled for enabled, _ in seen} == {False}
    assert {count for _, count in seen} == {1}


def test_they_are_put_back_when_a_model_cannot_be_opened(tmp_path):
    mask = os.sched_getaffinity(0)

    def broken(path, protocol, feed):
        raise IntegrityError("damaged")

    lock = MachineLock(tmp_path / "lock")
    with pytest.raises(IntegrityError, match="damaged"):
        interleave({"a": Path("a")}, FAST, opener=broken, lock=lock)
    assert gc.isenabled()
    assert os.sched_getaffinity(0) == mask


def test_cpus_are_taken_one_per_core_from_the_top(tmp_path):
    for cpu, core in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(core + "\n")
    assert timing.choose_cpus({0, 1, 2, 3}, 1, tmp_path) == {3}
    assert timing.choose_cpus({0, 1, 2, 3}, 2, tmp_path) == {3, 2}
    assert timing.choose_cpus({0, 1, 2, 3}, 3, tmp_path) == {3, 2, 1}
    assert timing.choose_cpus({5, 9}, 1, tmp_path) == {9}


def test_the_digest_covers_what_was_measured(tmp_path):
    one = Lab({"a": 100}).measure(FAST, tmp_path)
    assert one.digest == Lab({"a": 100}).measure(FAST, tmp_path).digest
    assert one.digest != Lab({"a": 101}).measure(FAST, tmp_path).digest
    assert len(one.digest) == 64


def test_tails_are_reported_only_where_the_sample_supports_them(tmp_path):
    few = table(Lab({"a": 1000, "b": 500}).measure(FAST, tmp_path), "a")
    assert few["a"].n == 6
    assert (few["a"].p90, few["a"].p99) == (None, None)
    some = table(Lab({"a": 10}).measure(replace(FAST, rounds=1), tmp_path), "a")["a"]
    assert some.n == 100
    assert some.p90 is not None
    assert some.p99 is None
    many = table(Lab({"a": 1}).measure(replace(FAST, rounds=1), tmp_path), "a")["a"]
    assert many.n >= 662
    assert many.p99 is not None


def test_speed_ups_and_throughput_of_known_times(tmp_path):
    lab = Lab({"a": 100, "b": 50, "c": 200}, noise=0.02)
    rows = table(lab.measure(replace(FAST, batch=4, rounds=12), tmp_path), "a", "c")
    assert set(rows) == {"a", "b", "c"}
    assert rows["b"].baseline.value == pytest.approx(2.0, rel=0.02)
    assert rows["b"].baseline.low <= rows["b"].baseline.value <= rows["b"].baseline.high
    assert rows["b"].reference.value == pytest.approx(4.0, rel=0.02)
    assert rows["a"].baseline.value == 1.0
    assert rows["b"].throughput == pytest.approx(4 / 50e-6, rel=0.02)
    with pytest.raises(ConfigError, match="zz was not measured; measured: a"):
        table(lab.measure(FAST, tmp_path), "zz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rounds": 0}, "rounds: 0"),
        ({"batch": 0}, "batch: 0"),
        ({"threads": 0}, "threads: 0"),
        ({"min_cell_ms": -1.0}, "min_cell_ms"),
    ],
)
def test_a_protocol_that_measures_nothing_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        interleave({"a": Path("a")}, replace(FAST, **change))


def test_the_control_s_name_and_no_models_are_refused():
    for models in ({}, {AA: Path("a")}):
        with pytest.raises(ConfigError, match="models"):
            interleave(models, FAST)


def test_a_feed_needs_its_digest_and_a_full_batch():
    feed = {"x": np.zeros((4, 3), np.float32)}
    with pytest.raises(ConfigError, match="digest"):
        interleave({"a": Path("a")}, FAST, feed)
    fed = replace(FAST, batch=8, inputs=timing.feed_digest(feed))
    with pytest.raises(ConfigError, match="a batch needs 8"):
        interleave({"a": Path("a")}, fed, feed)
    other = {"x": np.ones((4, 3), np.float32)}
    assert timing.feed_digest(other) != timing.feed_digest(feed)
    assert timing.feed_digest(None) == ""


def test_names_are_short_and_unique(tmp_path):
    paths = [tmp_path / "a" / "m.onnx", tmp_path / "b" / "m.onnx", tmp_path / "int8.onnx"]
    assert list(timing.named(paths)) == ["a/m", "b/m", "int8"]
    assert list(timing.named([paths[0], paths[0]])) == ["a/m", "a/m-2"]


@pytest.mark.parametrize("batch", [1, 4])
def test_real_sessions_are_measured_on_samples_and_on_random_inputs(tmp_path, batch):
    models = {
        "small": nets.convnet(tmp_path / "s.onnx", size=32),
        "large": nets.convnet(tmp_path / "l.onnx", width=256, size=32),
    }
    protocol = replace(FAST, rounds=5, batch=batch)
    lock = MachineLock(tmp_path / "lock")
    feed = {"x": np.random.default_rng(0).integers(0, 256, (9, 1, 32, 32), dtype=np.uint8)}
    fed = replace(protocol, inputs=timing.feed_digest(feed))
    for given in (
        interleave(models, protocol, lock=lock),
        interleave(models, fed, feed, lock=lock),
    ):
        assert table(given, "small")["large"].baseline.value < 1  # 64 times the work


def test_feeds_cycle_distinct_samples(tmp_path):
    from compressor.runtime import calls, session

    path = nets.convnet(tmp_path / "m.onnx")
    opened = session.open_session(path)
    feed = {"x": np.arange(40 * 64, dtype=np.float32).reshape(40, 1, 8, 8)}
    rows = calls._batches(opened, path, replace(FAST, batch=2), feed)
    assert len(rows) == 16
    assert [float(r["x"].flat[0]) for r in rows] == [128.0 * i for i in range(16)]
    drawn = calls._batches(opened, path, FAST, None)
    assert len({r["x"].tobytes() for r in drawn}) == 16
    with pytest.raises(ConfigError, match="the feed gives"):
        calls._batches(opened, path, FAST, {"y": feed["x"]})
    with pytest.raises(ConfigError, match="shapes"):
        calls._batches(opened, path, FAST, {"x": feed["x"][:, :, :4]})


def test_a_missing_provider_is_said_before_anything_is_timed(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    path = nets.convnet(tmp_path / "m.onnx")
    lock = MachineLock(tmp_path / "lock")
    with pytest.raises(MissingError, match="cuda"):
        interleave({"a": path}, replace(FAST, provider="cuda"), lock=lock)


@pytest.mark.gpu
def test_cuda_is_measured_on_the_device(tmp_path):
    models = {"a": nets.convnet(tmp_path / "a.onnx", width=64, size=32)}
    found = interleave(models, replace(FAST, provider="cuda"))
    assert len(found.rounds["a"]) == FAST.rounds
