"""How long a person waits for the command line: --help, plan, a run that is all cached.

    python benchmarks/responsiveness.py [--repeats 10] [--pipeline pipelines/digits.yaml]

Run the pipeline once before, so that everything is cached. Each command runs in a fresh process;
the first call of each is thrown away, because it fills the file cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

from compressor.core.environment import machine


def wall(command: list[str], repeats: int) -> dict[str, float]:
    """Median and worst wall time in seconds of ``repeats`` calls, and the peak memory of any."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    kept = seconds[1:]
    return {"median_s": statistics.median(kept), "worst_s": max(kept), "peak_mb_so_far": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--pipeline", default="pipelines/digits.yaml")
    options = parser.parse_args()
    base = [sys.executable, "-m", "compressor.cli"]
    commands = {
        "--help": [*base, "--help"],
        "plan": [*base, "plan", options.pipeline],
        "run, all cached": [*base, "run", options.pipeline, "--quiet"],
    }
    found = {name: wall(command, options.repeats) for name, command in commands.items()}
    print(
        json.dumps({"machine": machine(), "repeats": options.repeats, "commands": found}, indent=1)
    )


if __name__ == "__main__":
    main()
