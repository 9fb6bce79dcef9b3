"""BatchNorm into the layer before it, in a network that stays what its factory made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from compressor.training.places import LAYERS, SILENT, tensors

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Layer = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
Folded = tuple[tuple[Layer, _BatchNorm], ...]


def fold_bn_(model: nn.Module, inputs: Sequence[Tensor]) -> Folded:
    """Fold every BatchNorm that alone reads a convolution or linear layer into that layer.

    The function stays (up to rounding) and so do all modules and shapes: the layer takes the
    norm's scale, the norm becomes ``x + bias`` in evaluation mode (mean 0, variance ``1 - eps``,
    weight 1), and folding it once more, as the export does, changes no weight. The bias goes to
    the layer where it has one.

    What reads what is seen by running the network once, so functional networks fold as well. A
    layer or norm that is called twice, or whose weight is shared, is left alone.

    Args:
        model: Left in its mode; its weights change.
        inputs: One batch of each input, on the model's device.

    Returns:
        The pairs, in the order in which they run.
    """
    watch = _Readers(model)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), watch:
            model(*inputs)
    finally:
        for module, mode in modes:
            module.training = mode
    pairs = watch.pairs()
    for layer, norm in pairs:
        _fold_(layer, norm)
    return pairs


class _Readers(TorchFunctionMode):
    """Notes who reads the output of each layer while the network runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))

        def own(module: nn.Module) -> bool:  # a tied parameter belongs to several modules
            return all(uses[id(p)] == 1 for p in module.parameters(recurse=False))

        found = [m for m in model.modules() if isinstance(m, _LAYERS) and own(m)]
        self._layers = {id(m.weight): m for m in found}
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and own(m)]
        self._norms = {id(m.running_mean): m for m in norms if m.running_mean is not None}
        self._outputs: dict[int, tuple[Tensor, Layer]] = {}  # kept alive, so that ids stay unique
        self._reads: Counter[int] = Counter()
        self._calls: Counter[int] = Counter()
        self._found: list[tuple[int, Layer, _BatchNorm]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` and take notes."""
        name, named = getattr(func, "__name__", ""), dict(kwargs or {})
        if name not in SILENT:
            self._reads.update(id(x) for x in tensors((*args, *named.values())))
        result = func(*args, **named)
        if name == "__get__" and isinstance(result, Tensor):  # x.T, x.data; not x.shape
            self._reads.update(id(x) for x in tensors(args))
        if len(args) > 1 and name == "batch_norm":
            self._note_norm(args[0], self._norms.get(id(args[1])))
        elif len(args) > 1 and name in LAYERS and id(args[1]) in self._layers:
            layer = self._layers[id(args[1])]
            self._calls[id(layer)] += 1
            self._outputs[id(result)] = (result, layer)
            self._reads[id(result)] = 0  # of a tensor that is gone and had the same id
        return result

    def _note_norm(self, x: Tensor, norm: _BatchNorm | None) -> None:
        if norm is None:
            return
        self._calls[id(norm)] += 1
        if id(x) in self._outputs and _fits(x, layer := self._outputs[id(x)][1]):
            self._found.append((id(x), layer, norm))

    def pairs(self) -> Folded:
        """Layers whose output is read by one norm and nothing else."""
        return tuple(
            (layer, norm)
            for output, layer, norm in self._found
            if self._reads[output] == self._calls[id(layer)] == self._calls[id(norm)] == 1
        )


def _fits(output: Tensor, layer: Layer) -> bool:
    """Whether the norm's channels are the layer's: dimension 1."""
    return output.ndim == 2 if isinstance(layer, nn.Linear) else output.ndim > 2


@torch.no_grad()
def _fold_(layer: Layer, norm: _BatchNorm) -> None:
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None  # ``_Readers`` saw it
    assert var is not None
    factor = 1.0 / torch.sqrt(var.double() + norm.eps)
    if norm.weight is not None:
        factor *= norm.weight.double()
    shift = -mean.double() * factor
    if norm.bias is not None:
        shift += norm.bias.double()
    if layer.bias is not None:
        shift += layer.bias.double() * factor
    layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.ndim - 1)))
    mean.zero_()
    # In float32, var + eps is exactly 1 again; in float64, off by less than half a rounding.
    var.fill_(1.0 - norm.eps)
    if norm.weight is not None:
        norm.weight.fill_(1.0)
        norm.bias.zero_()
    if layer.bias is not None:
        layer.bias.copy_(shift)
    elif norm.bias is not None:
        norm.bias.copy_(shift)
    else:
        mean.copy_(-shift)
