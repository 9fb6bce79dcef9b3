"""How much is zero at which step: one shot, or the cubic ramp of Zhu and Gupta."""

from __future__ import annotations

from dataclasses import dataclass


def cubic(step: int, start: int, end: int, initial: float, final: float) -> float:
    """Sparsity at ``step``: ``final + (initial - final) * (1 - (step - start) / (end - start))^3``.

    ``initial`` up to ``start``, ``final`` from ``end`` on, never decreasing where
    ``initial <= final``. Zhu and Gupta 2017 (arXiv 1710.01878), equation 1: fast while many
    weights are redundant, slow when few are left.

    Args:
        step: Optimizer steps taken.
        start: First step of the ramp.
        end: Last; not before ``start``.
        initial: In 0..1.
        final: In 0..1.
    """
    if step >= end:
        return final
    if step <= start:
        return initial
    left = 1 - (step - start) / (end - start)
    return final + (initial - final) * left**3


@dataclass(frozen=True, slots=True)
class Ramp:
    """When masks are drawn anew during fine-tuning.

    Attributes:
        final: Sparsity at the end, in 0..1.
        end: Optimizer step at which it is reached; 0 is one shot.
        every: Steps between two drawings on the way.
    """

    final: float
    end: int = 0
    every: int = 1

    def at(self, step: int) -> float:
        """Sparsity that should hold after ``step`` optimizer steps."""
        return cubic(step, 0, self.end, 0.0, self.final)

    def due(self, step: int) -> bool:
        """Whether masks are drawn after this step."""
        return step == self.end or (step < self.end and step % self.every == 0)


def ramp(kind: str, final: float, total: int) -> Ramp:
    """The schedule of a fine-tuning of ``total`` steps.

    The cubic ramp takes the first 60 % in about 50 drawings and leaves the rest for recovery
    (50-75 % is usual: Distiller's AGP, TFMOT).
    """
    end = int(0.6 * total) if kind == "cubic" else 0
    return Ramp(final, end, max(1, end // 50))
