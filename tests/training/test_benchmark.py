"""The comparison with a bare loop notices when the two do not do the same work."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "loop_overhead.py"


@pytest.fixture
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loop_overhead", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("honest", [True, False])
def test_the_exit_code_says_whether_both_loops_did_the_same_work(
    benchmark: ModuleType,
    honest: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not honest:
        monkeypatch.setattr(benchmark, "lr_factor", lambda step, total, warmup: 0.5)
    assert benchmark.main(["--short"]) == (0 if honest else 1)
    assert ("steps: yes" if honest else "steps: NO") in capsys.readouterr().out
