"""Verify a compressor bundle: hashes, golden outputs, latency. Needs only NumPy and ONNX Runtime.

    python verify.py [BUNDLE]                      check the bundle (default: this file's folder)
    python verify.py [BUNDLE] --choose --json F    and time the variants on this device

Exit codes: 0 ok, 2 usage, 5 the bundle is not what its manifest says, 6 no ONNX Runtime here.
This file is copied into every bundle, so it imports nothing of compressor. What the manifest
cannot prove is who wrote it: compare its own sha256 with one you got on another way.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import stat
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

try:
    import onnxruntime
except ImportError:  # said by main(), with an exit code
    onnxruntime = None

SCHEMA = 1
MANIFEST = "manifest.json"
OK, USAGE, INTEGRITY, MISSING = 0, 2, 5, 6
_MAX_JSON = 16 << 20
_MAX_ARRAYS = 1 << 30
_WARM_MS, _TIMED_MS, _CELL_MS, _ROUNDS = 300.0, 700.0, 20.0, 30
_TYPES = {
    "tensor(float)": "f4", "tensor(float16)": "f2", "tensor(double)": "f8", "tensor(uint8)": "u1",
    "tensor(int8)": "i1", "tensor(int32)": "i4", "tensor(int64)": "i8", "tensor(bool)": "?",
}  # fmt: skip


class RefusedError(Exception):
    """The bundle is not what its manifest says, or the manifest is malformed."""


@dataclass
class Report:
    """What was found.

    Attributes:
        bundle: The folder.
        problems: Why the bundle is refused; empty when it is good.
        notes: What is worth knowing and decides nothing.
        golden: Largest difference, its limit, samples, and whether all top-1 agree.
        latency: p50 in ms here and as claimed.
        variants: With ``choose``: name to p50 and speed-up over the shipped file.
        fastest: With ``choose``: the file to use on this device.
    """

    bundle: str
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    golden: dict[str, Any] = field(default_factory=dict)
    latency: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, Any] = field(default_factory=dict)
    fastest: str = ""

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.problems


def verify(bundle: Path, *, latency: bool = True, choose: bool = False) -> Report:
    """Check a bundle. A model is only loaded when every hash is right.

    Args:
        bundle: The folder.
        latency: Also time the model for a second; informational.
        choose: Also time the variants against it, a few seconds each.
    """
    report = Report(str(bundle))
    try:
        manifest = read_manifest(bundle)
        report.problems += check_files(bundle, manifest)
        if report.ok:
            _check_golden(bundle, manifest, report)
        if report.ok and latency:
            _check_latency(bundle, manifest, report)
        if report.ok and choose:
            _choose(bundle, manifest, report)
    except RefusedError as error:
        report.problems.append(str(error))
    except OSError as error:
        report.problems.append(f"cannot read {error.filename}: {error.strerror}")
    except Exception as error:  # arrays and models are strangers' files: what fails is refused
        text = " ".join(str(error).split())[:200]
        report.problems.append(f"cannot be checked: {type(error).__name__}: {text}")
    return report


# -- files --------------------------------------------------------------------------------------


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The manifest. Raises RefusedError when it is missing, a link, too large or malformed."""
    path = bundle / MANIFEST
    if not path.is_file() or path.is_symlink() or path.stat().st_size > _MAX_JSON:
        raise RefusedError(f"{path}: no manifest here; give a bundle's folder")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{path}: not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise RefusedError(f"{path}: not a manifest of schema {SCHEMA}")
    return manifest


def check_files(bundle: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Every file listed, none missing, none changed, no links, nothing outside the folder."""
    listed = _get(manifest, dict, "files")
    problems = [f"manifest: {n!r} leaves the bundle" for n in listed if not _inside(n)]
    found, odd = _walk(bundle)
    problems += [f"{name}: a link or no plain file" for name in odd]
    problems += [f"{n}: missing" for n in listed if _inside(n) and n not in found + odd]
    problems += [f"{n}: not in the manifest" for n in found if n not in listed and n != MANIFEST]
    for name in found:
        if name not in listed:
            continue
        row = listed[name]
        data = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
        if not isinstance(row, dict) or row.get("sha256") != data:
            problems.append(f"{name}: its sha256 is not the manifest's")
    return problems


def _inside(name: str) -> bool:
    """A plain relative path: no ``..``, no root, no drive, no backslash."""
    parts = PurePosixPath(name).parts
    plain = name != "." and str(PurePosixPath(name)) == name and not set(name) & set("\\:\0")
    return plain and not name.startswith("/") and ".." not in parts


def _walk(bundle: Path) -> tuple[list[str], list[str]]:
    """Relative names of plain files, and of everything else that is no folder."""
    plain, odd = [], []
    for root, folders, names in os.walk(bundle, followlinks=False):
        for name in sorted(folders + names):
            path = Path(root, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                plain.append(path.relative_to(bundle).as_posix())
            elif not stat.S_ISDIR(mode):
                odd.append(path.relative_to(bundle).as_posix())
    return sorted(plain), sorted(odd)


def _get(value: Any, kind: type | tuple[type, ...], *keys: str) -> Any:
    """A field of the manifest. Raises RefusedError when it is missing or of another type."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise RefusedError(f"manifest: {'.'.join(keys)} is missing or of a wrong type")
    return value


def _file(bundle: Path, manifest: Mapping[str, Any], name: str) -> Path:
    """A file of the bundle that the manifest lists (and :func:`check_files` has hashed)."""
    if name not in _get(manifest, dict, "files"):
        raise RefusedError(f"manifest: {name!r} is used and not listed")
    return bundle / name


# -- running ------------------------------------------------------------------------------------


def instruction_set() -> str:
    """``x86-vnni``, ``x86`` (int8 products saturate), ``arm64``, or the machine's own word."""
    machine = platform.machine().lower()
    if machine in {"aarch64", "arm64"}:
        return "arm64"
    if machine not in {"x86_64", "amd64"}:
        return machine
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    vnni = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}
    return "x86-vnni" if vnni & words else "x86"


def _open(path: Path, threads: int, provider: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads, options.inter_op_num_threads = max(1, threads), 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = {"cuda": "CUDAExecutionProvider"}.get(provider, "CPUExecutionProvider")
    if wanted not in onnxruntime.get_available_providers():
        wanted = "CPUExecutionProvider"
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[wanted], enable_fallback=0, read_config_from_model=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise RefusedError(f"{path.name}: cannot be loaded: {str(error)[:200]}") from error


def _golden(bundle: Path, manifest: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Golden inputs by name and the outputs expected for them."""
    path = _file(bundle, manifest, _get(manifest, str, "golden", "file"))
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > _MAX_ARRAYS:
                raise RefusedError(f"{path.name}: too large")
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            inputs = {n[6:]: arrays[n] for n in arrays.files if n.startswith("input.")}
            outputs = [arrays[n] for n in arrays.files if n.startswith("output.")]
    except (ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise RefusedError(f"{path.name}: not golden arrays ({error})") from error
    if any(array.ndim == 0 or len(array) == 0 for array in [*inputs.values(), *outputs]):
        raise RefusedError(f"{path.name}: not golden arrays (no samples)")
    if not inputs or len(outputs) != 1 or {len(a) for a in inputs.values()} != {len(outputs[0])}:
        raise RefusedError(f"{path.name}: not golden arrays (names or lengths)")
    return inputs, outputs[0]


def _feeds(session: Any, stored: Mapping[str, Any], batch: int) -> list[dict[str, Any]]:
    """Batches of stored samples as the model takes them: uint8 as 0..1 where it takes floats."""
    nodes = {node.name: node for node in session.get_inputs()}
    if set(nodes) != set(stored):
        raise RefusedError(f"golden inputs are {sorted(stored)}, the model's {sorted(nodes)}")
    feeds = []
    total = len(next(iter(stored.values())))
    for start in range(0, total, batch):
        index = np.minimum(np.arange(start, start + batch), total - 1)
        feed = {}
        for name, array in stored.items():
            rows, kind = array[index], np.dtype(_TYPES.get(nodes[name].type, "f4"))
            if rows.dtype == np.uint8 and kind.kind == "f":
                rows = rows.astype(np.float32) / np.float32(255)
            feed[name] = np.ascontiguousarray(rows, dtype=kind)
        feeds.append(feed)
    return feeds


def _batch(session: Any, wanted: int) -> int:
    """The batch size that the file fixes, else the wanted one."""
    shape = session.get_inputs()[0].shape
    return shape[0] if shape and isinstance(shape[0], int) else max(1, wanted)


def _outputs(session: Any, stored: Mapping[str, Any], count: int) -> Any:
    """First output, float32 [count, ...]."""
    name = session.get_outputs()[0].name
    rows = [session.run([name], feed)[0] for feed in _feeds(session, stored, _batch(session, 8))]
    return np.concatenate(rows)[:count].astype(np.float32)


def _top1(outputs: Any) -> Any:
    return outputs.reshape(len(outputs), -1).argmax(axis=1)


def _margins(outputs: Any) -> Any:
    """Distance of the best two outputs per sample: within twice the limit it is a close call."""
    rows = np.sort(outputs.reshape(len(outputs), -1), axis=1)
    return rows[:, -1] - rows[:, -2] if rows.shape[1] > 1 else np.zeros(len(rows))


def _check_golden(bundle: Path, manifest: Mapping[str, Any], report: Report) -> None:
    """On the instruction set of the record the values decide; for int8 elsewhere only top-1."""
    stored, expected = _golden(bundle, manifest)
    path = _file(bundle, manifest, _get(manifest, str, "model", "file"))
    target = _get(manifest, str, "target", "instruction_set")
    exact = _get(manifest, str, "model", "precision") == "fp32" or instruction_set() == target
    limit = float(_get(manifest, (int, float), "golden", "tolerance"))
    classes = _get(manifest, str, "task") == "classification"
    got = _outputs(_open(path, 1, "cpu"), stored, len(expected))
    finite = bool(np.isfinite(got).all() and np.isfinite(expected).all() and np.isfinite(limit))
    if got.shape != expected.shape or not finite:
        report.problems.append(f"{path.name}: golden outputs have another shape or are not finite")
        return
    worst = float(np.abs(got - expected).max())
    flips = _top1(got) != _top1(expected) if classes else np.zeros(len(got), bool)
    same = len(got) - int(flips.sum())
    report.golden = {"samples": len(got), "same_top1": same}
    report.golden |= {"max_difference": worst, "limit": limit}
    clear = np.maximum(_margins(expected), _margins(got)) > 2 * limit
    if (flips & clear).any():
        report.problems.append(
            f"{path.name}: {len(got) - same} of {len(got)} golden predictions differ here "
            f"({instruction_set()}; made on {target})"
        )
    elif worst > limit and (exact or not classes):
        report.problems.append(f"{path.name}: golden outputs differ by {worst:.3g} > {limit:.3g}")
    elif worst > limit or same < len(got):
        agree = "all predictions agree" if same == len(got) else "close calls among them flip"
        report.notes.append(f"outputs differ by {worst:.3g} from those of {target}; {agree}")


# -- timing -------------------------------------------------------------------------------------


def _target(manifest: Mapping[str, Any]) -> tuple[int, int, str]:
    """Threads, batch and provider of the claims; at most what this device and sense allow."""
    threads, batch = (_get(manifest, int, "target", key) for key in ("threads", "batch"))
    if not 1 <= batch <= 1 << 16:
        raise RefusedError(f"manifest: target.batch is {batch}")
    threads = max(1, min(threads, os.cpu_count() or 1))
    return threads, batch, _get(manifest, str, "target", "provider")


def _caller(session: Any, stored: Mapping[str, Any], batch: int) -> Callable[[], Any]:
    feeds = _feeds(session, stored, _batch(session, batch))

    def cycle() -> Iterator[dict[str, Any]]:
        while True:
            yield from feeds

    state = cycle()
    return lambda: session.run(None, next(state))


def _cell(call: Callable[[], Any], least_ms: float) -> list[float]:
    times: list[float] = []
    while not times or sum(times) < least_ms:
        start = time.perf_counter_ns()
        call()
        times.append(max(1, time.perf_counter_ns() - start) / 1e6)
    return times


def _check_latency(bundle: Path, manifest: Mapping[str, Any], report: Report) -> None:
    """p50 here beside the claim. Another machine is another number: informational."""
    threads, batch, provider = _target(manifest)
    path = _file(bundle, manifest, _get(manifest, str, "model", "file"))
    session = _open(path, threads, provider)
    if provider != "cpu" and session.get_providers()[0] == "CPUExecutionProvider":
        report.notes.append(f"{provider} is claimed and not here; latencies are the CPU's")
    call = _caller(session, _golden(bundle, manifest)[0], batch)
    _cell(call, _WARM_MS)
    times = _cell(call, _TIMED_MS)
    report.latency = {
        "p50_ms": float(np.median(times)),
        "claimed_ms": float(_get(manifest, (int, float), "claims", "p50_ms")),
        "provider": session.get_providers()[0],
        "threads": threads,
        "batch": batch,
        "n": len(times),
    }


def _choose(bundle: Path, manifest: Mapping[str, Any], report: Report) -> None:
    """Time shipped file and variants in turn; another one must be proven faster to be named."""
    calls = _contenders(bundle, manifest, report)
    for call in calls.values():
        _cell(call, _WARM_MS)
    rng = random.Random(0)
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name in rng.sample(sorted(calls), len(calls)):
            medians[name].append(float(np.median(_cell(calls[name], _CELL_MS))))
    report.fastest = shipped = next(iter(calls))
    best = 1.0
    for name, rows in medians.items():
        logs = np.log(np.array(medians[shipped]) / np.array(rows))
        draws = np.random.default_rng(0).choice(logs, (2000, _ROUNDS))
        low, high = np.exp(np.percentile(np.median(draws, axis=1), [2.5, 97.5]))
        value = float(np.exp(np.median(logs)))
        row = {"p50_ms": float(np.median(rows)), "speedup": value}
        report.variants[name] = {**row, "low": float(low), "high": float(high)}
        if low > 1.0 and value > best:
            report.fastest, best = name, value


def _contenders(
    bundle: Path, manifest: Mapping[str, Any], report: Report
) -> dict[str, Callable[[], Any]]:
    """The shipped file first, then the variants that are accurate enough and right here."""
    stored, expected = _golden(bundle, manifest)
    threads, batch, provider = _target(manifest)
    classes = _get(manifest, str, "task") == "classification"
    shipped = _get(manifest, str, "model", "file")
    files = [shipped]
    for name, row in _get(manifest, dict, "variants").items():
        if _get(row, bool, "within"):
            files.append(_get(row, str, "file"))
        else:
            report.notes.append(f"{name}: not within the accuracy that was asked for; left out")
    calls = {}
    for file in files:
        try:
            session = _open(_file(bundle, manifest, file), threads, provider)
        except RefusedError as error:
            if file == shipped:
                raise
            report.notes.append(f"{error}; left out")
            continue
        got = _outputs(session, stored, len(expected))
        if classes and file != shipped and (_top1(got) != _top1(expected)).any():
            report.notes.append(f"{file}: other golden predictions here; left out")
            continue
        calls[file] = _caller(session, stored, batch)
    return calls


# -- command ------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """The report for people."""
    lines = [f"PROBLEM  {line}" for line in report.problems]
    lines += [f"note     {line}" for line in report.notes]
    if report.golden:
        g = report.golden
        lines.append(
            f"golden   {g['same_top1']}/{g['samples']} predictions agree, largest "
            f"difference {g['max_difference']:.3g} (limit {g['limit']:.3g})"
        )
    if report.latency:
        row = report.latency
        lines.append(
            f"latency  p50 {row['p50_ms']:.4g} ms here, {row['claimed_ms']:.4g} ms claimed "
            f"({row['threads']} threads, batch {row['batch']}, n={row['n']})"
        )
    for name, row in report.variants.items():
        lines.append(
            f"variant  {name}: p50 {row['p50_ms']:.4g} ms, {row['speedup']:.2f}x "
            f"[{row['low']:.2f}, {row['high']:.2f}]"
        )
    if report.fastest:
        lines.append(f"fastest  {report.fastest}")
    verdict = "ok" if report.ok else "REFUSED: do not use this bundle"
    return "\n".join([*lines, f"{report.bundle}: {verdict}"]) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="verify", description="Verify a compressor bundle.")
    parser.add_argument("bundle", nargs="?", type=Path, default=Path(__file__).resolve().parent)
    parser.add_argument("--choose", action="store_true", help="time the variants on this device")
    parser.add_argument("--json", metavar="F", help="write the findings here (-: stdout)")
    given = parser.parse_args(argv)
    if onnxruntime is None:
        sys.stderr.write("onnxruntime is not installed: pip install onnxruntime\n")
        return MISSING
    folder = given.bundle.resolve()
    if given.json not in (None, "-") and folder in Path(given.json).resolve().parents:
        sys.stderr.write(
            f"--json {given.json}: a new file in a bundle breaks it; write elsewhere\n"
        )
        return USAGE
    report = verify(given.bundle, choose=given.choose)
    findings = json.dumps({**asdict(report), "ok": report.ok}, indent=1) + "\n"
    if given.json == "-":
        sys.stdout.write(findings)
    else:
        sys.stdout.write(text(report))
        if given.json:
            Path(given.json).write_text(findings)
    return OK if report.ok else INTEGRITY


if __name__ == "__main__":
    sys.exit(main())
