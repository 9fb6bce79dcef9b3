"""The stage ``train``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from compressor.core.tasks import CLASSIFICATION
from compressor.core.types import DATASET, Artifact
from compressor.models import checkpoint
from compressor.stages.train import TRAIN, TrainConfig
from compressor.testing import artifact, check_stage, context
from compressor.training.evaluate import evaluate, score
from tests.training.conftest import make_data, same, weights

TINY = {"name": "resnet", "blocks": [1, 1], "widths": [4, 8]}


def config(**changes: object) -> TrainConfig:
    """As the pipeline loader makes it: from JSON, strictly."""
    options = {"model": TINY, "epochs": 2, "batch_size": 16, **changes}
    return TrainConfig.model_validate_json(json.dumps(options), strict=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("train") / "data"
    make_data(folder)
    return {"data": artifact("data", DATASET, folder)}


def test_train_keeps_the_stage_contract(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    names = ("epochs", "best_epoch", "val_score", "loss")
    result = check_stage(TRAIN, config(), inputs, tmp_path, metrics=names)
    assert result.metrics["val_score"].unit == "%"
    assert result.metrics["epochs"].value == 2


def test_a_head_that_the_weights_do_not_fit_is_said(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    import safetensors.torch
    import torch

    path = TRAIN.run(config(epochs=0), inputs, context(tmp_path / "a")).outputs["model"]
    state = safetensors.torch.load_file(path / "weights.safetensors")
    head = {k: torch.zeros(9, *v.shape[1:]) for k, v in state.items() if k.startswith("head.")}
    safetensors.torch.save_file({**state, **head}, tmp_path / "w.safetensors")
    cfg = config(epochs=0, model={**TINY, "weights": str(tmp_path / "w.safetensors")})
    ctx = context(tmp_path / "b")
    TRAIN.run(cfg, inputs, ctx)
    (line,) = [x for x in ctx.progress.lines if "fresh" in x]  # type: ignore[attr-defined]
    assert "head.weight [3, 8] (the file has [9, 8])" in line


def test_the_checkpoint_is_the_trained_network_of_the_spec(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    from compressor.data import dataset

    assert TRAIN.spec is not None
    cfg = config(epochs=4)
    result = TRAIN.run(cfg, inputs, context(tmp_path))
    spec = TRAIN.spec(cfg, inputs)
    model = checkpoint.load(result.outputs["model"], spec)
    data = dataset.load(inputs["data"].path)
    found = score(evaluate(model, data, "val"), data.split("val").labels, CLASSIFICATION)
    assert found == result.metrics["val_score"].value > 60
    assert spec.classes == data.classes


def test_weights_are_an_external_and_zero_epochs_take_them_as_they_are(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    assert TRAIN.spec is not None
    first = TRAIN.run(config(), inputs, context(tmp_path / "first"))
    file = first.outputs["model"] / "weights.safetensors"
    cfg = config(model={**TINY, "weights": str(file)}, epochs=0)
    assert list(TRAIN.externals(cfg)) == [file]
    taken = TRAIN.run(cfg, inputs, context(tmp_path / "second", seed=3))
    a = checkpoint.load(first.outputs["model"], TRAIN.spec(config(), inputs))
    b = checkpoint.load(taken.outputs["model"], TRAIN.spec(cfg, inputs))
    assert same(weights(a), weights(b))
    assert "loss" not in taken.metrics


def test_the_networks_code_joins_the_key_and_torch_is_named_as_needed() -> None:
    assert list(TRAIN.code(config())) == ["compressor.models.resnet:resnet"]
    assert list(TRAIN.externals(config())) == []
    assert TRAIN.needs_extra == ("torch",)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": "3"}, "epochs"),
        ({"lr": 0}, "lr"),
        ({"optimizer": "adam"}, "adamw"),
        ({"augment": {"crop": 1}}, "crop"),
        ({"model": "resnett"}, "resnet"),
    ],
)
def test_a_wrong_option_is_named(changes: dict[str, object], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        config(**changes)


def test_declaring_the_stages_that_train_loads_no_torch() -> None:
    code = (
        "import sys, compressor.stages.train, compressor.stages.distill; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
