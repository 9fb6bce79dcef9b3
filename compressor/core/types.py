"""The values that stages exchange with the engine.

A stage is a function and a :class:`Stage` value that declares what it needs and makes; the
engine (``compressor.pipeline``) wires, keys, caches and runs them. Nothing here imports torch or
onnxruntime, so wiring and ``plan`` stay fast and work where neither is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from compressor.core.config import Config

C = TypeVar("C", bound=Config)

DATASET = "dataset"
CHECKPOINT = "checkpoint"
ONNX = "onnx"
PREDICTIONS = "predictions"
TIMINGS = "timings"
TABLE = "table"
BUNDLE = "bundle"

AA = "A/A"  # the name under which the first model of a measurement is measured again

MODEL_KINDS = frozenset({CHECKPOINT, ONNX})


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a stage.

    Attributes:
        value: The number, finite.
        unit: ``%``, ``pp``, ``ms``, ``bytes``, ``x`` (a ratio), ``dB``, ``count``, ``flag`` ...
            Accuracy is in percent, drops are in percentage points.
        better: The direction of improvement.
        samples: The raw measurements behind ``value`` (for ``x``: one ratio per round), or empty.
    """

    value: float
    unit: str
    better: Literal["higher", "lower"]
    samples: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One named input of a model.

    Attributes:
        shape: One sample without the batch dimension, e.g. ``(1, 28, 28)`` for CHW.
        dtype: How the dataset stores it: ``uint8`` images, ``float32`` or ``int64`` arrays.
            A ``uint8`` input enters a model as float32 divided by 255.
        mean: Per channel (axis 0 of ``shape``), after the division; empty means no normalisation.
        std: As ``mean``; every entry is above 0.
    """

    shape: tuple[int, ...]
    dtype: str = "uint8"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is needed to rebuild a network's graph: never read from a model file.

    Attributes:
        factory: ``module:attribute`` of the function that returns the ``nn.Module``.
        arguments: JSON-able keyword arguments of the factory (without classes and shapes).
        classes: Class names in label order; empty for regression.
        inputs: Name to :class:`InputSpec`, in the order in which ``forward`` takes them.
        task: Name of the :class:`compressor.core.tasks.Task`.
    """

    factory: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]
    inputs: Mapping[str, InputSpec]
    task: str = "classification"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file or folder in the store.

    Attributes:
        name: The stage that made it, as the pipeline file names it; ``stage.output`` where the
            stage makes several of this kind.
        kind: One of the constants above, or a user's own word.
        path: File or folder; read-only by convention.
        digest: sha256 of the content (of a folder: of its sorted names and contents).
        spec: For models, the network's lineage; copied by the engine from the config.
    """

    name: str
    kind: str
    path: Path
    digest: str
    spec: ModelSpec | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """What a stage takes under one input name.

    Attributes:
        kind: Artifact kind.
        many: A tuple of artifacts instead of one.
        optional: May be missing.
        val: The stage chooses, so the engine also gives the predictions of this input on the
            validation split, under ``"<input name>.val"`` (a tuple where ``many``).
    """

    kind: str
    many: bool = False
    optional: bool = False
    val: bool = False


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage returns: a path inside ``ctx.workdir`` for each declared output, and metrics."""

    outputs: Mapping[str, Path]
    metrics: Mapping[str, Metric] = field(default_factory=dict)


class Progress(Protocol):
    """Where a stage reports how far it is. Implementations never raise and never slow a loop."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Say that ``done`` of ``total`` units are finished; ``note`` is one short line."""

    def say(self, line: str) -> None:
        """Print one line that stays (a verdict, a warning)."""


@dataclass(frozen=True, slots=True)
class TimingProtocol:
    """How latency is measured; part of the key under which a measurement is stored.

    Attributes:
        provider: ``cpu`` or ``cuda``.
        threads: Intra-op threads, at least 1.
        batch: Samples per call.
        rounds: Interleaved rounds; each visits every model once in random order.
        min_cell_ms: A cell repeats calls until it has lasted at least this long.
        warmup_ms: Least warm-up time per model.
        inputs: Digest of the arrays that are fed, or ``""`` for random inputs of ``seed``.
        seed: Seeds the order of models in a round and random inputs.
    """

    provider: str = "cpu"
    threads: int = 1
    batch: int = 1
    rounds: int = 30
    min_cell_ms: float = 50.0
    warmup_ms: float = 500.0
    inputs: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """One interleaved measurement of several models on one machine.

    Attributes:
        machine: Fingerprint, see ``core.environment.machine_fingerprint``.
        protocol: What was done.
        calls: Model name to every timed call in milliseconds, in order.
        rounds: Model name to the median call of each round in milliseconds; the entries of one
            index were measured beside each other and may be divided. The first model is
            measured a second time under the name :data:`AA`.
        unstable: The A/A median left 0.95-1.05, or the machine was busy; do not decide by this.
        note: Why it is unstable, or empty.
        digest: sha256 of the record; stages keep it to say which timings they read.
    """

    machine: str
    protocol: TimingProtocol
    calls: Mapping[str, tuple[float, ...]]
    rounds: Mapping[str, tuple[float, ...]]
    unstable: bool = False
    note: str = ""
    digest: str = ""


class Timings(Protocol):
    """The only way in which a stage measures latency; the engine stores and reuses results."""

    def measure(
        self,
        models: Mapping[str, Path],
        protocol: TimingProtocol,
        feed: Mapping[str, Any] | None = None,
    ) -> Timing:
        """Measure ONNX files interleaved.

        Args:
            models: Name to file. The first is the one that the A/A control repeats.
            protocol: How; with ``feed``, ``protocol.inputs`` must be the digest of the feed.
            feed: Input name to array ``[n, ...]`` with ``n >= batch`` samples to cycle through;
                None feeds random values of the model's own shapes.
        """

    def profile(
        self, model: Path, protocol: TimingProtocol, feed: Mapping[str, Any] | None = None
    ) -> Mapping[str, float]:
        """Microseconds of each node of the graph that the runtime executes.

        Args:
            model: ONNX file.
            protocol: ``rounds`` calls at its batch, threads and provider.
            feed: As for :meth:`measure`; the first batch of it is used.
        """


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage gets besides its config and inputs.

    Attributes:
        workdir: Empty folder; all outputs are written below it.
        resume: Folder that survives a kill and is removed on success.
        seed: Root of all randomness of the stage.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads that the stage may use.
        progress: Where it reports.
        timings: How it measures latency.
    """

    workdir: Path
    resume: Path
    seed: int
    device: str
    threads: int
    progress: Progress
    timings: Timings


Inputs = Mapping[str, Artifact | tuple[Artifact, ...]]


def no_files(config: Any) -> Sequence[Path]:
    """No externals."""
    return ()


def no_code(config: Any) -> Sequence[str]:
    """No code beyond the stage's own imports."""
    return ()


def no_check(config: Any, device: str) -> None:
    """Every machine will do."""


@dataclass(frozen=True, slots=True)
class Stage(Generic[C]):
    """A named step: a function plus what the engine must know to wire and cache it.

    Attributes:
        name: Short name, used in the key.
        config: Pydantic class of the ``with`` mapping.
        run: The function; imports its rooms inside.
        needs: Input name to :class:`Need`.
        makes: Output name to kind. The first is the stage's main output.
        externals: Files outside the store that the result depends on.
        code: ``module:attribute`` references that the config selects (a model, a dataset); their
            source joins the key.
        spec: For a stage that introduces a network: its :class:`ModelSpec` from config and
            inputs. Otherwise the spec of the input named ``model`` is inherited.
        deterministic: The same key gives the same bytes.
        measures: The result depends on latency, so the machine's fingerprint joins the key and
            ``--rebench`` makes it stale; a function where it depends on the config. Ask
            :meth:`measures_with`.
        needs_extra: Import names that must be importable, e.g. ``("torch",)``.
        check: Given the config and ``cpu`` or ``cuda``: raises MissingError if this machine cannot
            run it, ``KEY: why`` where an option is the reason. The engine asks before anything
            runs, and ``plan`` too, so import what computes only for configs that depend on it.
    """

    name: str
    config: type[C]
    run: Callable[[C, Inputs, Context], StageResult]
    needs: Mapping[str, Need]
    makes: Mapping[str, str]
    externals: Callable[[C], Sequence[Path]] = no_files
    code: Callable[[C], Sequence[str]] = no_code
    spec: Callable[[C, Inputs], ModelSpec] | None = None
    deterministic: bool = True
    measures: bool | Callable[[C], bool] = False
    needs_extra: tuple[str, ...] = ()
    check: Callable[[C, str], None] = no_check

    def measures_with(self, config: C) -> bool:
        """Whether a run with this config depends on latency."""
        return self.measures(config) if callable(self.measures) else self.measures


def one(inputs: Inputs, name: str) -> Artifact:
    """The single artifact under ``name``. Raises KeyError if it is missing or several."""
    got = inputs[name]
    if isinstance(got, tuple):
        raise KeyError(f"{name} holds {len(got)} artifacts, not one")
    return got


def maybe(inputs: Inputs, name: str) -> Artifact | None:
    """The single artifact under ``name``, or None where the optional input is missing."""
    return one(inputs, name) if name in inputs else None


def several(inputs: Inputs, name: str) -> tuple[Artifact, ...]:
    """All artifacts under ``name``, empty if missing."""
    got = inputs.get(name, ())
    return got if isinstance(got, tuple) else (got,)
