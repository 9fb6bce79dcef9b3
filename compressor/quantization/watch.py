"""What calibration samples themselves are worth, seen batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.core.errors import ConfigError

Feed = Mapping[str, NDArray[Any]]
_FEW = 16


class Watch:
    """Looks at the samples themselves: how many, how many distinct, constant, finite."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.samples = 0
        self._digests: set[bytes] = set()
        self._varied = False

    def look(self, feed: Feed) -> int:
        """Check a batch; returns its size.

        Raises:
            ConfigError: NaN or Inf, or inputs with different numbers of samples.
        """
        counts = {len(a) for a in feed.values()}
        if len(counts) != 1:
            raise ConfigError(f"calibration: inputs have different numbers of samples: {counts}")
        count = counts.pop()
        for name, array in feed.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                rows = array.reshape(count, -1)
                row = int(np.argmin(np.isfinite(rows).all(axis=1)))
                raise ConfigError(f"calibration: {name}[{self.samples + row}] holds NaN or Inf")
            rows = array.reshape(count, -1)
            self._varied = self._varied or bool((rows != rows[:, :1]).any())
        if len(self._digests) < _FEW:
            for row in range(count):
                parts = (np.ascontiguousarray(a[row]).tobytes() for a in feed.values())
                self._digests.add(hashlib.sha256(b"|".join(parts)).digest())
        self.samples += count
        return count

    def warnings(self) -> Iterator[str]:
        """One sentence each, when all samples have been seen."""
        if len(self._digests) < _FEW:
            yield (
                f"calibration: {len(self._digests)} distinct samples of {self.samples}; "
                f"ranges from fewer than {_FEW} are unreliable"
            )
        if not self._varied:
            yield "calibration: every sample is constant; ranges from blank input mean little"
