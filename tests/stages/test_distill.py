"""The stage ``distill``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor.core.errors import ConfigError
from compressor.core.hashing import digest_path
from compressor.core.types import CHECKPOINT, DATASET, Artifact
from compressor.stages.distill import DISTILL, DistillConfig
from compressor.stages.train import TRAIN, TrainConfig
from compressor.testing import artifact, check_stage, context
from tests.training.conftest import make_data

STUDENT = {"name": "resnet", "blocks": [1, 1], "widths": [4, 8]}
TEACHER = {"name": "resnet", "blocks": [1, 1], "widths": [8, 8]}
SHORT = {"epochs": 2, "batch_size": 16, "augment": {"pad_crop": 1, "mixup": 0.1}}


def config(**changes: object) -> DistillConfig:
    options = {"model": STUDENT, **SHORT, **changes}
    return DistillConfig.model_validate_json(json.dumps(options), strict=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("distill")
    make_data(folder / "data")
    data = {"data": artifact("data", DATASET, folder / "data")}
    assert TRAIN.spec is not None
    cfg = TrainConfig.model_validate({"model": TEACHER, **SHORT})
    made = TRAIN.run(cfg, data, context(folder / "teacher")).outputs["model"]
    return {**data, "teacher": artifact("teacher", CHECKPOINT, made, TRAIN.spec(cfg, data))}


@pytest.mark.parametrize("loss", ["kd", "dist"])
def test_distill_keeps_the_stage_contract(
    loss: str, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    names = ("epochs", "best_epoch", "val_score", "loss")
    check_stage(DISTILL, config(loss=loss), inputs, tmp_path, metrics=names)


def test_without_weight_for_the_teacher_the_bytes_are_those_of_train(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    control = DISTILL.run(config(kd_weight=0), inputs, context(tmp_path / "control"))
    cfg = TrainConfig.model_validate({"model": STUDENT, **SHORT})
    plain = TRAIN.run(cfg, inputs, context(tmp_path / "plain"))
    taught = DISTILL.run(config(), inputs, context(tmp_path / "taught"))
    digests = [digest_path(r.outputs["model"]) for r in (control, plain, taught)]
    assert digests[0] == digests[1] != digests[2]


def test_the_student_is_the_lineage_and_the_teacher_is_not(inputs: dict[str, Artifact]) -> None:
    assert DISTILL.spec is not None
    assert DISTILL.spec(config(), inputs).arguments["widths"] == [4, 8]
    assert list(DISTILL.code(config())) == ["compressor.models.resnet:resnet"]
    assert list(DISTILL.externals(config())) == []


def test_a_teacher_of_another_dataset_is_refused(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    from dataclasses import replace

    teacher = inputs["teacher"]
    assert teacher.spec is not None
    other = replace(teacher, spec=replace(teacher.spec, classes=("a", "b", "c")))
    with pytest.raises(ConfigError, match="teacher teacher was not trained for"):
        DISTILL.run(config(), {**inputs, "teacher": other}, context(tmp_path))


def test_a_loss_without_meaning_is_refused_before_training(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="one label per sample"):
        DISTILL.run(config(loss="dkd"), inputs, context(tmp_path))
