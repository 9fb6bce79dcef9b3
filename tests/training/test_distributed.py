"""Two processes with half of each batch do what one does with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.core.errors import ConfigError
from compressor.data.batches import Augment
from compressor.training.distributed import World, agree, averaging, joined, spread_
from compressor.training.options import TrainOptions
from tests.training.conftest import make_data

OPTIONS = TrainOptions(
    epochs=3, batch_size=16, lr=0.05, checkpoint_steps=4, augment=Augment(pad_crop=1)
)


def plain_net() -> torch.nn.Module:
    """No batch norm and no dropout, which see one process's samples only."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 3),
    )


def test_alone_everything_is_a_no_op() -> None:
    with joined("cpu") as world:
        model = plain_net()
        assert (world.rank, world.size) == (0, 1)
        assert averaging(model, world) is model
        assert agree(0.25, world) == 0.25
        before = model[0].weight.clone()
        spread_(model.state_dict(), world)
        assert torch.equal(model[0].weight, before)
        assert not torch.distributed.is_initialized()


def test_a_batch_that_cannot_be_shared_evenly_is_refused_with_one_that_can() -> None:
    world = World(torch.device("cpu"), 0, 3)
    assert world.share(96) == 32
    with pytest.raises(ConfigError, match=r"128 .* 3 processes; use 126"):
        world.share(128)


_CHILD = """
import sys
from pathlib import Path
import numpy as np, torch
from compressor.core.types import Context
from compressor.data import dataset
from compressor.training import distributed
from compressor.training.loop import fit_
from tests.training.conftest import Notes, spec_of, weights
from tests.training.test_distributed import OPTIONS, plain_net
import os
rank = os.environ.get("RANK", "0")
folder, name = Path(sys.argv[1]), sys.argv[2]
data = dataset.load(folder / "data")
stop = int(sys.argv[3])
ctx = Context(folder, folder / name, 0, "cpu", 1, Notes(), None)
model = plain_net()
if rank != "0":
    with torch.no_grad():
        model[0].weight.zero_()  # process 0's weights count
class Stop(Exception): pass
def hook(step):
    if step == stop:
        raise Stop
try:
    fit = fit_(model, data, spec_of(data), OPTIONS, ctx, after_step=hook)
except Stop:
    sys.exit(0)
np.savez(folder / f"{name}-{rank}.npz", score=fit.score, **weights(model))
"""


@pytest.mark.slow
def test_two_processes_equal_one_within_rounding_also_after_a_stop(tmp_path: Path) -> None:
    make_data(tmp_path / "data")
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for command, name, stop in (
        ([sys.executable], "one", "0"),
        (two, "two", "0"),
        (two, "again", "7"),
        (two, "again", "0"),
    ):
        subprocess.run(
            [*command, str(script), str(tmp_path), name, stop],
            check=True,
            capture_output=True,
            env=env,
            timeout=600,
        )
    results = {}
    for name in ("one-0", "two-0", "two-1", "again-0", "again-1"):
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as arrays:
            results[name] = dict(arrays)
    start = plain_net().state_dict()["0.weight"].numpy()
    assert np.abs(results["one-0"]["0.weight"] - start).max() > 0.01  # it did learn
    for key, value in results["one-0"].items():
        np.testing.assert_allclose(results["two-0"][key], value, atol=1e-5)
        for name in ("two-1", "again-0", "again-1"):
            assert np.array_equal(results[name][key], results["two-0"][key]), (name, key)
