"""What quantizing costs: our plain mode beside ``quantize_static``, and the default mode.

    python benchmarks/quantize_cost.py                           about 12 minutes, quiet machine
    python benchmarks/quantize_cost.py --plain squeezenet1_1 --samples 32 --rounds 1 --default ""

Plain is ``compressor quantize --placement none`` (min-max, no sensitivity) beside
``quantize_static`` (U8S8, per channel, min-max) on the same file and samples, each with the CPUs
that it takes by itself. ``quantize_static`` is given our command's batches of 32, and again
batches of 8, which suit it better. Every run is a fresh process, from its start to its end; a round
runs all of them and ours a second time as A/A control, in random order. Default is ``compressor
quantize`` as it is, placement measured. Networks and images are those of ``peers_nets``; what is
exported under --work is not exported again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from peers_nets import export, images

from compressor.core.environment import instruction_set, machine, usable_threads, version
from compressor.core.files import write_json
from compressor.runtime.predict import npz_bytes
from compressor.stats.ratios import ratio

OURS, AGAIN, PEER = "compressor", "compressor again", "quantize_static, batch {}"
BATCHES = (32, 8)
_MAIN = "from compressor.cli import main; main()"


@dataclass(frozen=True)
class Spent:
    """One process: wall and CPU seconds, peak memory, and what it printed."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    text: str = ""


# Linux counts the memory of whoever starts a process as its own, so a small process starts it.
_LAUNCH = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
ran = subprocess.run(sys.argv[1:], capture_output=True, text=True)
wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
print(json.dumps([ran.returncode, ran.stderr, wall, cpu, peak, ran.stdout]))
"""


def spent(command: Sequence[str]) -> Spent:
    """Run a process to its end. Raises RuntimeError with its last words if it fails."""
    launch = [sys.executable, "-I", "-S", "-c", _LAUNCH, *command]
    ran = subprocess.run(launch, capture_output=True, text=True, check=True)
    code, errors, *numbers = json.loads(ran.stdout)
    if code:
        line = (errors.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"{' '.join(command)}: exit {code}: {line}")
    return Spent(*numbers)


def commands(fp32: Path, feed: Path, out: Path) -> dict[str, list[str]]:
    """How each quantizer is called."""
    ours = _ours(fp32, feed, out, "--placement", "none")
    script = Path(__file__).with_name("static_process.py")
    beside = [sys.executable, str(script), str(fp32), str(feed), str(out)]
    return {OURS: ours, AGAIN: ours, **{PEER.format(b): [*beside, str(b)] for b in BATCHES}}


def _ours(fp32: Path, feed: Path, out: Path, *more: str) -> list[str]:
    files = [str(fp32), "--calibration", str(feed), "-o", str(out)]
    return [sys.executable, "-c", _MAIN, "quantize", *files, "--force", "--json", *more]


def plain(fp32: Path, feed: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Rounds of all, with the ratios of their wall times to ours (above 1: ours takes less)."""
    calls = commands(fp32, feed, folder / "out.onnx")
    found: dict[str, list[Spent]] = {name: [] for name in calls}
    order = random.Random(0)
    for number in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            one = spent(calls[name])
            print(f"round {number}: {name:26} {one.wall_s:7.2f} s wall, {one.cpu_s:7.2f} s CPU, "
                  f"{one.peak_mb:6.0f} MB", flush=True)  # fmt: skip
            found[name].append(one)
    walls = {name: [one.wall_s for one in runs] for name, runs in found.items()}
    return {
        "runs": {name: [_numbers(one) for one in runs] for name, runs in found.items()},
        "over_ours": {
            name: asdict(ratio(taken, walls[OURS])) for name, taken in walls.items() if name != OURS
        },
        "peak_mb": {name: max(one.peak_mb for one in runs) for name, runs in found.items()},
    }


def default(fp32: Path, feed: Path, folder: Path) -> dict[str, Any]:
    """One run of the command as it is, with the seconds that its budget has counted."""
    one = spent(_ours(fp32, feed, folder / "default.onnx"))
    table = json.loads(one.text)
    return {**_numbers(one), "counted_s": table["placement"]["seconds"],
            "verdict": table["verdict"]}  # fmt: skip


def _numbers(one: Spent) -> dict[str, float]:
    return {"wall_s": one.wall_s, "cpu_s": one.cpu_s, "peak_mb": one.peak_mb}


def ready(network: str, work: Path, samples: int) -> tuple[Path, Path]:
    """fp32.onnx of a network, and ``samples`` images for it."""
    fp32 = work / network / "fp32.onnx"
    fp32.parent.mkdir(parents=True, exist_ok=True)
    if not fp32.exists():
        export(network, fp32)
    entry = onnx.load(fp32, load_external_data=False).graph.input[0]
    dims = [d.dim_value for d in entry.type.tensor_type.shape.dim]
    feed = fp32.parent / f"images-{samples}.npz"
    if not feed.exists():
        feed.write_bytes(npz_bytes({entry.name: images(dims[2], dims[3], count=samples)[0]}))
    return fp32, feed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write JSON."""
    kind = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--plain", default="resnet50", help='network of the comparison, or ""')
    parser.add_argument("--default", default="mobilenet_v3_small", help='network, or ""')
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(".peers"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args(arguments)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    packages = ("compressor", "onnxruntime", "onnx")
    record: dict[str, Any] = {
        "schema": 1, "date": today, "machine": machine(), "cpus": usable_threads(),
        "versions": {p: version(p) for p in packages},
        "settings": {"samples": args.samples, "rounds": args.rounds},
    }  # fmt: skip
    if args.plain:
        fp32, feed = ready(args.plain, args.work, args.samples)
        found = plain(fp32, feed, args.work, args.rounds)
        record["plain"] = {"network": args.plain, **found}
        for name, r in found["over_ours"].items():
            print(f"{name:26} takes {r['value']:.2f}x [{r['low']:.2f}, {r['high']:.2f}] our time")
    if args.default:
        fp32, feed = ready(args.default, args.work, args.samples)
        found = default(fp32, feed, args.work)
        record["default"] = {"network": args.default, **found}
        print(f"default: {found['wall_s']:.1f} s wall, {found['counted_s']:.1f} s counted of the "
              f"budget, {found['peak_mb']:.0f} MB: {found['verdict']}")  # fmt: skip
    write_json(args.results / f"quantize_cost.{instruction_set()}.json", record)


if __name__ == "__main__":
    main()
