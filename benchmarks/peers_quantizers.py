"""The quantizers that are compared, each on the same file and the same 32 images."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers_nets import Images

from compressor.core.files import write_json
from compressor.core.hashing import digest_path
from compressor.quantization.target import TargetName
from compressor.runtime.predict import npz_bytes

_BATCH = 8
_OURS = ("compressor", "onnxruntime", "onnx")
_MAIN = "from compressor.cli import main; main()"

Run = Callable[[Path, Path, str, Images, str], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Variant:
    """One column of the table.

    Attributes:
        label: Its head.
        run: (fp32 file, output file, input name, images [n, 3, H, W], network) writes the file and
            may return facts for its record.
        missing: Why it cannot run here; empty if it can.
        packages: Whose versions are recorded.
    """

    label: str
    run: Run
    missing: Callable[[], str] = lambda: ""
    packages: tuple[str, ...] = ("onnxruntime", "onnx")


class Reader:
    """What ``quantize_static`` reads: batches of 8."""

    def __init__(self, name: str, samples: Images) -> None:
        """Feed ``samples`` to the input ``name``."""
        starts = range(0, len(samples), _BATCH)
        self._feeds: Iterator[dict[str, Images]] = iter(
            [{name: samples[i : i + _BATCH]} for i in starts]
        )

    def get_next(self) -> dict[str, Images] | None:
        """The next feed, or None at the end."""
        return next(self._feeds, None)


def ort(**options: Any) -> Run:
    """``quantize_static`` behind the preprocessing that it asks for."""

    def run(fp32: Path, out: Path, name: str, samples: Images, network: str) -> None:
        from onnxruntime.quantization import QuantType, quant_pre_process, quantize_static

        kinds = {k: getattr(QuantType, v) if k.endswith("_type") else v
                 for k, v in options.items()}  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            ready = Path(folder, "ready.onnx")
            try:
                quant_pre_process(str(fp32), str(ready))
            except Exception as error:  # its symbolic shapes give up on some graphs
                print(f"{network}: quant_pre_process failed, going on without ({error})")
                shutil.copyfile(fp32, ready)
            quantize_static(str(ready), str(out), Reader(name, samples), **kinds)

    return run


def nncf(fp32: Path, out: Path, name: str, samples: Images, network: str) -> None:
    """``nncf.quantize`` with its defaults; transformers are declared as its manual asks."""
    os.environ["NNCF_CI"] = "1"  # sends nothing home
    import nncf as room
    import onnx

    kind = room.ModelType.TRANSFORMER if network.startswith(("vit", "swin")) else None
    data = room.Dataset([{name: samples[i : i + 1]} for i in range(len(samples))])
    made = room.quantize(onnx.load(fp32), data, subset_size=len(samples), model_type=kind)
    onnx.save(made, out)


def plain(target: TargetName = "portable") -> Run:
    """Ours without placement: everything that can be int8 is. Every fifth image is held out."""

    def run(fp32: Path, out: Path, name: str, samples: Images, network: str) -> None:
        from compressor.quantization.plain import Options, quantize

        quantize(fp32, out, {name: samples}, Options(target, batch=_BATCH))

    return run


def measured(as_good_as: str = "") -> Run:
    """Ours as the command does it, placement measured on this machine.

    With ``as_good_as``, the name of another variant, the least SQNR that is asked for is the one
    that variant has, so that speeds are compared at equal accuracy; else the command's own.
    """

    def run(fp32: Path, out: Path, name: str, samples: Images, network: str) -> Mapping[str, Any]:
        more = []
        if as_good_as:
            least = json.loads((fp32.parent / f"{as_good_as}.json").read_text())["sqnr"]
            more = ["--min-sqnr", f"{least:.2f}"]
        with tempfile.TemporaryDirectory() as folder:
            feed = Path(folder, "calibration.npz")
            feed.write_bytes(npz_bytes({name: samples}))
            arguments = [str(fp32), "--calibration", str(feed), "-o", str(out), "--placement",
                         "measured", "--force", "--json", *more]  # fmt: skip
            table = json.loads(_command(["quantize", *arguments]))
        forms = [row["form"] for row in table["regions"]]
        return {"verdict": table["verdict"], "counted_s": table["placement"]["seconds"],
                "regions": len(forms), "int8_regions": forms.count("int8")}  # fmt: skip

    return run


def no_module(name: str) -> Callable[[], str]:
    """Says so where a package is not installed."""
    return lambda: "" if importlib.util.find_spec(name) else f"{name} is not installed here"


def no_placement() -> str:
    """Says so where the command has no measured placement."""
    known = "--placement" in _command(["quantize", "--help"])
    return "" if known else "this compressor has no --placement"


def _command(arguments: Sequence[str]) -> str:
    ran = subprocess.run([sys.executable, "-c", _MAIN, *arguments], capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"compressor {arguments[0]} ended with {ran.returncode}: {ran.stderr}")
    return ran.stdout


def produce(
    folder: Path,
    variants: Mapping[str, Variant],
    name: str,
    samples: Images,
    judge: Callable[[Path], dict[str, Any]],
) -> None:
    """Quantize ``fp32.onnx`` of a folder to VARIANT.onnx and VARIANT.json, those not there yet.

    Args:
        folder: One network's; its name is the network's.
        variants: What to make; one that cannot run here is left out, one that fails is recorded.
        name: Of the input.
        samples: To calibrate, as the model takes them.
        judge: Facts about a file for its record, e.g. SQNR.
    """
    fp32 = folder / "fp32.onnx"
    for key, variant in variants.items():
        out, record = folder / f"{key}.onnx", folder / f"{key}.json"
        if record.exists():
            continue
        if why := variant.missing():
            print(f"{folder.name}: {key}: left out, {why}", flush=True)
            continue
        print(f"{folder.name}: {key}", flush=True)
        beside = folder / f"{key}.part.onnx"
        beside.unlink(missing_ok=True)
        began = time.perf_counter()
        try:
            told = variant.run(fp32, beside, name, samples, folder.name)
            seconds = time.perf_counter() - began
            facts = {**judge(beside), **(told or {})}
        except Exception as error:  # peers raise what they like
            line = (str(error).strip().splitlines() or [""])[-1][:300]
            write_json(record, {"error": f"{type(error).__name__}: {line}"})
            continue
        os.replace(beside, out)
        write_json(record, {
            **facts, "seconds": seconds, "bytes": out.stat().st_size, "digest": digest_path(out),
            "versions": {p: importlib.metadata.version(p) for p in variant.packages},
        })  # fmt: skip


# Intel Neural Compressor is not among them: its 3.10 wheel holds quantizers for torch, tensorflow
# and jax, and nothing that reads or writes ONNX.
VARIANTS = {
    "ort_default": Variant("ORT defaults", ort()),
    "ort_u8s8": Variant(
        "ORT U8S8 per channel",
        ort(per_channel=True, activation_type="QUInt8", weight_type="QInt8"),
    ),
    "nncf": Variant("NNCF", nncf, no_module("nncf"), ("nncf", "onnxruntime", "onnx")),
    "plain": Variant("ours, plain", plain(), packages=_OURS),
    "plain_host": Variant("ours, plain, target host", plain("host"), packages=_OURS),
    "measured": Variant("ours", measured(), no_placement, _OURS),
    "as_good": Variant("ours, SQNR of ORT U8S8", measured("ort_u8s8"), no_placement, _OURS),
}
