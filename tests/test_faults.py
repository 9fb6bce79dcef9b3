"""Killed, interrupted or out of space: the next run gives what an undisturbed one gives."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from compressor import api
from compressor.core import files
from compressor.core.errors import SystemFault
from compressor.core.hashing import digest_path
from compressor.core.store import Store
from tests.helpers import litter, tree, write_arrays

TOYS = """\
name: toy
stages:
  a: {uses: "tests.pipeline.toys:SOURCE", with: {value: 3.0}}
  b: {uses: "tests.pipeline.toys:SCALE", in: {number: a}}
  c: {uses: "tests.pipeline.toys:ADD", in: {numbers: [a, b]}, with: {plus: 1}}
"""
# Where core.files (and the run folder) change the disk for others to see.
STEPS = ("fsync", "replace", "rename")


class Killed(BaseException):
    """As SIGKILL at that instant, except that this process goes on: nothing may be caught."""


def hook(monkeypatch: pytest.MonkeyPatch, nth: int, fail: Callable[[], BaseException]) -> list[str]:
    """Make the ``nth`` step on the disk fail; returns the log of steps."""
    log: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def step(*args: Any, **named: Any) -> Any:
            log.append(name)
            if len(log) == nth:
                raise fail()
            return real(*args, **named)

        monkeypatch.setattr(os, name, step)

    for name in STEPS:
        wrap(name)
    return log


def final(folder: Path) -> dict[str, str]:
    """Stage to digest of what it made, each verified against its bytes."""
    store = Store(folder / "store")
    found = {}
    for entry in store.entries():
        assert store.lookup(entry.key) == entry
        for name, output in entry.outputs.items():
            found[f"{entry.key}.{name}"] = output.digest
    return found


def go(folder: Path) -> api.Outcome:
    return api.run(folder / "toy.yaml", store=folder / "store", runs=folder / "runs", threads=1)


def fresh(folder: Path) -> Path:
    folder.mkdir()
    (folder / "toy.yaml").write_text(TOYS)
    return folder


def steps_of_a_run(folder: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        log = hook(patch, -1, Killed)
        go(fresh(folder))
    return len(log)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "read-only", "interrupted"])
def test_a_failure_at_any_write_leaves_nothing_half_written(tmp_path: Path, kind: str) -> None:
    """Every step in turn: the error is a sentence, the store consistent, the rerun complete."""
    total = steps_of_a_run(tmp_path / "whole")
    expected = final(tmp_path / "whole")
    assert total > 20
    faults: dict[str, Callable[[], BaseException]] = {
        "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
        "read-only": lambda: OSError(errno.EROFS, "Read-only file system"),
        "interrupted": KeyboardInterrupt,
    }
    for nth in range(1, total + 1):
        folder = fresh(tmp_path / f"{kind}-{nth}")
        with pytest.MonkeyPatch.context() as patch:
            log = hook(patch, nth, faults[kind])
            try:
                go(folder)
            except (KeyboardInterrupt, SystemFault):
                left = [p for p in litter(folder) if "/.partial" in p or "stage-" in p]
                left += [p for p in tree(folder) if Path(p).name.startswith(".")]
                assert left == [], (nth, log)
            else:  # making a folder durable is an extra that may be refused
                assert log[nth - 1] == "fsync"
        assert final(folder).items() <= expected.items()
        assert go(folder).folder is not None
        assert final(folder) == expected
        assert (folder / "runs" / "toy" / "latest" / "results.json").is_file()


@pytest.mark.slow
def test_a_kill_at_any_write_is_made_good_by_the_next_run(tmp_path: Path) -> None:
    """Every step in turn in a forked child that dies on the spot, with no clean-up at all."""
    total = steps_of_a_run(tmp_path / "whole")
    expected = final(tmp_path / "whole")
    for nth in range(1, total + 1):
        folder = fresh(tmp_path / str(nth))
        pid = os.fork()
        if pid == 0:
            with pytest.MonkeyPatch.context() as patch:
                hook(patch, nth, lambda: os.kill(os.getpid(), signal.SIGKILL) or Killed())
                go(folder)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), nth
        assert final(folder).items() <= expected.items()
        go(folder)
        assert final(folder) == expected
        assert Store(folder / "store").damaged() == []


# -- a real pipeline, killed from outside ---------------------------------------------------------

REAL = """\
name: real
stages:
  data: {{uses: data, with: {{dataset: arrays, root: {root}, calibration: 64}}}}
  teacher:
    uses: train
    with:
      model: {{name: resnet, depth: 4, widths: [8], strides: [1]}}
      epochs: 3
      batch_size: 8
      checkpoint_steps: 5
      ema: 0.9
      augment: {{pad_crop: 1, mixup: 0.2}}
  fp32: {{uses: export, in: {{model: teacher}}}}
"""


def start(folder: Path, file: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "compressor.cli", "run", str(file), "--threads", "1", *words]
    env = {**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def made(folder: Path) -> dict[str, Sequence[str]]:
    """Stage to the digests of its outputs, by key."""
    store = Store(folder / ".compressor")
    assert store.damaged() == []
    return {e.key: [o.digest for o in e.outputs.values()] for e in store.entries()}


@pytest.mark.slow
def test_a_real_pipeline_killed_at_random_gives_the_bytes_of_an_uninterrupted_run(
    tmp_path: Path,
) -> None:
    data = write_arrays(tmp_path / "data.npz", n=900)
    file = tmp_path / "real.yaml"
    file.write_text(REAL.format(root=data))
    whole, folder, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    whole.mkdir()
    folder.mkdir()
    child = start(whole, file)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    expected = made(whole)
    # In the first epoch, after it, near the end; then between stages; then in peace.
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]
    for number, step in zip(signals, (5, 90, 180, None), strict=True):
        child = start(folder, file)
        while child.poll() is None and not reached(folder, step):
            time.sleep(0.002)
        assert child.poll() is None, "it ended before it could be killed"
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(number)
        child.communicate(timeout=60)
        assert child.returncode in (-signal.SIGKILL, 143)
        assert made(folder).items() <= expected.items()
    child = start(folder, file)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    assert made(folder) == expected


def reached(folder: Path, step: int | None) -> bool:
    """Whether training has saved that step; None: whether it is over."""
    saved = list((folder / ".compressor" / "resume").glob("*/*/*-*.safetensors"))
    if step is None:
        return len(list((folder / ".compressor" / "keys").glob("??/*.json"))) >= 3
    return any(int(path.stem.partition("-")[2]) >= step for path in saved)


@pytest.mark.slow
def test_two_runs_of_one_file_share_one_computation(tmp_path: Path) -> None:
    data = write_arrays(tmp_path / "data.npz", n=120)
    file = tmp_path / "real.yaml"
    file.write_text(REAL.format(root=data))
    children = [start(tmp_path, file, "--json") for _ in range(2)]
    results = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], results
    import json

    rows = [json.loads(out) for out, _ in results]
    computed = [name for row in rows for name in row["computed"]]
    nodes = ["data", "teacher", "fp32", *(f"{m}@{s}" for m in ("teacher", "fp32")
                                         for s in ("val", "test"))]  # fmt: skip
    assert sorted(computed) == sorted(nodes)
    folders = {row["folder"] for row in rows}
    assert len(folders) == 2  # each has its own, complete
    digests = {digest_path(tmp_path / f / "models") for f in folders}
    assert len(digests) == 1


def test_a_rerun_after_a_failure_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = fresh(tmp_path / "f")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "publish", _refuse_after(2))
        with pytest.raises(SystemFault, match="disk is full"):
            go(folder)
    outcome = go(folder)
    assert outcome.computed == ("c",)


def _refuse_after(count: int) -> Callable[[Path, Path], None]:
    real, calls = files.publish, []

    def publish(source: Path, target: Path) -> None:
        calls.append(target)
        with files.faults(target):
            if len(calls) > count:
                raise OSError(errno.ENOSPC, "full")
        real(source, target)

    return publish
