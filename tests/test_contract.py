"""One contract over every stage that ships."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from compressor.core import resolve, types
from compressor.core.config import Config
from compressor.core.store import Store
from compressor.pipeline import execution, keys, wiring
from compressor.pipeline.keys import Settings
from compressor.pipeline.progress import Quiet
from compressor.pipeline.state import State
from compressor.stages import STAGES
from compressor.testing import check_stage
from tests.helpers import write_arrays

PIPELINE = """
name: contract
stages:
  data:
    uses: data
    with: {{dataset: arrays, root: {root}, calibration: 70, val: 0.1, test: 0.1}}
  teacher: {{uses: train, with: {{model: {net}, epochs: 1, batch_size: 32}}}}
  student:
    uses: distill
    in: {{teacher: teacher}}
    with: {{model: {net}, epochs: 1, batch_size: 32}}
  pruned:
    uses: prune
    in: {{model: student, teacher: teacher}}
    with: {{method: channels, ratio: 0.5, finetune: {{epochs: 1, batch_size: 32}}}}
  tuned:
    uses: qat
    in: {{model: pruned, teacher: teacher}}
    with: {{epochs: 1, batch_size: 32, calibration: 64}}
  fp32: {{uses: export, in: {{model: tuned}}}}
  int8: {{uses: quantize, in: {{model: fp32}}, with: {{calibration: 64, placement: none}}}}
  bench:
    uses: bench
    in: {{baseline: fp32, candidates: [fp32, int8]}}
    with: {{rounds: 10, min_cell_ms: 0, warmup_ms: 0, memory: 0}}
  bundle:
    uses: bundle
    in: {{timings: bench, candidates: [fp32, int8], teacher: teacher}}
    with: {{max_drop: 100}}
"""
NET = "{name: resnet, depth: 4, widths: [16], strides: [1]}"
# Metrics that other stages, gates and reports look for.
METRICS = {
    "qat": ("val_score", "val_before_finetune"),
    "evaluate": ("accuracy", "parameters", "macs", "bytes", "zstd_bytes"),
    "export": ("parity_max", "denormals"),
    "quantize": ("sqnr", "agreement", "float_convs"),
    "bench": ("fp32.p50", "int8.speedup", "int8.throughput", "unstable", "aa"),
    "bundle": ("speedup", "bytes", "bytes_ratio", "drop_val", "unstable", "within"),
}
KINDS = {types.DATASET, types.CHECKPOINT, types.ONNX, types.PREDICTIONS, types.TIMINGS,
         types.TABLE, types.BUNDLE}  # fmt: skip


@dataclass
class World:
    """A tiny pipeline that ran: every node with its true inputs."""

    pipeline: wiring.Pipeline
    state: State

    def node(self, name: str) -> wiring.Node:
        return self.pipeline.node(name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("contract")
    data = write_arrays(folder / "data.npz", n=120)
    file = folder / "contract.yaml"
    file.write_text(PIPELINE.format(root=data, net=NET))
    pipeline = wiring.load(file)
    state = State(Store(folder / "store"), Settings("cpu", 1))
    execution.execute(pipeline, state, pipeline.nodes, execution.Options(), Quiet())
    return World(pipeline, state)


def stage(name: str) -> types.Stage[Any]:
    found: types.Stage[Any] = resolve.load(STAGES[name], name)
    return found


def test_the_tiny_pipeline_has_every_stage(world: World) -> None:
    assert {node.stage.name for node in world.pipeline.nodes} == set(STAGES)


NODES = ["data", "teacher", "student", "pruned", "tuned", "fp32", "int8", "bench", "bundle",
         "teacher@val", "int8@test"]  # fmt: skip


@pytest.mark.parametrize("name", NODES)
def test_a_stage_keeps_its_contract(world: World, name: str, tmp_path: Path) -> None:
    node = world.node(name)
    wanted = METRICS.get(node.stage.name, ())
    check_stage(node.stage, node.config, world.state.inputs(node), tmp_path, metrics=wanted)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_declared_well(name: str) -> None:
    found = stage(name)
    assert found.name == name
    assert found.makes
    assert set(found.makes.values()) <= KINDS
    assert {need.kind for need in found.needs.values()} <= KINDS
    assert issubclass(found.config, Config)
    assert found.run.__doc__ or found.config.__doc__


def test_stage_modules_import_neither_torch_nor_onnxruntime() -> None:
    """They are imported by ``plan`` and ``--help``, and where torch is not installed."""
    code = (
        "import importlib, json, sys\n"
        "from compressor.stages import STAGES\n"
        "for reference in STAGES.values(): importlib.import_module(reference.partition(':')[0])\n"
        "import compressor.cli, compressor.api\n"
        "heavy = ('torch', 'torchvision', 'onnxruntime', 'onnx', 'sklearn', 'matplotlib')\n"
        "print(json.dumps([m for m in heavy if m in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# -- every config field changes the key ---------------------------------------------------------

MINIMAL: dict[str, dict[str, Any]] = {
    "data": {"dataset": "digits"},
    "train": {"model": {"name": "resnet"}},
    "distill": {"model": {"name": "resnet"}},
    "prune": {"method": "channels", "target_macs": 0.5},
}
_RESNET, _FILE = {"name": "resnet"}, {"name": "resnet", "weights": "w.safetensors"}
_MODEL_PAIRS = {
    "model.name": ({"model": _RESNET}, {"model": {"name": "mobilenet"}}),
    "model.weights": ({"model": _RESNET}, {"model": _FILE}),
    "model.sha256": ({"model": _FILE}, {"model": _FILE | {"sha256": "a" * 64}}),
}
# Complete options for fields that depend on others.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{
        f"{name}.{key}": pair for name in ("train", "distill") for key, pair in _MODEL_PAIRS.items()
    },
    "data.dataset": ({"dataset": "digits"}, {"dataset": "a_pkg.a_module:function"}),
    "data.root": ({"dataset": "arrays", "root": "a"}, {"dataset": "arrays", "root": "b"}),
    "data.download": (
        {"dataset": "cifar10", "root": "x"},
        {"dataset": "cifar10", "root": "x", "download": True},
    ),
    "data.options": ({"dataset": "digits"}, {"dataset": "digits", "options": {"size": 16}}),
    "prune.method": ({"ratio": 0.5}, {"method": "weights", "sparsity": 0.5}),
    "prune.target_params": ({"target_macs": 0.5}, {"target_params": 0.5}),
    "prune.ratio": ({"target_macs": 0.5}, {"ratio": 0.5}),
    "prune.sparsity": (
        {"method": "weights", "sparsity": 0.5},
        {"method": "weights", "sparsity": 0.6},
    ),
    "prune.schedule": (
        {"method": "weights", "sparsity": 0.5},
        {"method": "weights", "sparsity": 0.5, "schedule": "one_shot"},
    ),
}


def fields(cls: type[BaseModel], above: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted name, annotation and default of every field, those of nested configs included."""
    found = []
    for name, info in cls.model_fields.items():
        dotted = f"{above}{name}"
        parts = (info.annotation, *get_args(info.annotation))
        below = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
        if not below:
            found.append((dotted, info.annotation, info.get_default(call_default_factory=True)))
        for part in below:
            found += fields(part, f"{dotted}.")
    return found


def candidates(annotation: Any, value: Any) -> list[Any]:
    """Other values of a type, likely ones first."""
    if get_origin(annotation) in (Union, UnionType):
        return [c for part in get_args(annotation) for c in candidates(part, value)]
    if get_origin(annotation) is Literal:
        return [v for v in get_args(annotation) if v != value]
    if hasattr(annotation, "__metadata__"):
        return candidates(get_args(annotation)[0], value)
    if annotation is bool:
        return [not value]
    if annotation is int:
        near = [value + 1, value * 2, value - 1] if isinstance(value, int) else []
        return [*near, 3, 64, 128]
    if annotation is float:
        near = [value * 0.9, value * 1.1, value + 0.5] if isinstance(value, float | int) else []
        return [*near, 0.25, 0.5, 3.0, 60.0]
    if get_origin(annotation) in (list, tuple):
        return [[c] for c in candidates(get_args(annotation)[0], None)]
    if annotation is str:
        return ["other", "a"]
    if annotation is Path:
        return ["other"]
    return []


def put(tree: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(tree))
    *parents, last = dotted.split(".")
    node = copied
    for part in parents:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[last] = value
    return copied


def build(cls: type[Config], options: dict[str, Any]) -> Config | None:
    try:
        return cls.model_validate_json(json.dumps(options), strict=True)
    except ValidationError:
        return None


def pairs(name: str, dotted: str, annotation: Any, value: Any) -> tuple[Config, Config]:
    """Two valid configs that differ in one field."""
    cls, minimal = stage(name).config, MINIMAL.get(name, {})
    written = PAIRS.get(f"{name}.{dotted}")
    if written is not None:
        one, two = (build(cls, options) for options in written)
        assert one is not None
        assert two is not None
        return one, two
    before = build(cls, minimal)
    assert before is not None
    for other in candidates(annotation, value):
        after = build(cls, put(minimal, dotted, other))
        if after is not None and after != before:
            return before, after
    raise AssertionError(f"{name}.{dotted}: no other valid value found; add it to PAIRS")


EVERY = [
    (name, *row)
    for name in STAGES
    for row in fields(stage(name).config)
    if not (get_origin(row[1]) is Literal and len(get_args(row[1])) == 1)  # nothing else to say
]


@pytest.mark.parametrize(
    ("name", "dotted", "annotation", "value"), EVERY, ids=[f"{e[0]}.{e[1]}" for e in EVERY]
)
def test_every_field_of_every_config_changes_the_key(
    name: str, dotted: str, annotation: Any, value: Any, tmp_path: Path
) -> None:
    one, two = (key_of(name, config, tmp_path) for config in pairs(name, dotted, annotation, value))
    assert one != two


def key_of(name: str, config: Config, folder: Path) -> str:
    found = stage(name)
    # Its files and networks join the key elsewhere and need not exist here.
    bare = types.Stage(found.name, found.config, found.run, {}, found.makes)
    node = wiring.Node(name, name, STAGES[name], bare, config, 0, {}, {})
    return keys.digest(keys.parts(node, {}, None, Store(folder), Settings("cpu", 1)))


@pytest.mark.parametrize("name", ["train", "distill"])
def test_an_argument_of_a_network_changes_the_key(name: str, tmp_path: Path) -> None:
    cls = stage(name).config
    made = set()
    for depth in (8, 14):
        config = build(cls, {"model": {"name": "resnet", "depth": depth}})
        assert config is not None
        made.add(key_of(name, config, tmp_path))
    assert len(made) == 2
