import json

import pytest

from compressor.core.store import Store
from compressor.core.types import Timing, TimingProtocol
from compressor.pipeline import timings
from compressor.pipeline.timings import StoredTimings


@pytest.fixture
def measured(monkeypatch):
    """Counts real measurements; each gives other numbers, as a clock would."""
    calls = []

    def interleave(models, protocol, feed=None):
        calls.append(tuple(models))
        rounds = {name: (1.0 * len(calls),) for name in [*models, "A/A"]}
        return Timing("here", protocol, rounds, rounds)

    monkeypatch.setattr("compressor.runtime.timing.interleave", interleave)
    return calls


@pytest.fixture
def files(tmp_path):
    paths = {"a": tmp_path / "a.onnx", "b": tmp_path / "b.onnx"}
    for name, path in paths.items():
        path.write_text(name)
    return paths


def test_a_measurement_is_made_once_also_in_another_process(tmp_path, files, measured):
    first = StoredTimings(Store(tmp_path / "s"))
    second = StoredTimings(Store(tmp_path / "s"))
    got = first.measure(files, TimingProtocol())
    assert second.measure(files, TimingProtocol()) == got
    assert len(measured) == 1
    assert first.read == second.read == [got.digest]


def test_names_do_not_matter_but_files_protocol_and_code_do(tmp_path, files, measured, monkeypatch):
    stored = StoredTimings(Store(tmp_path / "s"))
    stored.measure(files, TimingProtocol())
    renamed = stored.measure({"x": files["a"], "y": files["b"]}, TimingProtocol())
    assert set(renamed.rounds) == {"x", "y", "A/A"}
    assert len(measured) == 1
    stored.measure({"b": files["b"], "a": files["a"]}, TimingProtocol())
    stored.measure(files, TimingProtocol(threads=2))
    files["a"].write_text("other")
    stored.measure(files, TimingProtocol())
    assert len(measured) == 4
    monkeypatch.setattr(timings, "machine_fingerprint", lambda: "elsewhere")
    stored.measure(files, TimingProtocol())
    monkeypatch.setattr(timings, "_MEASURES", "compressor.runtime.session:open_session")
    stored.measure(files, TimingProtocol())
    assert len(measured) == 6


def test_again_measures_anew_once_per_stage(tmp_path, files, measured):
    StoredTimings(Store(tmp_path / "s")).measure(files, TimingProtocol())
    again = StoredTimings(Store(tmp_path / "s"), again=True)
    new = again.measure(files, TimingProtocol())
    assert again.measure(files, TimingProtocol()) == new
    assert len(measured) == 2
    assert StoredTimings(Store(tmp_path / "s")).measure(files, TimingProtocol()) == new


def test_a_damaged_record_is_measured_again(tmp_path, files, measured):
    store = Store(tmp_path / "s")
    StoredTimings(store).measure(files, TimingProtocol())
    (path,) = (store.root / "timings").iterdir()
    record = json.loads(path.read_text())
    record["rounds"]["0"] = [0.001]  # somebody flatters the model
    path.write_text(json.dumps(record))
    StoredTimings(store).measure(files, TimingProtocol())
    assert len(measured) == 2
