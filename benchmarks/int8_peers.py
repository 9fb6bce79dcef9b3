"""Int8 on this CPU: ONNX Runtime's own quantizer, NNCF and ours, on the same networks.

    make peers                                                  everything, hours on a small CPU
    python benchmarks/int8_peers.py export                      needs torch and torchvision
    python benchmarks/int8_peers.py quantize time report        needs neither
    python benchmarks/int8_peers.py --networks resnet18 --extra densenet121

Each network has a folder under --work; what is there already is not made again, so a run that was
killed goes on where it was. Networks have random weights and images are smooth noise, see
``peers_nets``: speed does not depend on either, and SQNR is comparable between quantizers only.
All variants of a network are timed interleaved in one process with an A/A control.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
from peers_nets import TABLE, export, images
from peers_quantizers import VARIANTS, produce

from compressor.core.environment import instruction_set, machine
from compressor.core.files import write_json, write_text
from compressor.core.hashing import digest_path
from compressor.core.types import Timing, TimingProtocol
from compressor.quantization.quality import compare
from compressor.quantization.samples import Samples
from compressor.runtime.timing import AA, aa_ratio, feed_digest, interleave, table

STEPS = ("export", "quantize", "time", "report")
REFERENCE, PEER = "fp32", "ort_u8s8"
_FED = 16


def step_export(folder: Path) -> None:
    """fp32.onnx of one network."""
    target = folder / "fp32.onnx"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{folder.name}: exporting", flush=True)
        export(folder.name, target)


def step_quantize(folder: Path) -> None:
    """VARIANT.onnx and VARIANT.json for every variant; a failure is a result, too."""
    fp32 = folder / "fp32.onnx"
    name, calibrate, measure = _feeds(fp32)

    def judge(made: Path) -> dict[str, Any]:
        sqnr, agreement = compare(fp32, made, Samples({name: measure}), 8)
        return {"sqnr": min(sqnr.values()), "agreement": agreement}

    produce(folder, VARIANTS, name, calibrate, judge)


def step_time(folder: Path, rounds: int, cell_ms: float, warmup_ms: float) -> None:
    """timing.json of all files of one network, unless it is of these very files."""
    files = {REFERENCE: folder / "fp32.onnx"}
    files |= {key: folder / f"{key}.onnx" for key in VARIANTS if (folder / f"{key}.onnx").exists()}
    digests = {name: digest_path(path) for name, path in files.items()}
    target = folder / "timing.json"
    if target.exists() and json.loads(target.read_text())["files"] == digests:
        return
    name, _, measure = _feeds(files[REFERENCE])
    feed = {name: measure[:_FED]}
    protocol = TimingProtocol("cpu", 1, 1, rounds, cell_ms, warmup_ms, feed_digest(feed))
    print(f"{folder.name}: timing {', '.join(files)}", flush=True)
    timing = interleave(files, protocol, feed)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    write_json(target, {"files": digests, "date": today, "machine": machine(),
                        "timing": asdict(timing)})  # fmt: skip


def _feeds(fp32: Path) -> tuple[str, Any, Any]:
    """Input name, images to calibrate and images to measure, of the model's own size."""
    proto = onnx.load(fp32, load_external_data=False).graph
    dims = [d.dim_value for d in proto.input[0].type.tensor_type.shape.dim]
    return proto.input[0].name, *images(dims[2], dims[3])


def gather(folder: Path) -> dict[str, Any]:
    """One network's row: speed-ups over fp32, SQNR and size of every variant."""
    kept = json.loads((folder / "timing.json").read_text())
    raw = kept["timing"]
    timing = Timing(**{**raw, "protocol": TimingProtocol(**raw["protocol"])})
    found = table(timing, REFERENCE)
    variants: dict[str, Any] = {}
    for key in VARIANTS:
        record = folder / f"{key}.json"
        if not record.exists():
            continue
        variants[key] = json.loads(record.read_text())
        if key in found:
            row = found[key]
            variants[key] |= {"speedup": asdict(row.baseline), "p50_ms": row.p50, "n": row.n}
    aa = aa_ratio(*([[ms] for ms in timing.rounds[name]] for name in (REFERENCE, AA)))
    return {"network": folder.name, "date": kept["date"], "machine": kept["machine"], "aa": aa,
            "unstable": timing.unstable, "note": timing.note, "fp32_ms": found[REFERENCE].p50,
            "fp32_bytes": (folder / "fp32.onnx").stat().st_size, "variants": variants}  # fmt: skip


def mean_ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric means over the networks that a variant was timed on, with the peer's over the same.

    Returns:
        Variant to ``over_fp32``, ``over_peer`` (ORT U8S8 per channel) and ``networks``.
    """
    means = {}
    for key in VARIANTS:
        pairs = [
            (v[key]["speedup"]["value"], v.get(PEER, {}).get("speedup", {}).get("value"))
            for v in (row["variants"] for row in rows) if "speedup" in v.get(key, {})
        ]  # fmt: skip
        if not pairs:
            continue
        means[key] = {"over_fp32": _geometric([a for a, _ in pairs]), "networks": len(pairs)}
        if both := [a / b for a, b in pairs if b]:
            means[key]["over_peer"] = _geometric(both)
    return means


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def markdown(rows: Sequence[dict[str, Any]], means: dict[str, dict[str, float]]) -> str:
    """The table: speed-up over fp32 [95 % interval] and SQNR in dB."""
    here, shown = rows[0]["machine"], [k for k in VARIANTS if any(k in r["variants"] for r in rows)]
    used = {f"{name} {v}" for row in rows for cell in row["variants"].values()
            for name, v in cell.get("versions", {}).items()}  # fmt: skip
    lines = [
        "# Int8 on the CPU: speed-up over fp32 and SQNR",
        "",
        f"{here['cpu']} ({instruction_set()}), 1 thread, batch 1, {rows[0]['date']}; "
        f"{', '.join(sorted(used))}. Repeat with `make peers`.",
        "",
        "Speed-up: median over interleaved rounds, 95 % interval in brackets, above 1 is "
        "faster than fp32. SQNR against fp32 with this machine's kernels on 64 images that did not "
        "calibrate. torchvision networks with random weights.",
        "",
        "| network | fp32 ms | A/A | " + " | ".join(VARIANTS[k].label for k in shown) + " |",
        "|---" * (3 + len(shown)) + "|",
    ]
    for row in rows:
        cells = [_cell(row["variants"].get(key, {})) for key in shown]
        aa = f"{row['aa']:.3f}" + (" unstable" if row["unstable"] else "")
        lines.append(f"| {row['network']} | {row['fp32_ms']:.2f} | {aa} | {' | '.join(cells)} |")
    ends = [f"{means[k]['over_fp32']:.2f}x" if k in means else "" for k in shown]
    lines.append(f"| geometric mean | | | {' | '.join(ends)} |")
    return "\n".join(lines) + "\n"


def _cell(found: dict[str, Any]) -> str:
    if "error" in found:
        return "failed: " + str(found["error"]).replace("|", "/")[:80]
    if "speedup" not in found:
        return "not run"
    gain = found["speedup"]
    bounds = f"[{gain['low']:.2f}, {gain['high']:.2f}]"
    return f"{gain['value']:.2f}x {bounds}, {found['sqnr']:.1f} dB"


def step_report(folders: Sequence[Path], results: Path) -> None:
    """JSON and Markdown of the networks that have been timed, per kind of CPU."""
    rows = [gather(folder) for folder in folders if (folder / "timing.json").exists()]
    if not rows:
        raise SystemExit("nothing has been timed yet; run the steps before")
    if len({json.dumps(row["machine"], sort_keys=True) for row in rows}) > 1:
        print("warning: the networks were not timed on one machine with one set of versions")
    means, stem = mean_ratios(rows), results / f"int8_peers.{instruction_set()}"
    text = markdown(rows, means)
    write_json(Path(f"{stem}.json"), {"schema": 1, "means": means, "networks": rows})
    write_text(Path(f"{stem}.md"), text)
    print(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the asked-for steps over all networks."""
    kind = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--networks", nargs="*", default=list(TABLE))
    parser.add_argument("--extra", nargs="*", default=[], help="more torchvision networks")
    parser.add_argument("--work", type=Path, default=Path(".peers"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cell-ms", type=float, default=50.0)
    parser.add_argument("--warmup-ms", type=float, default=500.0)
    args = parser.parse_args(arguments)
    if unknown := sorted(set(args.steps) - set(STEPS)):
        parser.error(f"unknown step {', '.join(unknown)}; known: {', '.join(STEPS)}")
    folders = [args.work / name for name in (*args.networks, *args.extra)]
    steps = args.steps or STEPS
    for step, run in (("export", step_export), ("quantize", step_quantize)):
        for folder in folders if step in steps else ():
            run(folder)
    for folder in folders if "time" in steps else ():
        step_time(folder, args.rounds, args.cell_ms, args.warmup_ms)
    if "report" in steps:
        step_report(folders, args.results)


if __name__ == "__main__":
    main()
