"""From a :class:`ModelSpec` to an ``nn.Module`` that is known to be one: called, shaped, finite."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compressor.core.errors import CompressorError, ConfigError, MissingError, suggestion
from compressor.core.resolve import load as resolve
from compressor.core.types import ModelSpec
from compressor.models.config import RESERVED
from compressor.models.weights import load_weights_

# Of the largest output. Equal batch sizes run equal kernels, and a sample's neighbours must not
# matter; other batch sizes may sum in another order.
_NEIGHBOURS = 1e-5
_BATCH_SIZE = 1e-3


def build(
    spec: ModelSpec,
    where: str = "model",
    *,
    seed: int | None = None,
    say: Callable[[str], None] | None = None,
) -> nn.Module:
    """A fresh network on the CPU in training mode, with ``spec``'s weights if it names any.

    Args:
        spec: The factory and its arguments.
        where: Config key for error messages.
        seed: Seeds the initialisation; torch's global generator is then left as it was. None
            draws from that generator.
        say: Is told which tensors the file of weights did not give.

    Raises:
        ConfigError: The arguments do not fit the function, or the network does not map
            [batch, *shape] to [batch, classes] sample by sample.
        MissingError: The factory's own imports are not installed.
        IntegrityError: The weights file is not the one that was named.
    """
    model = create(spec, where, seed=seed)
    load_weights_(model, spec, where, say)
    check(model, spec, where)
    return model


def outputs(spec: ModelSpec) -> int:
    """Columns of the network's output: classes, or 1 for regression."""
    return len(spec.classes) or 1


def example_inputs(spec: ModelSpec, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random inputs as the bare network takes them, in ``forward``'s order.

    Standard normal float32 (normalised data), or 0 and 1 where the dataset stores integers other
    than ``uint8``. Each tensor is [batch, *shape].
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for put in spec.inputs.values():
        shape = (batch, *put.shape)
        if put.dtype in ("int64", "int32"):
            dtype = torch.int64 if put.dtype == "int64" else torch.int32
            tensors.append(torch.randint(0, 2, shape, generator=generator, dtype=dtype))
        else:
            tensors.append(torch.randn(shape, generator=generator))
    return tuple(tensors)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def create(spec: ModelSpec, where: str = "model", *, seed: int | None = None) -> nn.Module:
    """As :func:`build`, without reading weights and without checking the outputs."""
    factory = _factory(spec, where)
    arguments = _arguments(factory, spec, where)
    with contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(torch.random.fork_rng(devices=[]))
            torch.default_generator.manual_seed(seed)
        try:
            model = factory(**arguments)
        except CompressorError:
            raise
        except ImportError as error:
            raise MissingError(f"{where}: {spec.factory} cannot import: {error}") from error
        except Exception as error:
            raise ConfigError(
                f"{where}: {spec.factory} fails with {_short(arguments)}: {_why(error)}"
            ) from error
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"{where}: {spec.factory} returned {type(model).__name__}, not an nn.Module"
            )
        if any(is_lazy(p) for p in model.parameters()):
            with evaluating(model):
                _call(model, spec, 2, where)
    return model


def _factory(spec: ModelSpec, where: str) -> Callable[..., Any]:
    try:
        factory = resolve(spec.factory, where)
    except ImportError as error:
        raise MissingError(f"{where}: {spec.factory} cannot be imported: {error}") from error
    if not callable(factory):
        raise ConfigError(f"{where}: {spec.factory} is {type(factory).__name__}, not a function")
    return factory  # type: ignore[no-any-return]  # callable() narrows Any to itself


def _arguments(factory: Callable[..., Any], spec: ModelSpec, where: str) -> dict[str, Any]:
    """The spec's arguments and those of the dataset that the function names. Raises ConfigError."""
    signature = inspect.signature(factory)
    takes = signature.parameters
    free = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in takes.values())
    arguments = {k: v for k, v in spec.arguments.items() if k not in RESERVED}
    names = [n for n, p in takes.items() if p.kind not in _VARIADIC]
    problems = [
        f"{where}: {spec.factory} takes no argument {key!r}{suggestion(key, names)}"
        for key in arguments
        if key not in names and not free
    ]
    shapes = {name: tuple(put.shape) for name, put in spec.inputs.items()}
    if "num_classes" in takes:
        arguments["num_classes"] = outputs(spec)
    if "input_shapes" in takes:
        arguments["input_shapes"] = shapes
    if "input_shape" in takes:
        if len(shapes) == 1:
            arguments["input_shape"] = next(iter(shapes.values()))
        else:
            problems.append(
                f"{where}: {spec.factory} takes one input_shape, the dataset has inputs "
                f"{', '.join(shapes)}; take input_shapes instead"
            )
    if problems:
        raise ConfigError(*problems)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{where}: {spec.factory}: {error}") from error
    return arguments


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def check(model: nn.Module, spec: ModelSpec, where: str = "model") -> None:
    """Refuse a network whose output is not [batch, classes], finite, and sample by sample.

    Raises:
        ConfigError: With what the network does instead.
    """
    with evaluating(model):
        first = _call(model, spec, 3, where)
        # The same first sample between other neighbours, then the first two alone.
        others = _call(model, spec, 3, where, mixed=True)
        pair = _call(model, spec, 2, where)
    scale = float(first.abs().max())
    if float((first[0] - others[0]).abs().max()) > _NEIGHBOURS * scale:
        raise ConfigError(
            f"{where}: the outputs of a sample change with the other samples of its batch (in "
            "evaluation mode); look for a BatchNorm without running statistics, a mean, softmax or "
            "normalisation over dimension 0, or dropout that ignores the mode"
        )
    if float((first[:2] - pair).abs().max()) > _BATCH_SIZE * scale:
        raise ConfigError(f"{where}: the outputs of a sample change with the size of its batch")


def _call(model: nn.Module, spec: ModelSpec, batch: int, where: str, mixed: bool = False) -> Tensor:
    """Outputs [batch, classes] for seeded inputs, or a ConfigError.

    Inputs of one seed begin with the same samples whatever the batch; ``mixed`` keeps the first
    and changes the others.
    """
    inputs = tuple(x[:batch] for x in example_inputs(spec, 3))
    if mixed:
        fresh = example_inputs(spec, 3, seed=1)
        inputs = tuple(torch.cat([a[:1], b[1:]]) for a, b in zip(inputs, fresh, strict=True))
    shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
    try:
        result = model(*inputs)
    except Exception as error:
        raise ConfigError(
            f"{where}: the network fails on a batch of {batch} samples, {shapes}: {_why(error)}"
            + _batch_advice(model, spec)
        ) from error
    if not isinstance(result, Tensor):
        raise ConfigError(
            f"{where}: the network returns {type(result).__name__}; return one tensor "
            "[batch, classes]"
        )
    wanted = outputs(spec)
    if result.ndim != 2 or result.shape[0] != batch:
        raise ConfigError(
            f"{where}: inputs {shapes} give an output of shape {tuple(result.shape)}, not "
            f"({batch}, {wanted}); keep the batch dimension, e.g. torch.flatten(x, 1)"
        )
    if result.shape[1] != wanted:
        kind = f"{wanted} classes" if spec.classes else "one value per sample"
        raise ConfigError(
            f"{where}: model gives {result.shape[1]} outputs, dataset has {kind}; let the "
            "function take num_classes"
        )
    if not bool(torch.isfinite(result).all()):
        raise ConfigError(f"{where}: the network gives infinite or NaN outputs on random inputs")
    return result.float()


def _batch_advice(model: nn.Module, spec: ModelSpec) -> str:
    """A tail for the message where one sample works and several do not."""
    try:
        model(*(x[:1] for x in example_inputs(spec, 3)))
    except Exception:
        return ""
    return "; one sample alone works: keep the batch dimension, e.g. torch.flatten(x, 1)"


def _why(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _short(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in arguments.items())[:200]
