import importlib.metadata

import pytest

from compressor.core import environment
from compressor.core.errors import MissingError


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly these distributions are installed."""
    packages: dict[str, str] = {}

    def version(name):
        if name not in packages:
            raise importlib.metadata.PackageNotFoundError(name)
        return packages[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    environment.version.cache_clear()
    yield packages
    environment.version.cache_clear()


def test_one_onnxruntime_is_right_and_none_or_two_are_named(installed):
    with pytest.raises(MissingError, match=r"compressor\[cpu\]"):
        environment.check_onnxruntime()
    installed["onnxruntime"] = "1.31"
    environment.version.cache_clear()
    environment.check_onnxruntime()
    installed["onnxruntime-gpu"] = "1.31"
    environment.version.cache_clear()
    with pytest.raises(MissingError, match="onnxruntime and onnxruntime-gpu are both installed"):
        environment.check_onnxruntime()


def test_a_missing_module_names_its_extra():
    environment.require(["json"], "train", "this")
    with pytest.raises(MissingError, match=r'stage x needs no_such_module.*"compressor\[train\]"'):
        environment.require(["json", "no_such_module"], "train", "stage x")


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "avx2 fma", "x86"),
        ("x86_64", "avx2 avx512_vnni", "x86-vnni"),
        ("AMD64", "avx_vnni", "x86-vnni"),
        ("aarch64", "asimddp", "arm64"),
        ("arm64", "", "arm64"),
        ("riscv64", "", "riscv64"),
    ],
)
def test_the_instruction_set_decides_how_int8_adds_up(monkeypatch, machine, flags, expected):
    monkeypatch.setattr(environment.platform, "machine", lambda: machine)
    monkeypatch.setattr(environment, "_cpuinfo", lambda: {"flags": flags})
    environment.cpu_features.cache_clear()
    assert environment.instruction_set() == expected
    environment.cpu_features.cache_clear()


@pytest.mark.parametrize(
    ("quota", "affinity", "threads"),
    [(None, 4, 4), (1.5, 4, 1), (2.0, 4, 2), (0.5, 4, 4), (8.0, 4, 4)],
)
def test_usable_threads_respect_affinity_and_quota(monkeypatch, quota, affinity, threads):
    monkeypatch.setattr(environment, "cpu_quota", lambda: quota)
    monkeypatch.setattr(
        environment.os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False
    )
    assert environment.usable_threads() == threads


@pytest.mark.parametrize("change", ["cpu", "features", "threads", "quota", "onnxruntime"])
def test_what_makes_latencies_incomparable_changes_the_fingerprint(monkeypatch, change):
    facts = environment.machine()
    before = environment.machine_fingerprint()
    monkeypatch.setattr(environment, "machine", lambda: {**facts, change: "other"})
    assert environment.machine_fingerprint() != before
    monkeypatch.setattr(environment, "machine", lambda: {**facts, "python": "other"})
    assert environment.machine_fingerprint() == before
