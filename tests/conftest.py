"""Fixtures for every room."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# The same examples on every run, so that a red build is about the change it tests. To look for
# new ones: HYPOTHESIS_EXPLORE=1 make test.
settings.register_profile("repeatable", derandomize=True)
if not os.environ.get("HYPOTHESIS_EXPLORE"):
    settings.load_profile("repeatable")

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_machine_lock(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests beside each other must not wait for each other: they prove no latency."""
    from compressor.core import locks

    locks.MACHINE._path = tmp_path_factory.mktemp("lock") / "machine.lock"


@pytest.fixture(autouse=True)
def _no_environment_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own store must not be used by tests."""
    monkeypatch.delenv("COMPRESSOR_STORE", raising=False)
