"""The model card of a bundle, written from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_USE = """\
```python
import json, numpy as np, onnxruntime as ort
with open("preprocessing.json") as file:
    spec = json.load(file)["inputs"]
session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
name, row = next(iter(spec.items()))
raw = np.zeros([1, *row["shape"][1:]], row["from"])     # your sample, {layout}
feed = {{name: (raw / row["divide_by"]).astype(row["dtype"])}}
outputs = session.run(None, feed)[0]                    # {meaning}
```
"""


def text(manifest: Mapping[str, Any], layout: str = "as in preprocessing.json") -> str:
    """Markdown with a Hugging Face header: what it is, what was measured where, how to use it."""
    claims, target, machine = manifest["claims"], manifest["target"], manifest["machine"]
    classes = manifest["task"] == "classification"
    meaning = "logits; labels.json names the classes" if classes else "values"
    parts = [
        "---\nlibrary_name: onnx\ntags: [onnx, onnxruntime, "
        f"{manifest['model']['precision']}, compressor]\n---",
        f"# {_plain(manifest['name'])}",
        f"`model.onnx` is `{_plain(manifest['model']['name'])}` "
        f"({manifest['model']['precision']}, {claims['bytes']:,} bytes), trained on "
        f"{_plain(manifest['dataset']['name'])} and compressed by compressor "
        f"{manifest['versions']['compressor']}.",
        _warnings(manifest),
        "## Measured",
        f"{_plain(str(machine.get('cpu', 'unknown CPU')))}, {target['instruction_set']}, "
        f"{target['provider']}, {target['threads']} threads, batch {target['batch']}; "
        f"{claims['metric']} on the validation split. Latencies hold for this machine alone; "
        "`python verify.py` measures yours.",
        _table(manifest),
        "## Why this file",
        "\n".join(f"- {_plain(reason)}" for reason in manifest["reasons"]),
        "## Use",
        _USE.format(layout=layout, meaning=meaning),
        "Inputs are described in `preprocessing.json`; mean and standard deviation are inside "
        "the graph.",
        "## Verify",
        "`python verify.py` checks every hash and the golden outputs and needs NumPy and ONNX "
        "Runtime only; `python verify.py --choose --json F` times the variants on your device.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(manifest: Mapping[str, Any]) -> str:
    claims = manifest["claims"]
    rows = {manifest["model"]["name"]: claims, **manifest["variants"]}
    versus = [claims["baseline"], *([claims["reference"]] if claims["reference"] else [])]
    head = ["file", f"{claims['metric']} ({claims['unit']})", "drop", "p50 ms", "bytes"]
    head += [f"speed-up over {_plain(name)}" for name in versus]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        cells = [f"{_plain(name)} (`{row['file']}`)", f"{row['score_val']:.2f}"]
        cells += [f"{row['drop_val']:.2f}", f"{row['p50_ms']:.4g}", f"{row['bytes']:,}"]
        kinds = ["baseline", "reference"][: len(versus)]
        cells += [_interval(row["speedup"][kind]) for kind in kinds]
        lines.append("| " + " | ".join(cells) + " |")
    teacher = claims["teacher"]
    lines.append("")
    lines.append(f"Drops are against {_plain(teacher['name'])} ({teacher['score_val']:.2f}).")
    return "\n".join(lines)


def _interval(row: Mapping[str, float]) -> str:
    return f"{row['value']:.2f}x [{row['low']:.2f}, {row['high']:.2f}]"


def _warnings(manifest: Mapping[str, Any]) -> str:
    lines = []
    if not manifest["within"]:
        lines.append(f"**No candidate was within {manifest['max_drop']:g} points of the teacher; "
                     "this is the best float model.**")  # fmt: skip
    if manifest["timings"]["unstable"]:
        note = _plain(manifest["timings"]["note"])
        lines.append(f"**The latencies are unstable ({note}); do not rely on them.**")
    return "\n\n".join(lines)


def _plain(words: str) -> str:
    """Names come from users' files: no markup, no line breaks."""
    clean = " ".join(words.split())
    return "".join("\\" + c if c in "\\`*_<>|#[]" else c for c in clean)
