"""ONNX Runtime sessions: one way to open a model, checked, on the provider that was asked for."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import onnx
import onnxruntime
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from compressor.core.environment import check_onnxruntime
from compressor.core.errors import (
    CompressorError,
    ConfigError,
    IntegrityError,
    MissingError,
    suggestion,
)

PROVIDERS = MappingProxyType({"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"})
_NO_CONFIG: Mapping[str, str] = MappingProxyType({})
_MAX_BYTES = 2 << 30  # protobuf's own limit
_FATAL = 4  # errors are raised as exceptions anyway; ORT would print them a second time


def open_session(
    path: Path,
    *,
    provider: str = "cpu",
    threads: int = 1,
    optimize: Literal["all", "none"] = "all",
    dump: Path | None = None,
    profile: Path | None = None,
    config: Mapping[str, str] = _NO_CONFIG,
    disabled_optimizers: Sequence[str] = (),
    denormals_as_zero: bool = False,
    tf32: bool = False,
) -> Any:
    """Open an ONNX (or ``.ort``) file on one provider, without any fallback.

    Args:
        path: The model file; see :func:`check_file` for what is refused.
        provider: ``cpu`` or ``cuda``.
        threads: Intra-op threads, at least 1. Inter-op is 1 and idle threads do not spin: a second
            session's spinning pool would steal the CPU of the one being measured.
        optimize: ``all`` graph optimisations as deployed, or ``none``.
        dump: Write the optimised graph there.
        profile: Write ONNX Runtime's per-node profile to files with this prefix.
        config: Further session config entries, e.g. ``session.x64quantprecision``.
        disabled_optimizers: Names of ONNX Runtime graph transformers to leave out.
        denormals_as_zero: Flush denormals. ONNX Runtime applies it to the calling thread only for
            the first session of a process, so set it for all sessions or for none.
        tf32: Allow TF32 on CUDA (ONNX Runtime's default; off here, because parity needs fp32).

    Returns:
        ``onnxruntime.InferenceSession``.

    Raises:
        ConfigError: Unknown provider or threads below 1; an opset, IR version or operator that
            this ONNX Runtime does not read.
        IntegrityError: Not an ONNX file, or a damaged one.
        MissingError: No or several onnxruntime packages; the provider is not there, or would run
            only a part of the model.
    """
    check_onnxruntime()
    if threads < 1:
        raise ConfigError(f"threads: {threads}; give at least 1")
    check_provider(provider)
    check_file(path)
    entries = {"session.intra_op.allow_spinning": "0"}
    if denormals_as_zero:
        entries["session.set_denormal_as_zero"] = "1"
    if provider != "cpu":
        entries["session.disable_cpu_ep_fallback"] = "1"
    options = _options(threads, optimize, dump, profile, {**entries, **config})
    session = _create(path, options, _providers(provider, tf32), list(disabled_optimizers))
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise MissingError(
            f"{path}: asked for {PROVIDERS[provider]}, got {session.get_providers()[0]}"
        )
    session.disable_fallback()
    return session


def _options(
    threads: int,
    optimize: Literal["all", "none"],
    dump: Path | None,
    profile: Path | None,
    entries: Mapping[str, str],
) -> Any:
    """Session options; arguments as :func:`open_session` has them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        level.ORT_ENABLE_ALL if optimize == "all" else level.ORT_DISABLE_ALL
    )
    if dump is not None:
        options.optimized_model_filepath = str(dump)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def _providers(provider: str, tf32: bool) -> list[Any]:
    """The provider list of a session; CUDA's libraries are loaded first."""
    if provider == "cpu":
        return [PROVIDERS["cpu"]]
    onnxruntime.preload_dlls()
    return [(PROVIDERS[provider], {"device_id": "0", "use_tf32": "1" if tf32 else "0"})]


def _create(path: Path, options: Any, providers: list[Any], disabled: list[str]) -> Any:
    try:
        # A model's own metadata must not configure the session, whatever the environment says.
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=providers,
            disabled_optimizers=disabled or None,
            enable_fallback=0,
            read_config_from_model=0,
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise _explain(path, providers, error) from error


def _explain(path: Path, providers: list[Any], error: Exception) -> CompressorError:
    """One line instead of ONNX Runtime's stack of source locations."""
    text = " ".join(str(error).split())
    version = f"ONNX Runtime {onnxruntime.__version__}"
    if found := re.search(r"Opset (\d+) is under development.*till opset (\d+)", text):
        return ConfigError(f"{path}: opset {found[1]}; {version} reads up to {found[2]}")
    if found := re.search(r"IR version: (\d+), max supported IR version: (\d+)", text):
        return ConfigError(f"{path}: IR version {found[1]}; {version} reads up to {found[2]}")
    if "CPU EP" in text and "disabled" in text:
        return MissingError(f"{path}: parts of this model have no kernel in {providers[0][0]}")
    short = re.sub(r"^.*?failed:\s*(/\S+\s+.*?\)\s)?", "", text)[:300]
    if found := re.search(r"No Op registered for (\S+) with domain_version of (\d+)", text):
        return ConfigError(f"{path}: {version} has no operator {found[1]} in opset {found[2]}")
    if "is not a registered function/op" in text:
        return ConfigError(f"{path}: {version} cannot run it: {short}")
    if providers[0] != PROVIDERS["cpu"]:
        return MissingError(f"{path}: {providers[0][0]} did not start: {short}")
    return IntegrityError(f"{path}: {version} refuses this model: {short}")


def check_provider(provider: str) -> None:
    """Raise ConfigError for an unknown provider, MissingError for one that is not installed."""
    if provider not in PROVIDERS:
        raise ConfigError(f"provider: unknown {provider!r}{suggestion(provider, PROVIDERS)}")
    available = onnxruntime.get_available_providers()
    if PROVIDERS[provider] not in available:
        here = [short for short, long in PROVIDERS.items() if long in available]
        raise MissingError(
            f"provider: {provider!r} is not in this ONNX Runtime (it has {', '.join(here)}); "
            f'on a CUDA machine replace onnxruntime by `pip install "compressor[gpu]"`'
        )


def check_file(path: Path) -> None:
    """Refuse a file that is no ONNX model or that reaches outside its own folder.

    External data must lie in regular files beside the model: ONNX Runtime follows hard links,
    so they are refused too.

    Raises:
        ConfigError: No such file.
        IntegrityError: Not a regular file, too large, not an ONNX model, or external data with
            an absolute path, a folder part or a link.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file")
    if not path.is_file():
        raise IntegrityError(f"{path}: not a file")
    if path.suffix == ".ort":
        return
    if path.stat().st_size > _MAX_BYTES:
        raise IntegrityError(f"{path}: {path.stat().st_size >> 20} MiB; an ONNX file ends at 2 GiB")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise IntegrityError(f"{path}: not an ONNX file, or a damaged one") from error
    if not model.HasField("graph") or not model.opset_import:
        raise IntegrityError(f"{path}: not an ONNX file (no graph or no opset)")
    for tensor in tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(path, tensor)


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    location = next((e.value for e in tensor.external_data if e.key == "location"), "")
    plain = location not in {"", ".", ".."} and not set(location) & {"/", "\\", "\0"}
    if not plain:
        raise IntegrityError(
            f"{path}: tensor {tensor.name!r} lies in {location!r}; "
            "external data must be a file beside the model"
        )
    try:
        info = (path.parent / location).lstat()
    except OSError as error:
        raise IntegrityError(f"{path}: its external data {location!r} is not there") from error
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        raise IntegrityError(f"{path}: its external data {location!r} is a link or no plain file")


def tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """All tensors of a model: initializers and attributes, in subgraphs and functions too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            graphs.extend([attribute.g] if attribute.HasField("g") else [])
            graphs.extend(attribute.graphs)


def input_shapes(session: Any, batch: int, where: str = "model") -> dict[str, tuple[int, ...]]:
    """Input name to concrete shape ``[batch, ...]``.

    Raises:
        ConfigError: The file fixes another batch size, or leaves another dimension open.
    """
    shapes = {}
    for node in session.get_inputs():
        dims = list(node.shape)
        if not dims or any(not isinstance(d, int) for d in dims[1:]):
            raise ConfigError(f"{where}: input {node.name!r} has the open shape {dims}; only the "
                              "first dimension (the batch) may be open")  # fmt: skip
        if isinstance(dims[0], int) and dims[0] != batch:
            raise ConfigError(f"{where}: input {node.name!r} is fixed at batch {dims[0]}, "
                              f"asked for {batch}")  # fmt: skip
        shapes[node.name] = (batch, *dims[1:])
    return shapes


def fixed_batch(session: Any) -> int | None:
    """The batch size that the file fixes, or None where it is open."""
    first = session.get_inputs()[0].shape
    return int(first[0]) if first and isinstance(first[0], int) else None
