"""Killed anywhere and run again gives the bytes of a run that was never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.core.types import Context, ModelSpec
from compressor.data.batches import Augment
from compressor.data.dataset import Dataset
from compressor.training.loop import fit_
from compressor.training.options import TrainOptions
from tests.training.conftest import Notes, make_data, same, tiny_net, weights

MakeContext = Callable[..., Context]

# Everything that keeps state of its own: momentum, average, dropout, norms, augmentation, best.
FULL = TrainOptions(
    epochs=4,
    batch_size=16,
    ema=0.9,
    patience=3,
    grad_clip=5.0,
    label_smoothing=0.1,
    augment=Augment(pad_crop=1, mixup=0.3),
    checkpoint_steps=2,
)  # 5 steps per epoch, 20 in all


class Killed(Exception):
    """Stands for whatever ends a process between two steps."""


def killed_at(step: int) -> Callable[[int], None]:
    def hook(done: int) -> None:
        if done == step:
            raise Killed

    return hook


@pytest.fixture(scope="module")
def whole(
    data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[TrainOptions], tuple[object, dict[str, np.ndarray]]]:
    """Results of uninterrupted runs, one per set of options."""
    done: dict[str, tuple[object, dict[str, np.ndarray]]] = {}

    def run(options: TrainOptions) -> tuple[object, dict[str, np.ndarray]]:
        key = options.model_dump_json()
        if key not in done:
            folder = tmp_path_factory.mktemp("whole")
            ctx = Context(folder, folder / "resume", 0, "cpu", 1, Notes(), None)  # type: ignore[arg-type]
            spec = ModelSpec("tests", {}, data.classes, data.inputs)
            model = tiny_net()
            done[key] = (fit_(model, data, spec, options, ctx), weights(model))
        return done[key]

    return run


@pytest.mark.parametrize("step", [1, 2, 5, 6, 9, 15, 20])
def test_a_run_killed_after_any_step_goes_on_to_the_same_bytes(
    step: int,
    data: Dataset,
    spec: ModelSpec,
    context: MakeContext,
    notes: Notes,
    whole: Callable[..., tuple[object, dict[str, np.ndarray]]],
) -> None:
    with pytest.raises(Killed):
        fit_(tiny_net(), data, spec, FULL, context(), after_step=killed_at(step))
    notes.updates.clear()
    resumed = tiny_net(seed=99)  # what it starts from no longer matters, except before step 2
    if step <= 2:
        resumed = tiny_net()
    fit = fit_(resumed, data, spec, FULL, context())
    expected_fit, expected = whole(FULL)
    assert fit == expected_fit
    assert same(weights(resumed), expected)
    first = notes.updates[0][0]
    assert max(1, step - 2) <= first <= step  # it went on, and did not start again


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_kills_in_one_run_and_both_optimizers_change_nothing(
    optimizer: str,
    data: Dataset,
    spec: ModelSpec,
    context: MakeContext,
    whole: Callable[..., tuple[object, dict[str, np.ndarray]]],
) -> None:
    options = TrainOptions(epochs=3, batch_size=16, optimizer=optimizer, lr=0.01)
    for step in (8, 12):
        with pytest.raises(Killed):
            fit_(tiny_net(), data, spec, options, context(), after_step=killed_at(step))
    resumed = tiny_net()
    fit = fit_(resumed, data, spec, options, context())
    assert (fit, True) == (whole(options)[0], same(weights(resumed), whole(options)[1]))


def test_a_finished_run_is_not_trained_again(
    data: Dataset, spec: ModelSpec, context: MakeContext, notes: Notes
) -> None:
    first = tiny_net()
    fit = fit_(first, data, spec, FULL, context())
    notes.updates.clear()
    again = tiny_net(seed=5)
    assert fit_(again, data, spec, FULL, context()) == fit
    assert same(weights(first), weights(again))
    assert notes.updates == []


def test_tensors_of_the_caller_are_saved_and_come_back(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    def run(stop: int | None, model: torch.nn.Module) -> Tensor:
        counted = torch.zeros(2)

        def hook(done: int) -> None:
            counted.add_(torch.tensor([1.0, float(done)]))
            if done == stop:
                raise Killed

        state = {"counted": counted}
        fit_(model, data, spec, FULL, context(), after_step=hook, after_step_state=state)
        return counted

    with pytest.raises(Killed):
        run(13, tiny_net())
    assert run(None, tiny_net()).tolist() == [20, sum(range(21))]


def test_two_labels_of_one_stage_do_not_meet(
    data: Dataset, spec: ModelSpec, context: MakeContext, notes: Notes
) -> None:
    short = TrainOptions(epochs=1, batch_size=16)
    fit_(tiny_net(), data, spec, short, context(), label="round-1")
    notes.updates.clear()
    fit_(tiny_net(), data, spec, short, context(), label="round-2")
    assert notes.updates[0][0] == 1


def test_checkpoints_of_other_options_are_not_taken_up(
    data: Dataset, spec: ModelSpec, context: MakeContext, notes: Notes
) -> None:
    fit_(tiny_net(), data, spec, FULL, context())
    notes.updates.clear()
    fit_(tiny_net(), data, spec, FULL.model_copy(update={"lr": 0.05}), context())
    assert notes.updates[0][0] == 1
    assert notes.lines == []


def files(ctx: Context, ending: str) -> list[Path]:
    return sorted((ctx.resume / "train").glob(f"*{ending}"))


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", [flip_byte, truncate, Path.unlink])
@pytest.mark.parametrize("ending", [".safetensors", ".json"])
def test_a_broken_newest_checkpoint_falls_back_to_the_one_before(
    damage: Callable[[Path], None],
    ending: str,
    data: Dataset,
    spec: ModelSpec,
    context: MakeContext,
    notes: Notes,
    whole: Callable[..., tuple[object, dict[str, np.ndarray]]],
) -> None:
    ctx = context()
    with pytest.raises(Killed):
        fit_(tiny_net(), data, spec, FULL, ctx, after_step=killed_at(9))
    assert [f.stem for f in files(ctx, ".json")] == ["000001-000000006", "000001-000000008"]
    damage(files(ctx, ending)[-1])
    notes.updates.clear()
    resumed = tiny_net()
    fit_(resumed, data, spec, FULL, ctx)
    # The JSON ends in a newline: flipping its last bit makes a file that cannot be parsed.
    assert notes.updates[0][0] == 7
    if (damage, ending) != (Path.unlink, ".json"):
        assert "000001-000000008 is broken" in notes.lines[0]
    assert same(weights(resumed), whole(FULL)[1])


def test_with_all_checkpoints_broken_training_starts_again(
    data: Dataset,
    spec: ModelSpec,
    context: MakeContext,
    notes: Notes,
    whole: Callable[..., tuple[object, dict[str, np.ndarray]]],
) -> None:
    ctx = context()
    with pytest.raises(Killed):
        fit_(tiny_net(), data, spec, FULL, ctx, after_step=killed_at(9))
    for file in files(ctx, ".safetensors"):
        truncate(file)
    notes.updates.clear()
    model = tiny_net()
    fit_(model, data, spec, FULL, ctx)
    assert notes.updates[0][0] == 1
    assert len(notes.lines) == 2
    assert same(weights(model), whole(FULL)[1])


def test_two_checkpoints_are_kept_and_nothing_else(
    data: Dataset, spec: ModelSpec, context: MakeContext
) -> None:
    ctx = context()
    fit_(tiny_net(), data, spec, FULL, ctx)
    names = [f.name for f in sorted((ctx.resume / "train").iterdir())]
    stems = ["000003-000000018", "000004-000000020"]
    assert names == [f"{stem}.{end}" for stem in stems for end in ("json", "safetensors")]


def test_sigterm_finishes_the_step_saves_and_exits_143(
    data: Dataset,
    spec: ModelSpec,
    context: MakeContext,
    notes: Notes,
    whole: Callable[..., tuple[object, dict[str, np.ndarray]]],
) -> None:
    def terminate(done: int) -> None:
        if done == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    options = FULL.model_copy(update={"checkpoint_steps": None})
    ctx = context()
    with pytest.raises(SystemExit) as caught:
        fit_(tiny_net(), data, spec, options, ctx, after_step=terminate)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert files(ctx, ".json")[-1].stem == "000001-000000007"
    notes.updates.clear()
    resumed = tiny_net()
    fit_(resumed, data, spec, options, ctx)
    assert notes.updates[0][0] == 8
    assert same(weights(resumed), whole(FULL)[1])


def test_sigterm_during_the_last_validation_is_not_swallowed_and_loses_no_step(
    data: Dataset, spec: ModelSpec, context: MakeContext, notes: Notes
) -> None:
    model = tiny_net()

    def terminate(module: torch.nn.Module, inputs: object) -> None:
        if not module.training:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = model.register_forward_pre_hook(terminate)
    one = TrainOptions(epochs=1, batch_size=16)
    with pytest.raises(SystemExit):
        fit_(model, data, spec, one, context())
    handle.remove()
    notes.updates.clear()
    assert fit_(model, data, spec, one, context()).steps == 5
    assert notes.updates == []


def test_checkpoints_hold_no_clock(data: Dataset, spec: ModelSpec, context: MakeContext) -> None:
    contents = []
    for name in ("a", "b"):
        ctx = context(name)
        fit_(tiny_net(), data, spec, FULL, ctx)
        contents.append([f.read_bytes() for f in sorted((ctx.resume / "train").iterdir())])
    assert contents[0] == contents[1]
    assert json.loads(contents[0][0])["counters"]["step"] == 18


_CHILD = """
import sys, torch
from pathlib import Path
from compressor.core.types import Context
from compressor.data import dataset
from compressor.training.loop import fit_
from tests.training.conftest import Notes, spec_of, tiny_net, weights
from tests.training.test_resume import FULL
import numpy as np
class Loud(Notes):
    def update(self, done, total, note=""):
        print(done, flush=True)
folder = Path(sys.argv[1])
data = dataset.load(folder / "data")
ctx = Context(folder, folder / "resume", 0, "cpu", 1, Loud(), None)
model = tiny_net()
fit_(model, data, spec_of(data), FULL, ctx)
np.savez(folder / "weights.npz", **weights(model))
"""


@pytest.mark.slow
def test_sigkill_at_random_moments_changes_nothing(
    tmp_path: Path, whole: Callable[..., tuple[object, dict[str, np.ndarray]]]
) -> None:
    make_data(tmp_path / "data")
    rng = np.random.default_rng(0)
    for lines in (3, 6, 5):  # 14 of 20 steps are printed before the three kills
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(lines):
            assert child.stdout.readline()
        time.sleep(float(rng.uniform(0, 0.02)))
        child.kill()
        assert child.wait() in (-signal.SIGKILL, 0)
        child.stdout.close()
    subprocess.run([sys.executable, "-c", _CHILD, str(tmp_path)], check=True, capture_output=True)
    with np.load(tmp_path / "weights.npz", allow_pickle=False) as arrays:
        assert same(dict(arrays), whole(FULL)[1])
