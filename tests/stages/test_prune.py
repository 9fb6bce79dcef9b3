"""The stage ``prune``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.core.errors import ConfigError, IntegrityError, TargetError
from compressor.core.hashing import digest_path
from compressor.core.types import CHECKPOINT, DATASET, Artifact, one
from compressor.models import checkpoint
from compressor.models.card import read
from compressor.stages.prune import PRUNE, PruneConfig
from compressor.stages.train import TRAIN, TrainConfig
from compressor.testing import Silent, artifact, check_stage, context
from tests.training.conftest import make_data

STUDENT = {"name": "resnet", "blocks": [1, 1], "widths": [8, 16]}
TEACHER = {"name": "resnet", "blocks": [1, 1], "widths": [8, 8]}
TUNE = {"epochs": 2, "batch_size": 16, "lr": 0.02, "augment": {"pad_crop": 1}}
METRICS = ("macs_kept", "params_kept", "channels_removed", "zeros")
BEFORE = "val_before_finetune"


def config(**changes: Any) -> PruneConfig:
    options = {"target_macs": 0.6, "round_to": 2, "finetune": TUNE, **changes}
    options = {k: v for k, v in options.items() if v is not ...}
    return PruneConfig.model_validate_json(json.dumps(options), strict=True)


def weights_config(**changes: Any) -> PruneConfig:
    absent = {"target_macs": ..., "round_to": ...}
    return config(**{"method": "weights", "sparsity": 0.6, **absent, **changes})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("prune")
    make_data(folder / "data")
    made = {"data": artifact("data", DATASET, folder / "data")}
    assert TRAIN.spec is not None
    for name, model in (("model", STUDENT), ("teacher", TEACHER)):
        cfg = TrainConfig.model_validate({"model": model, "epochs": 3, "batch_size": 16})
        path = TRAIN.run(cfg, made, context(folder / name)).outputs["model"]
        made[name] = artifact(name, CHECKPOINT, path, TRAIN.spec(cfg, made))
    return made


@pytest.fixture
def alone(inputs: dict[str, Artifact]) -> dict[str, Artifact]:
    """Without a teacher."""
    return {k: v for k, v in inputs.items() if k != "teacher"}


def load(result: Any, inputs: dict[str, Artifact]) -> torch.nn.Module:
    spec = one(inputs, "model").spec
    assert spec is not None
    return checkpoint.load(result.outputs["model"], spec)


@pytest.mark.parametrize("method", ["channels", "weights"])
def test_prune_keeps_the_stage_contract(
    method: str, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    cfg = config() if method == "channels" else weights_config()
    check_stage(PRUNE, cfg, inputs, tmp_path, metrics=METRICS)


@pytest.mark.parametrize(
    ("cfg", "there"),
    [
        (config(), True),
        (weights_config(schedule="one_shot"), True),
        (weights_config(finetune=None), True),
        (weights_config(), False),
    ],
    ids=["channels", "one shot", "no fine-tuning", "cubic"],
)
def test_a_score_before_fine_tuning_is_that_of_something_pruned(
    cfg: PruneConfig, there: bool, alone: dict[str, Artifact], tmp_path: Path
) -> None:
    metrics = PRUNE.run(cfg, alone, context(tmp_path)).metrics
    assert (BEFORE in metrics) == there
    assert set(METRICS) <= set(metrics)


def test_channels_are_gone_from_the_checkpoint_and_the_metrics_say_how_many(
    alone: dict[str, Artifact], tmp_path: Path
) -> None:
    result = PRUNE.run(config(), alone, context(tmp_path))
    before, after = read(alone["model"].path), read(result.outputs["model"])
    metrics = result.metrics
    assert after.macs / before.macs == metrics["macs_kept"].value <= 0.6
    assert after.parameters / before.parameters == metrics["params_kept"].value < 1
    assert metrics["channels_removed"].value > 0
    assert 0 <= metrics[BEFORE].value <= 100
    load(result, alone)


def test_the_teacher_changes_what_is_learned_and_not_what_is_cut(
    inputs: dict[str, Artifact], alone: dict[str, Artifact], tmp_path: Path
) -> None:
    taught = PRUNE.run(config(), inputs, context(tmp_path / "taught"))
    plain = PRUNE.run(config(), alone, context(tmp_path / "plain"))
    cards = [read(r.outputs["model"]) for r in (taught, plain)]
    assert cards[0].layers == cards[1].layers
    assert cards[0].sha256 != cards[1].sha256


@pytest.mark.parametrize(
    "cfg",
    [
        config(target_macs=1.0),
        config(target_macs=..., target_params=1.0),
        config(target_macs=..., ratio=0.0),
        weights_config(sparsity=0.0),
    ],
)
def test_a_target_that_is_met_already_changes_no_byte(
    cfg: PruneConfig, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    result = PRUNE.run(cfg, inputs, context(tmp_path))
    assert read(result.outputs["model"]).sha256 == read(inputs["model"].path).sha256
    assert result.metrics["macs_kept"].value == 1.0


@pytest.mark.parametrize("schedule", ["cubic", "one_shot"])
@pytest.mark.parametrize("scope", ["global", "local"])
def test_exactly_the_asked_weights_are_zero_after_fine_tuning(
    schedule: str, scope: str, alone: dict[str, Artifact], tmp_path: Path
) -> None:
    cfg = weights_config(schedule=schedule, scope=scope, finetune={**TUNE, "ema": 0.9})
    result = PRUNE.run(cfg, alone, context(tmp_path))
    layers = [
        m.weight for m in load(result, alone).modules()
        if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
    ]  # fmt: skip
    zeros = sum(int((w == 0).sum()) for w in layers)
    total = sum(w.numel() for w in layers)
    if scope == "global":
        want = round(0.6 * total)
    else:
        want = sum(round(0.6 * w.numel()) for w in layers[1:-1])
    assert zeros == want
    assert result.metrics["zeros"].value == pytest.approx(100 * zeros / total)


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


@pytest.mark.parametrize(
    ("cfg", "lives"),
    [
        (config(finetune={**TUNE, "checkpoint_steps": 2}), (1, 4, 9)),
        (config(steps=2, finetune={**TUNE, "checkpoint_steps": 2}), (3, 11, 14)),
        (weights_config(finetune={**TUNE, "checkpoint_steps": 1}), (2, 5, 8)),
    ],
    ids=["channels", "two rounds", "weights"],
)
def test_a_killed_stage_goes_on_to_the_same_bytes(
    cfg: PruneConfig, lives: tuple[int, ...], inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    whole = PRUNE.run(cfg, inputs, context(tmp_path / "whole"))
    for life in lives:
        folder = tmp_path / str(life)
        with pytest.raises(Killed):
            PRUNE.run(cfg, inputs, context(folder, progress=Deadly(life)))
        found = PRUNE.run(cfg, inputs, context(folder))
        assert digest_path(found.outputs["model"]) == digest_path(whole.outputs["model"])
        assert found.metrics == whole.metrics


def test_fine_tuning_really_goes_on_and_does_not_start_anew(
    alone: dict[str, Artifact], tmp_path: Path
) -> None:
    class Counting(Silent):
        steps = 0

        def update(self, done: int, total: int, note: str = "") -> None:
            self.steps += 1

    with pytest.raises(Killed):
        PRUNE.run(config(), alone, context(tmp_path, progress=Deadly(8)))
    rest = Counting()
    PRUNE.run(config(), alone, context(tmp_path, progress=rest))
    assert rest.steps == 5  # of 10: the first epoch was saved


def test_other_surgery_after_a_kill_is_refused(alone: dict[str, Artifact], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        PRUNE.run(config(), alone, context(tmp_path, progress=Deadly(3)))
    with pytest.raises(IntegrityError, match="other channels than before"):
        PRUNE.run(config(target_macs=0.8), alone, context(tmp_path))


def test_rounds_prune_further_each_time_and_end_at_the_target(
    alone: dict[str, Artifact], tmp_path: Path
) -> None:
    ctx = context(tmp_path)
    result = PRUNE.run(config(steps=2, target_macs=0.5), alone, ctx)
    rounds = [line for line in ctx.progress.lines if "round" in line]  # type: ignore[attr-defined]
    assert len(rounds) == 2
    assert result.metrics["macs_kept"].value <= 0.5


def test_without_fine_tuning_only_statistics_change(
    alone: dict[str, Artifact], tmp_path: Path
) -> None:
    cfg = weights_config(finetune=None)
    pruned = load(PRUNE.run(cfg, alone, context(tmp_path)), alone).state_dict()
    spec = alone["model"].spec
    assert spec is not None
    dense = checkpoint.load(alone["model"].path, spec).state_dict()
    means = [k for k in dense if k.endswith("running_mean")]
    assert any(not torch.equal(dense[k], pruned[k]) for k in means)
    for name, value in dense.items():
        if value.ndim > 1:
            assert torch.equal(pruned[name], value * (pruned[name] != 0))
        elif "running" not in name and "num_batches" not in name:
            assert torch.equal(pruned[name], value)


def test_out_of_reach_is_exit_8_and_names_what_is_reachable(
    alone: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=r"target_macs: 0\.01: out of reach.*nearest") as caught:
        PRUNE.run(config(target_macs=0.01), alone, context(tmp_path))
    assert caught.value.exit_code == 8


def test_a_sparsity_out_of_reach_is_said_before_fine_tuning(
    alone: dict[str, Artifact], tmp_path: Path
) -> None:
    class Untrained(Silent):
        def update(self, done: int, total: int, note: str = "") -> None:
            raise AssertionError("training began")

    with pytest.raises(TargetError, match=r"sparsity: 0\.99 is out of reach"):
        PRUNE.run(weights_config(sparsity=0.99), alone, context(tmp_path, progress=Untrained()))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target_macs": ...}, "exactly one of target_macs, target_params, ratio; got none"),
        ({"ratio": 0.5}, "got target_macs, ratio"),
        ({"method": "weights"}, "method: weights takes exactly one of sparsity; got target_macs"),
        ({"sparsity": 0.5}, "got target_macs, sparsity"),
        ({"schedule": "one_shot"}, "schedule belongs to method: weights"),
        ({"steps": 3, "finetune": None}, "give finetune"),
        ({"target_macs": 0.0}, "greater than 0"),
        ({"round_to": 0}, "greater than or equal to 1"),
        ({"finetune": {"epoch": 3}}, "epoch"),
    ],
)
def test_options_without_meaning_are_refused_with_a_reason(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        config(**changes)


def test_a_gradual_schedule_and_the_best_epoch_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leave patience out"):
        weights_config(finetune={**TUNE, "patience": 2})
    weights_config(finetune={**TUNE, "patience": 2}, schedule="one_shot")


def test_the_resolved_options_are_valid_options() -> None:
    for cfg in (config(), weights_config()):
        again = PruneConfig.model_validate_json(cfg.model_dump_json(), strict=True)
        assert again == cfg


def test_fine_tuning_rewinds_the_learning_rate_by_default() -> None:
    cfg = PruneConfig(target_macs=0.5)
    assert cfg.finetune is not None
    assert (cfg.finetune.lr, cfg.finetune.epochs) == (0.05, 8)
    tuned = PruneConfig.model_validate({"ratio": 0.5, "finetune": {"optimizer": "adamw"}}).finetune
    assert tuned is not None
    usual = TrainConfig.model_validate({"model": STUDENT, "optimizer": "adamw"})
    assert tuned.lr == usual.lr / 2 == 5e-4
    assert tuned.weight_decay == usual.weight_decay
    given = {"ratio": 0.5, "finetune": {"optimizer": "adamw", "lr": 2e-3}}
    tuned = PruneConfig.model_validate(given).finetune
    assert tuned is not None
    assert tuned.lr == 2e-3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 2.0}, r"prune: temperature: .*in: \{teacher: \.\.\.\}, or leave it out"),
        ({"kd_weight": 0.5}, "prune: kd_weight: "),
        ({"kd_weight": 0.5, "ce_weight": 0.4}, "kd_weight, ce_weight: .*leave them out"),
        ({"kd_weight": 0.0, "temperature": 2.0}, "prune: temperature: "),
        ({"loss": "dist"}, "prune: loss: "),
        ({"loss": "dkd", "nckd_weight": 2.0}, "prune: loss, nckd_weight: "),
    ],
)
def test_words_to_a_teacher_that_is_not_there_are_refused(
    changes: dict[str, Any], words: str, alone: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        PRUNE.run(config(**changes), alone, context(tmp_path))


@pytest.mark.parametrize("changes", [{}, {"kd_weight": 0.0}, {"kd_weight": 0.9, "ce_weight": 0.1}])
def test_defaults_say_nothing_to_a_teacher(changes: dict[str, Any]) -> None:
    cfg = config(**changes)
    assert cfg.ignored() == []
    assert PruneConfig.model_validate_json(cfg.model_dump_json(), strict=True).ignored() == []


def test_a_teacher_that_has_nothing_to_teach_is_refused(
    inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"finetune: null .* teacher teacher would not be used"):
        PRUNE.run(config(finetune=None), inputs, context(tmp_path))


def test_another_dataset_is_refused(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    for name in ("model", "teacher"):
        spec = inputs[name].spec
        assert spec is not None
        other = replace(inputs[name], spec=replace(spec, classes=("a", "b", "c")))
        # A checkpoint of that lineage would not load either; the words come first.
        with pytest.raises(ConfigError, match=f"{name} was not trained for"):
            PRUNE.run(config(), {**inputs, name: other}, context(tmp_path))


def test_labels_cannot_leak_through_surgery(alone: dict[str, Artifact], tmp_path: Path) -> None:
    """Recalibration and selection read train only: another val split changes no weight."""
    folder = tmp_path / "other"
    make_data(folder)
    labels = np.load(folder / "val.labels.npy")
    np.save(folder / "val.labels.npy", np.roll(labels, 1))
    other = {**alone, "data": artifact("data", DATASET, folder)}
    results = [
        PRUNE.run(config(), given, context(tmp_path / name))
        for name, given in (("a", alone), ("b", other))
    ]
    assert len({read(r.outputs["model"]).sha256 for r in results}) == 1
