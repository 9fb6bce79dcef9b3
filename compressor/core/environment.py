"""What this machine is: versions, CPU features, usable threads, its fingerprint."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from compressor.core.errors import MissingError
from compressor.core.hashing import digest_json

# The features that select other int8 or fp32 kernels in ONNX Runtime and oneDNN.
_FEATURES = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx_vnni_int8",
    "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
_VNNI = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}


def _cpuinfo() -> dict[str, str]:
    """First processor's block of /proc/cpuinfo; empty where there is none."""
    rows: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return rows
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            rows.setdefault(key.strip(), value.strip())
    return rows


@cache
def cpu_name() -> str:
    """Human name of the processor."""
    info = _cpuinfo()
    return info.get("model name") or info.get("Hardware") or platform.processor() or "unknown CPU"


@cache
def cpu_features() -> tuple[str, ...]:
    """Those of the instruction sets that matter here which the CPU reports, sorted."""
    info = _cpuinfo()
    words = set((info.get("flags") or info.get("Features") or "").split())
    return tuple(sorted(words.intersection(_FEATURES)))


def instruction_set() -> str:
    """The class that decides int8 arithmetic: ``x86-vnni``, ``x86`` (U8S8 saturates), ``arm64``."""
    machine = platform.machine().lower()
    if machine in {"aarch64", "arm64"}:
        return "arm64"
    if machine in {"x86_64", "amd64"}:
        return "x86-vnni" if _VNNI.intersection(cpu_features()) else "x86"
    return machine


def feature_class() -> str:
    """The CPU class that can change floating-point results: vector width, FMA, bf16."""
    return platform.machine() + ":" + ",".join(cpu_features())


def usable_threads() -> int:
    """CPUs this process may use: affinity, then the cgroup quota, at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quota = cpu_quota()
    return max(1, min(count or 1, int(quota) if quota and quota >= 1 else count or 1))


def cpu_quota() -> float | None:
    """The cgroup's CPU limit in cores, or None where there is none."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        return None


@cache
def version(distribution: str) -> str:
    """Installed version of a distribution, or ``absent``."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def onnxruntime_packages() -> tuple[str, ...]:
    """Names of installed distributions that put files under ``onnxruntime/``."""
    names = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
    return tuple(n for n in names if version(n) != "absent")


def check_onnxruntime() -> None:
    """Raise MissingError unless exactly one onnxruntime package is installed."""
    found = onnxruntime_packages()
    if not found:
        raise MissingError(
            'onnxruntime is not installed; `pip install "compressor[cpu]"` '
            '(or "compressor[gpu]" on a CUDA machine)'
        )
    if len(found) > 1:
        raise MissingError(
            f"{' and '.join(found)} are both installed and overwrite each other's files; "
            f"`pip uninstall -y {' '.join(found)}`, then install one of them"
        )


def require(modules: Iterable[str], extra: str, what: str) -> None:
    """Raise MissingError naming the extra if one of ``modules`` cannot be imported."""
    missing = [m for m in modules if not _importable(m)]
    if missing:
        raise MissingError(
            f'{what} needs {", ".join(missing)}; `pip install "compressor[{extra}]"`'
        )


def _importable(module: str) -> bool:
    """Whether a module is there, without importing it; a blocked one is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@cache
def gpus() -> tuple[str, ...]:
    """Model and driver of each NVIDIA GPU, from the driver's own files; empty without one."""
    root = Path("/proc/driver/nvidia")
    found = []
    for file in sorted(root.glob("gpus/*/information")):
        rows = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        found.append(rows.get("Model", "GPU").strip())
    if found and (root / "version").is_file():
        found.append((root / "version").read_text().splitlines()[0].strip())
    return tuple(found)


def machine() -> dict[str, object]:
    """The facts about this machine that a measurement is worthless without."""
    return {
        "cpu": cpu_name(),
        "features": list(cpu_features()),
        "instruction_set": instruction_set(),
        "threads": usable_threads(),
        "quota": cpu_quota(),
        "gpus": list(gpus()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "onnxruntime": next((f"{n} {version(n)}" for n in onnxruntime_packages()), "absent"),
        "torch": version("torch"),
    }


def machine_fingerprint() -> str:
    """Digest of what makes two latencies comparable: CPU, GPU, threads, quota, ONNX Runtime."""
    keys = ("cpu", "features", "threads", "quota", "gpus", "onnxruntime")
    facts = machine()
    return digest_json({k: facts[k] for k in keys})[:16]
