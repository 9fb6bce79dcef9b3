"""Int8 on this CPU: ONNX Runtime's own quantizer, NNCF and ours, on the same networks.

    make peers                                                   everything, in one go
    python benchmarks/int8_peers.py export                       needs torch and torchvision
    python benchmarks/int8_peers.py quantize --variants nncf     needs neither, nor a quiet machine
    python benchmarks/int8_peers.py quantize time report         what is missing, on a quiet machine
    python benchmarks/int8_peers.py --networks resnet18 convnext_tiny

Each network has a folder under --work; what is there already is not made again, so a run that was
killed goes on where it was. Networks have random weights and images are smooth noise, see
``peers_nets``: speed does not depend on either, and SQNR is comparable between quantizers only.
All variants of a network are timed interleaved in one process with an A/A control. Only the
variants ``measured`` and ``as_good`` need a quiet machine while they quantize.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
from peers_nets import OTHERS, TABLE, export, images
from peers_quantizers import VARIANTS, Variant, produce

from compressor.core.environment import instruction_set, machine
from compressor.core.files import write_json, write_text
from compressor.core.hashing import digest_path
from compressor.core.types import Timing, TimingProtocol
from compressor.quantization.quality import Judge
from compressor.quantization.samples import Samples
from compressor.runtime.session import open_session
from compressor.runtime.timing import AA, feed_digest, interleave, table
from compressor.stats.ratios import ratio

STEPS = ("export", "quantize", "time", "report")
REFERENCE, PEER = "fp32", "ort_u8s8"
_FED = 16
_LEAST_ROUNDS = 10


def step_export(folder: Path) -> None:
    """fp32.onnx of one network."""
    target = folder / "fp32.onnx"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{folder.name}: exporting", flush=True)
        export(folder.name, target)


def step_quantize(folder: Path, variants: Mapping[str, Variant]) -> None:
    """VARIANT.onnx and VARIANT.json for every variant; a failure is a result, too."""
    fp32 = folder / "fp32.onnx"
    name, calibrate, measure = _feeds(fp32)
    judges = Judge(fp32, Samples({name: measure}))  # runs fp32 once for all variants

    def judge(made: Path) -> dict[str, Any]:
        found = judges.look(made)
        return {"sqnr": found.worst, "agreement": found.agreement}

    produce(folder, variants, name, calibrate, judge)


def step_time(folder: Path, protocol: TimingProtocol, limit: float) -> None:
    """timing.json of all files of one network, unless it is of these very files.

    Args:
        folder: The network's.
        protocol: How, with the most rounds; its inputs are filled in.
        limit: Seconds that the rounds may take, if 10 of them fit.
    """
    files = {REFERENCE: folder / "fp32.onnx"}
    files |= {key: folder / f"{key}.onnx" for key in VARIANTS if (folder / f"{key}.onnx").exists()}
    digests = {name: digest_path(path) for name, path in files.items()}
    target = folder / "timing.json"
    if target.exists() and json.loads(target.read_text())["files"] == digests:
        return
    name, _, measure = _feeds(files[REFERENCE])
    feed = {name: measure[:_FED]}
    calls = [_call_ms(path, {name: measure[:1]}) for path in files.values()]
    protocol = replace(protocol, rounds=fitting(calls, protocol, limit), inputs=feed_digest(feed))
    print(f"{folder.name}: timing {', '.join(files)}, {protocol.rounds} rounds", flush=True)
    timing = interleave(files, protocol, feed)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    write_json(target, {"files": digests, "date": today, "machine": machine(),
                        "timing": asdict(timing)})  # fmt: skip


def _call_ms(path: Path, feed: dict[str, Any]) -> float:
    session = open_session(path)
    session.run(None, feed)
    began = time.perf_counter()
    session.run(None, feed)
    return 1e3 * (time.perf_counter() - began)


def fitting(calls: Sequence[float], protocol: TimingProtocol, limit: float) -> int:
    """How many rounds of models with these calls (ms) fit ``limit`` seconds, from 10 up."""
    twice = [*calls, calls[0]]  # the A/A control
    each = sum(max(protocol.min_cell_ms, ms) + ms for ms in twice) / 1e3
    return max(_LEAST_ROUNDS, min(protocol.rounds, int(limit / each)))


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
    aa = asdict(ratio(timing.rounds[REFERENCE], timing.rounds[AA]))
    return {"network": folder.name, "date": kept["date"], "machine": kept["machine"], "aa": aa,
            "unstable": timing.unstable, "note": timing.note, "fp32_ms": found[REFERENCE].p50,
            "fp32_bytes": (folder / "fp32.onnx").stat().st_size, "variants": variants}  # fmt: skip


def mean_ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric means over the networks that a variant was timed on, with the peer's over the same.

    Returns:
        Variant to ``over_fp32``, ``over_peer`` (ORT U8S8 per channel), ``networks``, ``slower``
        (networks on which it is slower than fp32, beyond its interval and the A/A control's) and
        ``sqnr_over_peer``, the least difference in dB.
    """
    means: dict[str, dict[str, float]] = {}
    for key in VARIANTS:
        timed = [row for row in rows if "speedup" in row["variants"].get(key, {})]
        if not timed:
            continue
        speeds = [row["variants"][key]["speedup"]["value"] for row in timed]
        means[key] = {"over_fp32": _geometric(speeds), "networks": len(timed),
                      "slower": sum(_slower(row, key) for row in timed)}  # fmt: skip
        both = [(row["variants"][key], row["variants"][PEER])
                for row in timed if "speedup" in row["variants"].get(PEER, {})]  # fmt: skip
        if both:
            pairs = [(a["speedup"]["value"], b["speedup"]["value"]) for a, b in both]
            means[key]["over_peer"] = _geometric([a / b for a, b in pairs])
            means[key]["sqnr_over_peer"] = min(a["sqnr"] - b["sqnr"] for a, b in both)
    return means


def _slower(row: dict[str, Any], key: str) -> bool:
    speed = row["variants"][key]["speedup"]
    return bool(speed["high"] < 1.0 and speed["value"] < row["aa"]["low"])


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def markdown(rows: Sequence[dict[str, Any]]) -> str:
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
        "calibrate. torchvision networks with random weights. Means are geometric; behind the "
        f"slash, over {VARIANTS[PEER].label if PEER in VARIANTS else PEER} on the same networks.",
        "",
        "| network | fp32 ms | A/A | " + " | ".join(VARIANTS[k].label for k in shown) + " |",
        "|---" * (3 + len(shown)) + "|",
    ]
    for part, means in grouped(rows):
        for row in part:
            cells = [_cell(row["variants"].get(key, {})) for key in shown]
            aa = _bounded(row["aa"]) + (" unstable" if row["unstable"] else "")
            start = f"| {row['network']} | {row['fp32_ms']:.2f} | {aa}"
            lines.append(f"{start} | {' | '.join(cells)} |")
        ends = [_ending(means.get(key)) for key in shown]
        lines.append(f"| mean of {len(part)} | | | {' | '.join(ends)} |")
    return "\n".join(lines) + "\n"


def grouped(
    rows: Sequence[dict[str, Any]],
) -> list[tuple[list[dict[str, Any]], dict[str, dict[str, float]]]]:
    """The networks of the table and all others, each with their means; groups that have any."""
    parts = ([r for r in rows if (r["network"] in TABLE) == inside] for inside in (True, False))
    return [(part, mean_ratios(part)) for part in parts if part]


def _ending(mean: dict[str, float] | None) -> str:
    if mean is None:
        return ""
    peer = f" / {mean['over_peer']:.2f}x" if "over_peer" in mean else ""
    return f"{mean['over_fp32']:.2f}x{peer}"


def _bounded(gain: dict[str, float]) -> str:
    return f"{gain['value']:.2f}x [{gain['low']:.2f}, {gain['high']:.2f}]"


def _cell(found: dict[str, Any]) -> str:
    if "error" in found:
        return "failed: " + str(found["error"]).replace("|", "/")[:80]
    if "speedup" not in found:
        return "not run"
    return f"{_bounded(found['speedup'])}, {found['sqnr']:.1f} dB"


def step_report(folders: Sequence[Path], results: Path) -> None:
    """JSON and Markdown of the networks that have been timed, per kind of CPU."""
    rows = [gather(folder) for folder in folders if (folder / "timing.json").exists()]
    if not rows:
        raise SystemExit("nothing has been timed yet; run the steps before")
    if len({json.dumps(row["machine"], sort_keys=True) for row in rows}) > 1:
        print("warning: the networks were not timed on one machine with one set of versions")
    stem, text = results / f"int8_peers.{instruction_set()}", markdown(rows)
    means = [{"networks": [row["network"] for row in part], "variants": found}
             for part, found in grouped(rows)]  # fmt: skip
    write_json(Path(f"{stem}.json"), {"schema": 1, "means": means, "networks": rows})
    write_text(Path(f"{stem}.md"), text)
    print(text)


def _known(
    parser: argparse.ArgumentParser, what: str, asked: Sequence[str], known: Sequence[str]
) -> None:
    if unknown := sorted(set(asked) - set(known)):
        parser.error(f"unknown {what} {', '.join(unknown)}; known: {', '.join(known)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the asked-for steps over all networks."""
    kind = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--networks", nargs="*", default=[*TABLE, *OTHERS])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="quantize these only")
    parser.add_argument("--work", type=Path, default=Path(".peers"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--rounds", type=int, default=30, help="at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="per network, for its rounds")
    parser.add_argument("--cell-ms", type=float, default=50.0)
    parser.add_argument("--warmup-ms", type=float, default=500.0)
    args = parser.parse_args(arguments)
    _known(parser, "step", args.steps, STEPS)
    _known(parser, "variant", args.variants, list(VARIANTS))
    folders = [args.work / name for name in dict.fromkeys(args.networks)]
    steps = args.steps or STEPS
    for folder in folders if "export" in steps else ():
        step_export(folder)
    for folder in folders if "quantize" in steps else ():
        step_quantize(folder, {key: VARIANTS[key] for key in args.variants})
    protocol = TimingProtocol("cpu", 1, 1, args.rounds, args.cell_ms, args.warmup_ms)
    for folder in folders if "time" in steps else ():
        step_time(folder, protocol, args.seconds)
    if "report" in steps:
        step_report(folders, args.results)


if __name__ == "__main__":
    main()
