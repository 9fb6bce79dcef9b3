"""The stage ``qat``."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.core.errors import ConfigError
from compressor.core.hashing import digest_path
from compressor.core.store import Store
from compressor.core.types import CHECKPOINT, DATASET, Artifact, one
from compressor.models import checkpoint
from compressor.models.card import read
from compressor.pipeline import execution, wiring
from compressor.pipeline.keys import Settings
from compressor.pipeline.progress import Quiet
from compressor.pipeline.state import State
from compressor.stages.prune import PRUNE, PruneConfig
from compressor.stages.qat import QAT, QatConfig
from compressor.stages.train import TRAIN, TrainConfig
from compressor.testing import Silent, artifact, check_stage, context
from tests.helpers import write_arrays
from tests.training.conftest import make_data

MODEL = {"name": "resnet", "blocks": [1, 1], "widths": [8, 16]}
SHORT = {"epochs": 2, "batch_size": 16, "calibration": 40, "augment": {"pad_crop": 1}}
METRICS = ("epochs", "best_epoch", "val_score", "loss", "val_before_finetune")


def config(**changes: Any) -> QatConfig:
    return QatConfig.model_validate_json(json.dumps({**SHORT, **changes}), strict=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("qat")
    make_data(folder / "data", calibration=40)
    made = {"data": artifact("data", DATASET, folder / "data")}
    assert TRAIN.spec is not None
    for name, widths in (("model", [8, 16]), ("teacher", [8, 8])):
        cfg = TrainConfig.model_validate(
            {"model": {**MODEL, "widths": widths}, "epochs": 3, "batch_size": 16}
        )
        path = TRAIN.run(cfg, made, context(folder / name)).outputs["model"]
        made[name] = artifact(name, CHECKPOINT, path, TRAIN.spec(cfg, made))
    return made


@pytest.fixture
def alone(inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """Without a teacher."""
    return {k: v for k, v in inputs.items() if k != "teacher"}


def test_qat_keeps_the_stage_contract(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    check_stage(QAT, config(), inputs, tmp_path, metrics=METRICS)


def test_the_checkpoint_is_of_the_same_network_and_loads_in_a_fresh_process(
    alone: dict[str, Artifact], tmp_path: Path
) -> None:
    path = QAT.run(config(), alone, context(tmp_path)).outputs["model"]
    before, after = read(alone["model"].path), read(path)
    assert (after.layers, after.tensors, after.factory) == (
        before.layers, before.tensors, before.factory,
    )  # fmt: skip
    assert after.sha256 != before.sha256
    code = (
        "import sys, pathlib, torch\n"
        "from compressor.core.types import InputSpec, ModelSpec\n"
        "from compressor.models import checkpoint\n"
        "from compressor.models.card import read\n"
        "path = pathlib.Path(sys.argv[1]); card = read(path)\n"
        "inputs = {n: InputSpec(c.shape, c.dtype, c.mean, c.std) for n, c in card.inputs}\n"
        "spec = ModelSpec(card.factory, card.arguments, card.classes, inputs, card.task)\n"
        "model = checkpoint.load(path, spec)\n"
        "assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())\n"
        "assert model(torch.zeros(1, 2, 8, 8)).shape == (1, 3)\n"
        "assert 'compressor.training.fake_quant' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_the_teacher_changes_what_is_learned(
    inputs: dict[str, Artifact], alone: dict[str, Artifact], tmp_path: Path
) -> None:
    digests = {
        name: digest_path(QAT.run(cfg, given, context(tmp_path / name)).outputs["model"])
        for name, cfg, given in (
            ("taught", config(), inputs),
            ("plain", config(), alone),
            ("deaf", config(kd_weight=0.0), inputs),
        )
    }
    assert digests["plain"] == digests["deaf"] != digests["taught"]


@pytest.mark.parametrize("method", ["channels", "weights"])
def test_a_pruned_network_stays_pruned(
    method: str, alone: dict[str, Artifact], tmp_path: Path
) -> None:
    how = {"target_macs": 0.6, "round_to": 2} if method == "channels" else {"sparsity": 0.6}
    cfg = PruneConfig.model_validate({"method": method, **how, "finetune": None})
    pruned = PRUNE.run(cfg, alone, context(tmp_path / "pruned")).outputs["model"]
    spec = one(alone, "model").spec
    given = {**alone, "model": artifact("pruned", CHECKPOINT, pruned, spec)}
    result = QAT.run(config(), given, context(tmp_path / "qat"))
    assert read(result.outputs["model"]).layers == read(pruned).layers
    assert spec is not None
    before, after = (checkpoint.load(p, spec) for p in (pruned, result.outputs["model"]))
    for old, new in zip(before.parameters(), after.parameters(), strict=True):
        if old.ndim > 1:
            assert torch.equal(old == 0, new == 0)


class Killed(Exception):
    """Stands for whatever ends a process between two steps."""


class Deadly(Silent):
    """Ends the run at the given report."""

    def __init__(self, life: int) -> None:
        super().__init__()
        self.life = life

    def update(self, done: int, total: int, note: str = "") -> None:
        self.life -= 1
        if self.life == 0:
            raise Killed


def test_a_killed_stage_goes_on_to_the_same_bytes(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    cfg = config(checkpoint_steps=2)
    whole = QAT.run(cfg, inputs, context(tmp_path / "whole"))
    for life in (1, 4, 8):
        folder = tmp_path / str(life)
        with pytest.raises(Killed):
            QAT.run(cfg, inputs, context(folder, progress=Deadly(life)))
        found = QAT.run(cfg, inputs, context(folder))
        assert digest_path(found.outputs["model"]) == digest_path(whole.outputs["model"])
        assert found.metrics == whole.metrics


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"temperature": 2.0}, "qat: temperature: "), ({"loss": "dist"}, "qat: loss: ")],
)
def test_words_to_a_teacher_that_is_not_there_are_refused(
    changes: dict[str, Any], words: str, alone: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        QAT.run(config(**changes), alone, context(tmp_path))


def test_another_dataset_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("model", "teacher"):
        spec = inputs[name].spec
        assert spec is not None
        other = replace(inputs[name], spec=replace(spec, classes=("a", "b", "c")))
        with pytest.raises(ConfigError, match=f"qat: {name} was not trained for"):
            QAT.run(config(), {**inputs, name: other}, context(tmp_path))


def test_the_resolved_options_are_valid_options() -> None:
    cfg = config(optimizer="adamw", loss="dist")
    assert QatConfig.model_validate_json(cfg.model_dump_json(), strict=True) == cfg


PIPELINE = """
name: qat
stages:
  data:
    uses: data
    with: {{dataset: arrays, root: {root}, calibration: 70, val: 0.2, test: 0.1}}
  float: {{uses: train, with: {{model: {net}, epochs: 1, batch_size: 32}}}}
  tuned: {{uses: qat, in: {{model: float}}, with: {{epochs: 1, batch_size: 32, calibration: 64}}}}
  fp32: {{uses: export, in: {{model: tuned}}}}
  int8: {{uses: quantize, in: {{model: fp32}}, with: {{calibration: 64, placement: none}}}}
"""


def test_a_tuned_network_is_exported_and_quantized_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "qat.yaml"
    net = "{name: mobilenet, widths: [8, 8], blocks: [1, 1], strides: [1, 2], head: 0}"
    file.write_text(PIPELINE.format(root=write_arrays(tmp_path / "data.npz", n=240), net=net))
    pipeline = wiring.load(file)
    state = State(Store(tmp_path / "store"), Settings("cpu", 1))
    records = execution.execute(pipeline, state, pipeline.nodes, execution.Options(), Quiet())
    metrics = {done.node.name: done.entry.metrics for done in records}
    assert metrics["int8"]["float_convs"].value == 0
    assert metrics["int8"]["sqnr"].value > 20
    # What fine-tuning said of the integers on val is what the int8 file does there.
    said, done = metrics["tuned"]["val_score"].value, metrics["int8@val"]["accuracy"].value
    assert done == pytest.approx(said, abs=5)
