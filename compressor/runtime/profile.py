"""What ONNX Runtime makes of a model: its optimised graph, fusion, and time per node."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import onnx

from compressor.core.errors import ConfigError
from compressor.core.types import TimingProtocol
from compressor.runtime.session import open_session

_FLOAT_CONVS = {"Conv", "FusedConv", "ConvTranspose"}
_SUFFIX = "_kernel_time"


@dataclass(frozen=True, slots=True)
class FusionReport:
    """How much of a quantized model really runs in int8.

    Attributes:
        float_convs: Names, in the file, of convolutions that run in float.
        qconvs: Convolutions that run in int8.
        qlinear: All int8 operators by type (QLinearConv, QGemm, QLinearAdd ...).
        dq: DequantizeLinear nodes left.
        transposes: Layout changes around int8 islands (2 for one island).
        reorders: Layout changes of blocked float convolutions.
        ops: Every operator type of the optimised graph and its count.
    """

    float_convs: tuple[str, ...]
    qconvs: int
    qlinear: Mapping[str, int]
    dq: int
    transposes: int
    reorders: int
    ops: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Every convolution is int8."""
        return not self.float_convs


def optimized_graph(
    path: Path,
    *,
    provider: str = "cpu",
    threads: int = 1,
    config: Mapping[str, str] | None = None,
    disabled_optimizers: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """The graph that ONNX Runtime executes on this machine. Raises as :func:`open_session`."""
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder, "optimized.onnx")
        open_session(path, provider=provider, threads=threads, dump=dump, config=config or {},
                     disabled_optimizers=disabled_optimizers)  # fmt: skip
        return onnx.load(str(dump))


def op_counts(model: onnx.ModelProto) -> Counter[str]:
    """Operator type to count, in the main graph."""
    return Counter(node.op_type for node in model.graph.node)


def fusion(
    path: Path,
    *,
    config: Mapping[str, str] | None = None,
    disabled_optimizers: tuple[str, ...] = (),
) -> FusionReport:
    """Read off the optimised graph what was fused. Raises as :func:`open_session`."""
    ran = optimized_graph(path, config=config, disabled_optimizers=disabled_optimizers)
    original = onnx.load(str(path), load_external_data=False)
    ops = op_counts(ran)
    return FusionReport(
        float_convs=_float_convs(original, ran),
        qconvs=ops["QLinearConv"],
        qlinear={k: n for k, n in sorted(ops.items()) if k.startswith(("QLinear", "QGemm"))},
        dq=ops["DequantizeLinear"],
        transposes=ops["Transpose"],
        reorders=ops["ReorderInput"] + ops["ReorderOutput"],
        ops=dict(sorted(ops.items())),
    )


def _float_convs(original: onnx.ModelProto, ran: onnx.ModelProto) -> tuple[str, ...]:
    """Names in the original file: fusion renames nodes but keeps a tensor at their border.

    A fused convolution carries the name of its last output (that of the activation after it), so
    the way back is from an output through element-wise nodes to the convolution before them.
    """
    made = {out: node for node in original.graph.node for out in node.output}
    names = []
    for node in ran.graph.node:
        if node.op_type not in _FLOAT_CONVS:
            continue
        marks = (*node.output, node.name)  # a blocked convolution is named after its output
        found = next((n for mark in marks if (n := _conv_before(mark, made))), None)
        names.append((found.name or found.output[0]) if found else node.name)
    return tuple(names)


def _conv_before(output: str, made: Mapping[str, Any]) -> Any:
    """Breadth-first to the nearest convolution, at most 4 nodes back."""
    front = [output.removesuffix("_nchwc")]
    for _ in range(4):
        nodes = [made[name] for name in front if name in made]
        for node in nodes:
            if node.op_type in _FLOAT_CONVS:
                return node
        front = [name for node in nodes for name in node.input]
    return None


def profiled(
    path: Path, protocol: TimingProtocol, feed: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """:func:`node_times` by a protocol, alone on the machine; the first batch is fed."""
    from compressor.core.locks import MACHINE
    from compressor.runtime.calls import first_batch

    batch = first_batch(path, protocol, feed)
    with MACHINE.alone():
        return node_times(path, batch, runs=protocol.rounds, provider=protocol.provider,
                          threads=protocol.threads)  # fmt: skip


def node_times(
    path: Path,
    feed: Mapping[str, Any],
    *,
    runs: int = 20,
    provider: str = "cpu",
    threads: int = 1,
    config: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Median microseconds of each node of the optimised graph, in order of execution.

    Profiling slows every node a little: good for shares, not for the latency of the model.

    Args:
        path: The model.
        feed: One batch in the model's own types.
        runs: Timed runs after 5 to warm up, at least 1.
        provider: ``cpu`` or ``cuda``.
        threads: Intra-op threads.
        config: Session config entries.

    Raises:
        ConfigError: ``runs`` below 1; else as :func:`open_session`.
    """
    if runs < 1:
        raise ConfigError(f"runs: {runs}; give at least 1")
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, provider=provider, threads=threads, config=config or {},
                               profile=Path(folder, "profile"))  # fmt: skip
        for _ in range(5 + runs):
            session.run(None, dict(feed))
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[int]] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            times.setdefault(name.removesuffix(_SUFFIX), []).append(event["dur"])
    return {name: float(median(values[5:] or values)) for name, values in times.items()}
