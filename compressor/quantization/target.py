"""Which integers a CPU multiplies exactly, and so which weights and activations it is given.

x86 without VNNI multiplies u8 activations by s8 weights with ``vpmaddubsw``, which adds two
neighbouring products in 16 bits and saturates: 255 * 127 * 2 does not fit. ``portable`` therefore
keeps every pair of one channel's weights within 128 (``weights.fits_16_bits``): exact on every
x86, and on ARM, with no session option. ARM's dot-product instructions and VNNI accumulate in
32 bits, so their own targets use all 8 bits; ARM's s8 x s8 kernels want signed activations
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compressor.core.environment import cpu_name, instruction_set

TargetName = Literal["portable", "x86-vnni", "arm64", "host"]
WeightBits = Literal["auto", 7, 8]


@dataclass(frozen=True, slots=True)
class Target:
    """A resolved target.

    Attributes:
        name: ``portable``, ``x86-vnni`` or ``arm64``; never ``host``.
        signed: Activations are s8 instead of u8.
        bits: ``proven``: the finest grid per channel whose pair sums provably fit 16 bits;
            ``7``: 7 bits throughout; ``8``: 8 bits throughout.
        reason: Why, one sentence, for the model's metadata.
    """

    name: str
    signed: bool
    bits: Literal["proven", "7", "8"]
    reason: str


def resolve(name: TargetName, weight_bits: WeightBits = "auto", host: str = "") -> Target:
    """Make ``host`` and ``auto`` concrete.

    Args:
        name: As in the config.
        weight_bits: 7 or 8 overrule the target's own choice.
        host: Instruction set that ``host`` means; by default, this machine's.
    """
    where = ""
    if name == "host":
        found = host or instruction_set()
        where = f"host is {found} ({cpu_name()}); "
        name = "x86-vnni" if found == "x86-vnni" else "arm64" if found == "arm64" else "portable"
    if weight_bits == 7:
        return Target(name, name == "arm64", "7", f"{where}7-bit weights as configured")
    if name == "portable" and weight_bits == "auto":
        why = "weights on the finest grid whose pairs of products fit 16 bits; exact on every CPU"
        return Target(name, False, "proven", where + why)
    if name == "portable":
        why = "8-bit weights as configured: products saturate on x86 without VNNI"
        return Target(name, False, "8", where + why)
    if name == "arm64":
        why = "s8 activations and 8-bit weights: ARM multiplies s8 by s8 without saturation"
        return Target(name, True, "8", where + why)
    why = "u8 activations and 8-bit weights: VNNI accumulates in 32 bits"
    return Target(name, False, "8", where + why)
