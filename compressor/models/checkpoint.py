"""Networks as data: ``weights.safetensors`` and ``checkpoint.json``, pruned ones included.

Nothing is unpickled and nothing that a file names is imported. The network is built by the
pipeline's own factory, its layers take the recorded sizes, the weights are loaded strictly, and
its outputs on seeded inputs must be the recorded ones.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from compressor.core import files
from compressor.core.errors import CompressorError, ConfigError, IntegrityError, StageError
from compressor.core.hashing import digest_bytes
from compressor.core.types import ModelSpec
from compressor.models import cost
from compressor.models.card import (
    CARD,
    WEIGHTS,
    Card,
    InputCard,
    LayerCard,
    ProbeCard,
    TensorCard,
    read,
)
from compressor.models.config import RESERVED
from compressor.models.construct import create, evaluating, example_inputs
from compressor.models.resize import dtype_name, layer_sizes, resize_

_PROBE_SEED = 20
_PROBE_BATCH = 2
# Of the outputs' standard deviation: another CPU or thread count sums in another order.
_TOLERANCE = 1e-4
# A nearly constant output has no deviation to compare with, and float32 rounds relative to its
# size: then 1 % of that takes the deviation's place, and a few roundings always pass.
_CONSTANT = 1e-3
_ROUNDING = 4 * torch.finfo(torch.float32).eps


def save(folder: Path, model: nn.Module, spec: ModelSpec) -> Path:
    """Write ``model`` as a checkpoint; equal weights give equal bytes. Returns ``folder``.

    The network is rebuilt from what is about to be written before anything is, so that a
    checkpoint that exists can be loaded. ``model`` may be on any device and in any memory format
    and is left as it is.

    Raises:
        StageError: The network cannot be rebuilt from its factory and layer sizes, or its outputs
            are not finite.
        ConfigError: As :func:`compressor.models.build`.
    """
    tensors, aliases = _state(model)
    layers = layer_sizes(model)
    try:
        probe = _probe(_on_cpu(model), spec, "the network fails on random inputs")
    except IntegrityError as error:
        raise StageError(f"{spec.factory}: this network cannot be stored: {error}") from error
    try:
        twin = _rebuild(spec, layers, tensors, aliases)
        outputs = _probe(twin, spec, "the rebuilt network fails on random inputs")
        _same(probe, outputs, "the rebuilt network")
    except IntegrityError as error:
        raise StageError(
            f"{spec.factory}: this network cannot be stored: {error}. A checkpoint holds what "
            "the factory makes with other layer sizes; replaced, fused or masked layers must be "
            "part of the factory (after torch.nn.utils.prune, call prune.remove)"
        ) from error
    data = safetensors.torch.save(dict(sorted(tensors.items())))
    card = _card(twin, spec, layers, tensors, aliases, outputs, digest_bytes(data))
    files.write_bytes(folder / WEIGHTS, data)
    files.write_json(folder / CARD, card.as_json())
    return folder


def load(folder: Path, spec: ModelSpec) -> nn.Module:
    """The network of a checkpoint, on the CPU in evaluation mode.

    Raises:
        IntegrityError: The files are damaged, do not belong together or to ``spec``, or the
            network's outputs are not the recorded ones.
        ConfigError, MissingError: As :func:`compressor.models.build`.
    """
    card = read(folder)
    _belongs(card, spec, folder)
    tensors = _tensors(folder, card)
    try:
        model = _rebuild(spec, card.layers, tensors, card.aliases)
        seed = card.probe.seed
        outputs = _probe(model, spec, "the network fails on random inputs", seed)
        _same(torch.tensor(card.probe.outputs), outputs, "the loaded network")
        for name, value in (
            ("parameters", cost.parameters(model)),
            ("macs", cost.macs(model, spec)),
        ):
            if value != getattr(card, name):
                raise IntegrityError(f"{value} {name}, recorded {getattr(card, name)}")
    except IntegrityError as error:
        raise IntegrityError(f"{folder}: {error}") from error
    return model.eval()


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous CPU copies of all state, and which names share one tensor."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise StageError(f"{name}: state that is no tensor cannot be stored safely")
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return tensors, aliases


def _rebuild(
    spec: ModelSpec,
    layers: Mapping[str, LayerCard],
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
) -> nn.Module:
    """Factory, sizes, weights. Raises IntegrityError where they do not fit."""
    # The initial weights are replaced; the seed only keeps the caller's generator untouched.
    model = create(spec, seed=0)
    resize_(model, layers, tensors, aliases)
    # Its own mapping carries the versions that some modules (MNASNet's) ask for on loading.
    state = model.state_dict()
    state.update(tensors)
    state.update({name: tensors[source] for name, source in aliases.items()})
    model.load_state_dict(state)
    return model.eval()


def _on_cpu(model: nn.Module) -> nn.Module:
    """The network itself, or a copy of one that is elsewhere: a GPU's TF32 rounds to 1e-3."""
    away = any(x.device.type != "cpu" for x in (*model.parameters(), *model.buffers()))
    return copy.deepcopy(model).cpu() if away else model


def _probe(model: nn.Module, spec: ModelSpec, failing: str, seed: int = _PROBE_SEED) -> Tensor:
    """Outputs [2, classes] on the CPU for the probe's inputs. Raises IntegrityError."""
    try:
        with evaluating(model):
            outputs = model(*example_inputs(spec, _PROBE_BATCH, seed))
    except CompressorError:
        raise
    except Exception as error:
        raise IntegrityError(f"{failing}: {error}") from error
    result: Tensor = outputs.float()
    if not bool(torch.isfinite(result).all()):
        raise IntegrityError("the network gives infinite or NaN outputs on random inputs")
    return result


def _same(recorded: Tensor, outputs: Tensor, what: str) -> None:
    """Raise IntegrityError unless the outputs agree; both [batch, classes]."""
    if recorded.shape != outputs.shape:
        raise IntegrityError(
            f"{what} gives outputs {tuple(outputs.shape)}, recorded {tuple(recorded.shape)}"
        )
    if torch.equal(recorded, outputs):
        return
    gap = float((recorded - outputs).abs().max())
    scale, size = float(recorded.std()), float(recorded.abs().max())
    if scale < _CONSTANT * size:
        scale = 0.01 * size
    if gap > max(_TOLERANCE * scale, _ROUNDING * size):
        raise IntegrityError(
            f"{what} gives other outputs than recorded: difference {gap:.3g}, "
            f"{gap / scale if scale else float('inf'):.3g} of their deviation"
        )


def _card(
    model: nn.Module,
    spec: ModelSpec,
    layers: Mapping[str, LayerCard],
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    outputs: Tensor,
    sha256: str,
) -> Card:
    macs = cost.layer_macs(model, spec)
    return Card(
        version=1,
        factory=spec.factory,
        arguments=_plain(spec.arguments),
        classes=spec.classes,
        task=spec.task,
        inputs=tuple(
            (name, InputCard(shape=x.shape, dtype=x.dtype, mean=x.mean, std=x.std))
            for name, x in spec.inputs.items()
        ),
        layers={k: v.model_copy(update={"macs": macs.get(k, 0)}) for k, v in layers.items()},
        tensors={
            k: TensorCard(shape=tuple(v.shape), dtype=dtype_name(v)) for k, v in tensors.items()
        },
        aliases=dict(aliases),
        probe=ProbeCard(seed=_PROBE_SEED, outputs=tuple(tuple(r) for r in outputs.tolist())),
        parameters=cost.parameters(model),
        macs=sum(macs.values()),
        sha256=sha256,
    )


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """JSON form without what only the first build uses."""
    kept = {k: v for k, v in arguments.items() if k not in RESERVED}
    try:
        plain: dict[str, Any] = json.loads(json.dumps(kept, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model: arguments must be JSON values: {error}") from error
    return plain


def _belongs(card: Card, spec: ModelSpec, folder: Path) -> None:
    """Raise IntegrityError unless the file was made for this spec."""
    shapes = [(name, tuple(x.shape), x.dtype) for name, x in spec.inputs.items()]
    recorded = [(name, x.shape, x.dtype) for name, x in card.inputs]
    for what, found, wanted in (
        ("factory", card.factory, spec.factory),
        ("arguments", card.arguments, _plain(spec.arguments)),
        ("classes", card.classes, tuple(spec.classes)),
        ("inputs", recorded, shapes),
        ("task", card.task, spec.task),
    ):
        if found != wanted:
            raise IntegrityError(
                f"{folder}: a checkpoint of another network: {what} {found}, the pipeline "
                f"says {wanted}"
            )


def _tensors(folder: Path, card: Card) -> dict[str, Tensor]:
    """The weights file, checked against the card. Raises IntegrityError."""
    path = folder / WEIGHTS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: {error.strerror}") from error
    if digest_bytes(data) != card.sha256:
        raise IntegrityError(f"{path}: {len(data)} bytes whose sha256 is not the recorded one")
    try:
        # Its own order changes from run to run; messages should not.
        tensors = dict(sorted(safetensors.torch.load(data).items()))
    except SafetensorError as error:
        raise IntegrityError(f"{path}: no safetensors file: {error}") from error
    found = {k: (tuple(v.shape), dtype_name(v)) for k, v in tensors.items()}
    wanted = {k: (v.shape, v.dtype) for k, v in card.tensors.items()}
    if found != wanted:
        odd = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        raise IntegrityError(
            f"{path}: {odd[0]}: stored {found.get(odd[0], 'nothing')}, recorded "
            f"{wanted.get(odd[0], 'nothing')}"
        )
    return tensors
