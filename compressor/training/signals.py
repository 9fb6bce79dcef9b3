"""SIGTERM as a question that the loop asks, so that it can finish its step and save."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_TERMINATED = 143  # 128 + SIGTERM, what a shell reports for it


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether SIGTERM has come; the caller's handler comes back after.

    A signal that nobody asked about in time is not lost: leaving raises ``SystemExit(143)``.
    Only the main thread can receive signals; elsewhere the answer is always no.
    """
    asked = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
    if asked:
        raise SystemExit(EXIT_TERMINATED)
