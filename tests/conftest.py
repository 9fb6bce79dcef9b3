"""Fixtures for every room."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _no_environment_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own store must not be used by tests."""
    monkeypatch.delenv("COMPRESSOR_STORE", raising=False)
