from __future__ import annotations

import pytest

from compressor.core.store import Store
from compressor.core.types import TimingProtocol
from compressor.pipeline.timings import StoredTimings
from tests.quantization.graphs import build, images, put

PROTOCOL = TimingProtocol(rounds=3, inputs="given")


@pytest.fixture
def model(tmp_path):
    return put(build("a = Conv(x, w) y = Flatten(a)", {"w": (4, 3, 1, 1)}), tmp_path / "m.onnx")


@pytest.fixture
def profiles(monkeypatch):
    made = []

    def profiled(model, protocol, feed):
        made.append(protocol)
        return {"a": float(len(made))}

    monkeypatch.setattr("compressor.runtime.profile.profiled", profiled)
    return made


def test_a_profile_is_made_once_per_model_and_protocol(tmp_path, model, profiles):
    timings = StoredTimings(Store(tmp_path / "store"))
    assert timings.profile(model, PROTOCOL) == {"a": 1.0}
    assert StoredTimings(Store(tmp_path / "store")).profile(model, PROTOCOL) == {"a": 1.0}
    assert timings.profile(model, TimingProtocol(rounds=4)) == {"a": 2.0}
    assert len(profiles) == 2
    assert len(timings.read) == len(set(timings.read)) == 2


def test_rebench_profiles_again_once(tmp_path, model, profiles):
    StoredTimings(Store(tmp_path / "store")).profile(model, PROTOCOL)
    again = StoredTimings(Store(tmp_path / "store"), again=True)
    assert again.profile(model, PROTOCOL) == again.profile(model, PROTOCOL) == {"a": 2.0}


def test_a_damaged_profile_is_made_again(tmp_path, model, profiles):
    timings = StoredTimings(Store(tmp_path / "store"))
    timings.profile(model, PROTOCOL)
    (file,) = (tmp_path / "store" / "timings").iterdir()
    file.write_text(file.read_text().replace("1.0", "0.1"))
    assert timings.profile(model, PROTOCOL) == {"a": 2.0}


def test_a_real_profile_names_what_runs(tmp_path, model):
    found = StoredTimings(Store(tmp_path / "store")).profile(model, PROTOCOL, {"x": images(2)})
    assert any("Flatten" in name for name in found)
    assert all(us >= 0 for us in found.values())
