"""What a search is asked for, and what its measurements cost of the budget."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from compressor.core.types import Timing, TimingProtocol
from compressor.quantization.quality import Quality

_WARM_UP = 10  # calls at least, see runtime.timing
_CHANCE = 0.1  # dB: less is not told apart by the samples that judge


@dataclass(frozen=True, slots=True)
class Goal:
    """What is wanted.

    Attributes:
        budget: Seconds for everything that is measured, above 0.
        min_sqnr: Least SQNR in dB of every output on the held-out samples, without ``max_drop``.
        max_drop: Largest drop of the metric on the labelled samples, in points.
        threads: Of the runtime while measuring.
        batch: Samples per call while measuring; a model's fixed batch overrules it.
        seed: Of the order of measurements, and of what learns.
        recovery: Try to recover accuracy (:mod:`.recovery`) before layers are left float.
    """

    budget: float = 180.0
    min_sqnr: float = 25.0
    max_drop: float | None = None
    threads: int = 1
    batch: int = 1
    seed: int = 0
    recovery: bool = True

    def met(self, quality: Quality) -> bool:
        """Whether a candidate is accurate enough."""
        if self.max_drop is not None:
            return quality.drop is not None and quality.drop <= self.max_drop
        return quality.worst >= self.min_sqnr

    def better(self, new: Quality, old: Quality) -> bool:
        """Whether a candidate is nearer to the goal than another, by more than chance.

        With ``max_drop`` the SQNR decides between equal drops, of which few samples give many.
        """
        if self.max_drop is not None and new.drop != old.drop:
            return new.drop is not None and (old.drop is None or new.drop < old.drop)
        return new.worst > old.worst + _CHANCE

    def words(self) -> str:
        """What is asked for, in words."""
        if self.max_drop is not None:
            return f"a drop of at most {self.max_drop:g} points"
        return f"an SQNR of at least {self.min_sqnr:g} dB"


def seconds(timing: Timing) -> float:
    """What a measurement took: its calls, the untimed one of each visit, and warming up."""
    p = timing.protocol
    calls = sum(sum(c) + (p.rounds + _WARM_UP) * median(c) for c in timing.calls.values() if c)
    return (calls + p.warmup_ms * len(timing.calls)) / 1e3


def expected(protocol: TimingProtocol, call_ms: float, models: int) -> float:
    """What measuring ``models`` models (and the A/A control) will take, in seconds."""
    cell = max(protocol.min_cell_ms, call_ms) + call_ms
    each = protocol.rounds * cell + max(protocol.warmup_ms, _WARM_UP * call_ms)
    return (models + 1) * each / 1e3
