"""Accuracy that int8 costs on trained networks: ours and the peers, on the test split of a run.

    compressor run pipelines/fashion_mnist.yaml && compressor run benchmarks/fashion_networks.yaml
    python benchmarks/int8_trained.py runs/fashion_mnist/latest runs/fashion_networks/latest

Every fp32 file of the runs is quantized by every variant of ``peers_quantizers`` from the run's
own calibration split, and compared with itself on the whole test split: drop with its one-sided
95 % bound (Tango), agreement and SQNR, with this machine's kernels. Nothing is timed here, but the
variants ``measured`` and ``as_good`` need a quiet machine while they quantize; --variants leaves
them for later. What is in --work already is not made again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from peers_quantizers import VARIANTS, produce

from compressor.core import results
from compressor.core.environment import instruction_set, machine
from compressor.core.files import write_json, write_text
from compressor.core.store import Store
from compressor.core.types import DATASET, ONNX
from compressor.data import dataset
from compressor.quantization.quality import decibel
from compressor.runtime import metadata, predict
from compressor.stats.paired import compare

_JUDGED = ("drop", "drop_upper", "agreement", "sqnr")
_SUMMARY = {
    "networks": "networks judged",
    "mean_drop": "mean drop, points",
    "worst_upper": "highest bound, points",
    "least_agreement": "least agreement, %",
    "median_sqnr": "median SQNR, dB",
    "least_sqnr": "least SQNR, dB",
}


def networks(run: Path, store: Store) -> Iterator[tuple[str, Path, Path]]:
    """(name, fp32 file, dataset folder) of every fp32 model that a run has kept."""
    record = results.load(run)
    outputs = [(stage, output) for stage in record.stages for output in stage.outputs.values()]
    data = next(store.object(o.digest) for _, o in outputs if o.kind == DATASET)
    seen = set()  # a bundle's model may be one of the exported ones
    for stage, output in outputs:
        if output.kind != ONNX or not output.file or output.digest in seen:
            continue
        path = run / output.file
        if metadata.read(path).get(metadata.PRECISION) == "fp32":
            seen.add(output.digest)
            yield f"{record.name}-{stage.name}-{output.digest[:8]}", path, data


def judge_one(folder: Path, data: dataset.Dataset, variants: Any) -> dict[str, Any]:
    """Quantize by ``variants``; returns the row of all that have been made."""
    (name,) = data.inputs
    test = data.split("test")
    fp32 = folder / "fp32.onnx"
    exact = predict.run(fp32, {name: test.inputs[name]})
    right = exact.argmax(axis=1) == test.labels

    def judge(made: Path) -> dict[str, Any]:
        got = predict.run(made, {name: test.inputs[name]})
        paired = compare(right, got.argmax(axis=1) == test.labels)
        signal, noise = (float((a.astype(np.float64) ** 2).sum()) for a in (exact, exact - got))
        return {
            "drop": 100 * paired.drop,
            "drop_upper": 100 * paired.upper(),
            "agreement": 100 * float((exact.argmax(axis=1) == got.argmax(axis=1)).mean()),
            "sqnr": decibel(signal, noise),
        }

    stored = data.split("calibration").inputs[name]
    produce(folder, variants, name, dataset.as_float(stored, data.inputs[name]), judge)
    records = {key: folder / f"{key}.json" for key in VARIANTS}
    made = {key: json.loads(path.read_text()) for key, path in records.items() if path.exists()}
    return {"network": folder.name, "accuracy": 100 * float(right.mean()), "samples": len(test),
            "variants": made}  # fmt: skip


def markdown(rows: Sequence[dict[str, Any]], variants: Any) -> str:
    """Drop in points (its upper bound), agreement and SQNR of every variant on every network."""
    here, shown = machine(), [k for k in variants if any(k in row["variants"] for row in rows)]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        "# What int8 costs trained networks",
        "",
        f"{here['cpu']} ({instruction_set()}), {today}. Against fp32 on the test split: drop of "
        "top-1 in points (one-sided 95 % upper bound), agreement of top-1, SQNR (200: equal). "
        "Repeat with `benchmarks/int8_trained.py RUN`.",
        "",
        "| network | samples | fp32 | " + " | ".join(variants[k].label for k in shown) + " |",
        "|---" * (3 + len(shown)) + "|",
    ]
    for row in rows:
        cells = [_cell(row["variants"].get(key, {})) for key in shown]
        start = f"| {row['network']} | {row['samples']} | {row['accuracy']:.2f} %"
        lines.append(f"{start} | {' | '.join(cells)} |")
    found = summary(rows, shown)
    for name, words in _SUMMARY.items():
        cells = [f"{found[key][name]:.6g}" if key in found else "" for key in shown]
        lines.append(f"| {words} | | | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[dict[str, Any]], variants: Iterable[str]) -> dict[str, dict[str, float]]:
    """Per variant: mean and worst over the networks that it was judged on.

    Returns:
        Variant to ``networks``, ``mean_drop`` and ``worst_upper`` in points, ``least_agreement``
        in percent, ``median_sqnr`` and ``least_sqnr`` in dB.
    """
    result = {}
    for key in variants:
        cells = [row["variants"][key] for row in rows if "drop" in row["variants"].get(key, {})]
        if not cells:
            continue
        by = {name: [cell[name] for cell in cells] for name in cells[0] if name in _JUDGED}
        result[key] = {
            "networks": len(cells),
            "mean_drop": fmean(by["drop"]),
            "worst_upper": max(by["drop_upper"]),
            "least_agreement": min(by["agreement"]),
            "median_sqnr": median(by["sqnr"]),
            "least_sqnr": min(by["sqnr"]),
        }
    return result


def _cell(found: dict[str, Any]) -> str:
    if "drop" not in found:
        return "failed" if found else "not run"
    return (f"{found['drop']:.2f} ({found['drop_upper']:.2f}), {found['agreement']:.2f} %, "
            f"{found['sqnr']:.1f} dB")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Quantize and judge every fp32 model of the given runs."""
    kind = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--store", type=Path, default=None)
    parser.add_argument("--work", type=Path, default=Path(".peers/trained"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, help="quantize by these only")
    args = parser.parse_args(arguments)
    chosen = {k: v for k, v in VARIANTS.items() if args.variants is None or k in args.variants}
    store = Store(args.store or Path(os.environ.get("COMPRESSOR_STORE") or ".compressor"))
    rows = []
    for run in args.runs:
        for name, fp32, data in networks(run, store):
            folder = args.work / name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fp32, folder / "fp32.onnx")
            rows.append(judge_one(folder, dataset.load(data), chosen))
    if not rows:
        raise SystemExit("these runs keep no fp32 model")
    stem, text = args.results / f"int8_trained.{instruction_set()}", markdown(rows, VARIANTS)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    facts = {"schema": 1, "date": today, "machine": machine(), "summary": summary(rows, VARIANTS),
             "networks": rows}  # fmt: skip
    write_json(Path(f"{stem}.json"), facts)
    write_text(Path(f"{stem}.md"), text)
    print(text)


if __name__ == "__main__":
    main()
