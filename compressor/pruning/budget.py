"""What a network costs as a function of its widths, without running it again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compressor.pruning.groups import CONVOLUTIONS, NORMS, TRANSPOSED, Group, Side, depthwise
from compressor.pruning.surgery import axis_length

Measure = Literal["macs", "parameters", "channels"]


@dataclass(slots=True)
class LayerCost:
    """One layer; multiply-accumulates and parameters follow from its two widths.

    Attributes:
        inputs: Channels or features read.
        outputs: Channels or features made.
        kernel: Weights per (input, output) pair.
        positions: Times each weight is used per sample: output positions (input positions for a
            transposed convolution).
        groups: Convolution groups; they never change here.
        per_output: Parameters per output besides the weights: bias, gamma, beta.
        single: Inputs and outputs are the same channels.
        fixed: Parameters that stay whatever the widths: a slope that all channels share.
    """

    inputs: int
    outputs: int
    kernel: int
    positions: int
    groups: int
    per_output: int
    single: bool
    fixed: int = 0

    @property
    def weights(self) -> int:
        """Number of weights."""
        pairs = self.outputs if self.single else self.inputs * self.outputs // self.groups
        return pairs * self.kernel

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return self.weights * self.positions

    @property
    def parameters(self) -> int:
        """Weights, biases, slopes and what a normalisation learns."""
        return self.weights + self.outputs * self.per_output + self.fixed


class Budget:
    """A running total of one measure while groups shrink and grow back.

    Layers outside every group cost the same whatever is cut; they are in ``total`` too.
    """

    def __init__(
        self,
        layers: dict[str, LayerCost],
        groups: Sequence[Group],
        measure: Measure,
        fixed: int = 0,
    ) -> None:
        """Start at full widths; ``fixed`` is added to every total."""
        self._layers = layers
        self._measure = measure
        self._members = {
            g.name: [(m.layer, m.side, m.where.shape[1]) for m in g.members] for g in groups
        }
        self._channels = sum(g.width for g in groups if not g.whole)
        self.total = fixed + (
            self._channels if measure == "channels" else sum(map(self._cost, layers.values()))
        )

    def _cost(self, layer: LayerCost) -> int:
        return layer.macs if self._measure == "macs" else layer.parameters

    def shrink(self, group: str, channels: int) -> None:
        """Take ``channels`` away from a group (give them back where negative)."""
        if self._measure == "channels":
            self.total -= channels
            return
        for name, side, per_channel in self._members[group]:
            layer = self._layers[name]
            self.total -= self._cost(layer)
            _narrow_(layer, side, channels * per_channel)
            self.total += self._cost(layer)


def _narrow_(layer: LayerCost, side: Side, count: int) -> None:
    if side == "out":
        layer.outputs -= count
    else:
        layer.inputs -= count


def layers(model: nn.Module, example: Sequence[Tensor]) -> dict[str, LayerCost]:
    """Cost of every layer that groups can touch, from one forward pass in evaluation mode.

    Args:
        model: Unchanged.
        example: Positional inputs with a batch dimension.
    """
    used: dict[str, int] = {}
    known = (*CONVOLUTIONS, *TRANSPOSED, *NORMS, nn.Linear, nn.PReLU)
    names = {name: m for name, m in model.named_modules() if isinstance(m, known)}
    hooks = [m.register_forward_hook(_recorder(used, name)) for name, m in names.items()]
    modes = {m: m.training for m in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(*example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return {name: _layer(module, used.get(name, 0)) for name, module in names.items()}


def _recorder(used: dict[str, int], name: str) -> Any:
    def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tensor = inputs[0] if isinstance(module, TRANSPOSED) else output
        channels = module.in_channels if isinstance(module, TRANSPOSED) else axis_length(
            module, "out"
        )  # fmt: skip
        used[name] = used.get(name, 0) + tensor.numel() // (len(tensor) * channels)

    return hook


def _layer(module: Any, positions: int) -> LayerCost:
    if isinstance(module, nn.PReLU) and module.num_parameters == 1:
        return LayerCost(1, 1, 0, 0, 1, 0, True, fixed=1)
    if isinstance(module, (*NORMS, nn.PReLU)):
        width = axis_length(module, "out")
        per_output = sum(p.numel() for p in module.parameters(recurse=False)) // width
        # No weights per pair: a normalisation is folded away by the exporter and costs nothing.
        return LayerCost(width, width, 0, 0, 1, per_output, True)
    inputs, outputs = axis_length(module, "in"), axis_length(module, "out")
    kernel = 1 if isinstance(module, nn.Linear) else int(torch.tensor(module.kernel_size).prod())
    return LayerCost(
        inputs, outputs, kernel, positions,
        getattr(module, "groups", 1), int(module.bias is not None), depthwise(module),
    )  # fmt: skip


def total(costs: Iterable[LayerCost], measure: Measure) -> int:
    """Sum over layers of MACs or parameters."""
    return sum(c.macs if measure == "macs" else c.parameters for c in costs)
