"""flock, whose holder's death is its release: no stale locks, no timeouts to guess."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from compressor.core.files import faults

_PATIENCE_S = 60.0
_POLL_S = 0.2


@contextlib.contextmanager
def held(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on ``path``; ``waiting`` is called once if somebody else has it."""
    with faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                waiting()
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class MachineLock:
    """Keeps measurements clean on one machine: training shares it, measuring has it alone.

    A process that trains and wants to measure gives its own share back while it measures. A
    measurement that has waited ``patience`` seconds goes on and is told who holds the lock, so
    that it can mark itself unstable instead of hanging for a day behind somebody's training.
    """

    def __init__(self, path: Path | None = None, patience: float = _PATIENCE_S) -> None:
        """Use ``path`` or, by default, one file per machine in the folder for temporary files."""
        self._path = path or Path(tempfile.gettempdir(), "compressor-machine.lock")
        self._patience = patience
        self._shares = 0
        self._shared_fd = -1

    def _open(self) -> int:
        # O_NOFOLLOW: a planted link in the shared temporary folder must not be opened.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, 0o666)
        except PermissionError:  # another user's file: reading is enough for flock
            return os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o666)
        return fd

    @contextlib.contextmanager
    def share(self) -> Iterator[None]:
        """Hold a share while computing hard (training). Nests."""
        if self._shares == 0:
            self._take_share()
        self._shares += 1
        try:
            yield
        finally:
            self._shares -= 1
            if self._shares == 0:
                self._drop_share()

    def _take_share(self) -> None:
        self._shared_fd = self._open()
        fcntl.flock(self._shared_fd, fcntl.LOCK_SH)

    def _drop_share(self) -> None:
        os.close(self._shared_fd)
        self._shared_fd = -1

    @contextlib.contextmanager
    def alone(self, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
        """Have the machine alone; yields ``""``, or after ``patience`` who kept it."""
        shared = self._shares > 0
        if shared:
            self._drop_share()
        fd = self._open()
        try:
            yield self._wait(fd, clock)
        finally:
            os.close(fd)
            if shared:
                self._take_share()

    def _wait(self, fd: int, clock: Callable[[], float]) -> str:
        until = clock() + self._patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if clock() >= until:
                    return f"another process trains or measures here: {self._holders()}"
                time.sleep(_POLL_S)
            else:
                return ""

    def _holders(self) -> str:
        """Process ids that hold the lock, from /proc/locks; ``unknown`` elsewhere."""
        try:
            inode = os.stat(self._path).st_ino
            rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        except OSError:
            return "unknown"
        pids = {r[4] for r in rows if len(r) > 5 and r[5].rpartition(":")[2] == str(inode)}
        return ", ".join(sorted(f"process {p}" for p in pids - {str(os.getpid())})) or "unknown"


MACHINE = MachineLock()
