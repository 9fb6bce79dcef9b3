"""The command line in this process, with everything that ``main`` does around it."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor import cli


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def compressor(*words: object) -> Outcome:
    """Run ``compressor WORDS`` here, in this working folder."""
    out, err, code = io.StringIO(), io.StringIO(), None
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main([str(w) for w in words])
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(code, int), code
    return Outcome(code, out.getvalue(), err.getvalue())


def write_arrays(path: Path, n: int = 120, kinds: int = 3, size: int = 8, **changes: Any) -> Path:
    """A dataset of ``n`` images with a bright row per class, as one ``.npz``."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % kinds
    images = rng.integers(0, 120, (n, 1, size, size), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[0, 2 * label : 2 * label + 2] += 120
    np.savez(path, **({"x": images, "y": labels} | changes))
    return path


def tree(folder: Path) -> set[str]:
    """Every file below a folder, relative."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}


def litter(folder: Path) -> list[str]:
    """What a failure must not leave: work folders, partial runs, files written beside."""
    found = [p for p in folder.rglob("*") if p.name.startswith((".partial-", "stage-", ".latest"))]
    found += [p for p in folder.rglob(".*.*") if p.is_file()]
    runs = [p for p in folder.glob("runs/*/*")]
    return sorted(str(p.relative_to(folder)) for p in [*found, *runs])
