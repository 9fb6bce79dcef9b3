"""Fake quantization of a network while it runs, where ``quantize`` will place Q and DQ.

No graph is traced and no module is replaced. While the network runs, each call of a PyTorch
function passes through a ``TorchFunctionMode`` that applies the rules of ``quantization.select``
(see :mod:`.places`): convolutions and linear layers read an input on its 8-bit grid and weights on
theirs; a tensor that an int8 call made is put on a grid once, after the Relu or Clip behind it,
for all who read it; whatever reads no integers stays float. Gradients pass straight through, and
are 0 where an activation was cut off (Bengio 2013, arXiv 1308.3432; Jacob 2018, arXiv 1712.05877).

Left out, each far below a step of its grid or rare: the int32 rounding of biases; the tables inside
HardSwish, HardSigmoid and SiLU; a constant operand's own grid is an activation's (fixed between
calibrations); weights that are computed, given by keyword or multiplied by ``@``, and layers inside
``nn.MultiheadAttention``, train as float; a Relu whose input has another reader counts as folded;
dropout between a float call and a layer scales what the layer's grid was made for.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from compressor.training import places
from compressor.training.fold import Folded

See = Callable[[str, NDArray[np.float32]], None]
_SMALLEST = 1e-30  # scale of a channel of zeros
_LIMIT = 127


class FakeQuantizer:
    """The grids of a network, and the hooks that put its tensors on them.

    Attributes:
        state: ``scale`` and ``zero_point`` [sites], ``grid`` [all channels]: everything that
            calibration decides, on the CPU, changed in place only.
        weights: Name of each layer's weight that was seen, to the weight.
    """

    def __init__(self, model: nn.Module, folded: Folded) -> None:
        """Prepare; :meth:`attached` makes it work.

        Args:
            model: A network after :func:`.fold.fold_bn_`, and what that returned.
            folded: Its norms are read through, their statistics and scales do not train.
        """
        self.state: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self._model, self._folded = model, folded
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        self._sites: dict[str, int] = {}
        self._channels: dict[str, slice] = {}
        self._here: dict[str, Tensor] = {}
        self._see: See | None = None

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Quantize in every forward pass; leaves the model without a trace."""
        frozen = [norm.weight for _, norm in self._folded]
        frozen += [norm.bias for layer, norm in self._folded if layer.bias is not None]
        trained = [p for p in frozen if p is not None and p.requires_grad]
        running: list[_Placing] = []

        def enter(module: nn.Module, inputs: object) -> None:
            for norm in self._norms:  # statistics of a folded norm have no meaning
                norm.training = False
            where = next((p.device for p in module.parameters()), torch.device("cpu"))
            self._here = {name: value.to(where) for name, value in self.state.items()}
            running.append(_Placing(self))
            running[-1].__enter__()  # type: ignore[no-untyped-call]

        def leave(module: nn.Module, inputs: object, output: Any) -> Any:
            mode = running.pop()
            mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            return mode.finish(output)

        handles = [
            self._model.register_forward_pre_hook(enter),
            self._model.register_forward_hook(leave, always_call=True),
        ]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in trained:
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def observing(self, see: See) -> Iterator[None]:
        """Run in float instead, and show ``see`` every tensor that has a grid: name, [b, n]."""
        self._see = see
        try:
            yield
        finally:
            self._see = None

    def set_(
        self,
        activations: Mapping[str, tuple[float, int]],
        grids: Mapping[str, NDArray[np.int64]],
    ) -> None:
        """Take new grids; the first call decides which tensors have one.

        Args:
            activations: Site to scale and zero point of its u8 integers.
            grids: Weight name to the largest magnitude of its integers, [channels].
        """
        if not self.state:
            self._sites = {name: i for i, name in enumerate(activations)}
            ends = np.cumsum([0, *map(len, grids.values())]).tolist()
            self._channels = {n: slice(*ends[i : i + 2]) for i, n in enumerate(grids)}
            self.state.update(
                scale=torch.ones(len(activations)),
                zero_point=torch.zeros(len(activations), dtype=torch.int32),
                grid=torch.ones(ends[-1]),
            )
        for name in self._sites.keys() & activations.keys():
            scale, zero = activations[name]
            self.state["scale"][self._sites[name]] = scale
            self.state["zero_point"][self._sites[name]] = zero
        for name, channels in self._channels.items():
            self.state["grid"][channels] = torch.from_numpy(grids[name]).float()

    # for the mode

    def name(self, weight: Any) -> str | None:
        """The name of a parameter of the model."""
        return self._names.get(id(weight))

    def means(self) -> frozenset[int]:
        """Running means, by id, of the norms that are only ``x + bias``."""
        return frozenset(id(norm.running_mean) for _, norm in self._folded)

    def activation(self, site: str, x: Tensor) -> Tensor:
        """``x`` on the grid of ``site``; itself while observing or where there is no grid."""
        if self._see is not None:
            rows = x.detach().reshape(len(x), -1).cpu().numpy()
            self._see(site, rows)
            return x
        at = self._sites.get(site)
        if at is None:
            return x
        scale, zero = self._here["scale"][at : at + 1], self._here["zero_point"][at : at + 1]
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)

    def weight(self, name: str, weight: Tensor) -> Tensor:
        """Weights [channels, ...] on their symmetric grids, scaled to their present peaks."""
        if self._see is not None:
            self.weights[name] = weight
            return weight
        channels = self._channels.get(name)
        if channels is None:
            return weight
        peak = weight.detach().abs().flatten(1).amax(dim=1)
        scale = torch.clamp(peak / self._here["grid"][channels], min=_SMALLEST)
        zeros = torch.zeros(len(scale), dtype=torch.int32, device=scale.device)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -_LIMIT, _LIMIT)


@dataclass(slots=True)
class _Mark:
    """What is known of a tensor of the running pass.

    Attributes:
        site: The name of its grid; None if it is on it.
        certain: It is put there whoever reads it; else for int8 readers alone.
        copy: It, on the grid, once somebody has read it.
    """

    site: str | None
    certain: bool = True
    copy: Tensor | None = None


class _Placing(TorchFunctionMode):
    """One forward pass."""

    def __init__(self, owner: FakeQuantizer) -> None:
        super().__init__()
        self._owner, self._means = owner, owner.means()
        self._marks: MutableMapping[Tensor, _Mark] = WeakTensorKeyDictionary()
        # A call is known by its name, the layer before it and how many of its kind came between:
        # what training alone does (stochastic depth) moves no other call's name.
        self._layer = ""
        self._seen: Counter[tuple[str, str]] = Counter()

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call ``func`` on the tensors that the integer network would give it."""
        name, named = getattr(func, "__name__", ""), dict(kwargs or {})
        if name in places.SILENT:
            return func(*args, **named)
        if name in places.LAYERS and len(args) > 1 and self._owner.name(args[1]) is not None:
            return self._run_layer(func, name, args, named)
        norm = name == "batch_norm" and len(args) > 1 and id(args[1]) in self._means
        if norm or name in places.PASSING or places.folds(name, args, named):
            return self._pass_on(func, name, args, named)
        known = any(x in self._marks for x in places.tensors((*args, *named.values())))
        if known and places.arithmetic(name, args, named):
            return self._compute(func, name, args, named)
        return func(*places.mapped(args, self._float), **_named(named, self._float))

    def finish(self, output: Any) -> Any:
        """The network's output as it leaves the integer network; to be called after the mode."""
        return self._float(output) if isinstance(output, Tensor) else output

    def _run_layer(self, func: Any, name: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        label = self._owner.name(args[1])
        assert label is not None
        self._layer = label
        site = self._site("")
        x = self._read(args[0], f"{site}<")
        result = func(x, self._owner.weight(label, args[1]), *args[2:], **named)
        bias = args[2] if len(args) > 2 else named.get("bias")
        if name in places.CONVOLUTIONS:
            self._marks[result] = _Mark(site)
        elif args[0].ndim == 2 or bias is None:  # else MatMul and a float Add in the export
            self._marks[result] = _Mark(site, certain=False)
        return result

    def _pass_on(self, func: Any, name: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """Folded activations, folded norms, and what only moves values: the grid comes later."""
        mark = self._marks.get(args[0]) if isinstance(args[0], Tensor) else None
        result = func(*args, **named)
        if mark is None:
            return result
        site = mark.site
        if name in places.FOLDING and site is not None:
            site = f"{site}>{name}"
        for x in places.tensors([result]):
            if x is not args[0] or name in places.FOLDING:
                self._marks[x] = _Mark(site, mark.certain)
        return result

    def _compute(self, func: Any, name: str, args: Sequence[Any], named: dict[str, Any]) -> Any:
        """A call with an int8 kernel: all operands on their grids, the result on its own."""
        site = self._site(name)
        pairs: list[tuple[Tensor, Tensor]] = []

        def read(x: Tensor) -> Tensor:
            pairs.append((self._read(x, f"{site}<{len(pairs)}"), x))
            return pairs[-1][0]

        result = func(*places.mapped(args, read), **_named(named, read))
        for copy, source in pairs:
            if result is copy and copy is not source:  # in place, on what others call ``source``
                result = source.copy_(copy)
        if isinstance(result, Tensor):
            grid = None if places.keeps_grid(name) else site
            self._marks[result] = _Mark(grid, certain=not places.only_inside(name))
        return result

    def _read(self, x: Any, site: str) -> Any:
        """For an int8 reader: ``x`` on its grid, on that of ``site`` if it has none."""
        if not places.is_activation(x):
            return x
        mark = self._marks.get(x)
        if mark is None:
            mark = self._marks[x] = _Mark(site)
        if mark.site is None:
            return x
        if mark.copy is None:
            mark.copy = self._owner.activation(mark.site, x)
            self._marks[mark.copy] = _Mark(None)
        return mark.copy

    def _float(self, x: Any) -> Any:
        """For a float reader: on its grid only if the integer network made it so."""
        mark = self._marks.get(x) if isinstance(x, Tensor) else None
        return x if mark is None or not mark.certain else self._read(x, "")

    def _site(self, kind: str) -> str:
        self._seen[self._layer, kind] += 1
        return f"{self._layer}/{kind}{self._seen[self._layer, kind]}"


def _named(values: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return dict(zip(values, places.mapped(list(values.values()), change), strict=True))
