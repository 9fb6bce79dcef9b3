"""Load time, first-run time and peak memory, each taken in a fresh process.

The child is ``python -c`` with NumPy and ONNX Runtime alone: what a deployed program would load.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from compressor.core.errors import ConfigError, SystemFault
from compressor.runtime.session import PROVIDERS, check_file, check_provider

_TIMEOUT_S = 600.0

# Peak is VmHWM, not getrusage: on Linux ru_maxrss survives exec, so a child of a large trainer
# would report the trainer's memory. clear_refs=5 resets it after the imports.
_CHILD = r"""
import json, sys, time
import numpy as np, onnxruntime as ort

def status(key):
    try:
        with open("/proc/self/status") as file:
            rows = dict(line.split(":", 1) for line in file)
        return int(rows[key].split()[0]) / 1024
    except (OSError, KeyError):
        import resource
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1 << 20 if sys.platform == "darwin" else 1024)

DTYPES = {"tensor(float)": "f4", "tensor(float16)": "f2", "tensor(double)": "f8",
          "tensor(uint8)": "u1", "tensor(int8)": "i1", "tensor(int32)": "i4",
          "tensor(int64)": "i8", "tensor(bool)": "?"}
path, provider, threads, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
options = ort.SessionOptions()
options.log_severity_level = 4
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
if provider != "CPUExecutionProvider":
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    ort.preload_dlls()
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
except OSError:
    pass
base = status("VmRSS")
start = time.perf_counter_ns()
session = ort.InferenceSession(path, options, providers=[provider], enable_fallback=0,
                               read_config_from_model=0)
load = time.perf_counter_ns() - start
feed = {}
for node in session.get_inputs():
    shape = [d if isinstance(d, int) else (batch if i == 0 else 1)
             for i, d in enumerate(node.shape)]
    feed[node.name] = np.zeros(shape, DTYPES[node.type])
start = time.perf_counter_ns()
session.run(None, feed)
first = time.perf_counter_ns() - start
print(json.dumps({"base_mb": base, "peak_mb": max(0.0, status("VmHWM") - base),
                  "load_ms": load / 1e6, "first_run_ms": first / 1e6}))
"""


@dataclass(frozen=True, slots=True)
class Memory:
    """Medians over fresh processes; the file is in the page cache.

    Attributes:
        load_ms: Opening the session, optimisation included.
        first_run_ms: The first call.
        peak_mb: Peak resident memory in MiB above ``base_mb`` (host memory, on CUDA too).
        base_mb: Resident memory after importing NumPy and ONNX Runtime, in MiB.
    """

    load_ms: float
    first_run_ms: float
    peak_mb: float
    base_mb: float


def measure(
    path: Path, provider: str = "cpu", threads: int = 1, batch: int = 1, repeats: int = 3
) -> Memory:
    """Load and run a model once in each of ``repeats`` fresh processes.

    Raises:
        ConfigError: No such file, an unknown provider, or no repeats.
        IntegrityError: The file is refused, see :func:`session.check_file`.
        MissingError: The provider is not there.
        SystemFault: The child died (out of memory) or hung.
    """
    if repeats < 1:
        raise ConfigError(f"repeats: {repeats}; give at least 1")
    check_provider(provider)
    check_file(path)
    # -P: nothing that lies in the working folder is imported.
    command = [sys.executable, "-P", "-c", _CHILD, str(path.resolve())]
    command += [PROVIDERS[provider], str(threads), str(batch)]
    found = [_child(command, path) for _ in range(repeats)]
    return Memory(**{key: median(row[key] for row in found) for key in Memory.__slots__})


def _child(command: list[str], path: Path) -> dict[str, float]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise SystemFault(f"{path}: loading took more than {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise SystemFault(
            f"{path}: the process that loads it ended with {done.returncode}: {last}; "
            "-9 means that memory ran out"
        )
    row: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return row
