import copy

import numpy as np
import pytest
import torch
from torch import nn

from compressor.core.types import InputSpec
from compressor.data import dataset
from compressor.data.dataset import Split, normalise
from compressor.pruning.recalibrate import recalibrate_


def make_data(folder, n=40):
    rng = np.random.default_rng(0)
    spec = InputSpec((2, 4, 4), "float32", (0.5, 1.0), (2.0, 0.5))

    def split(count):
        return Split(
            {"image": rng.normal(1, 3, (count, 2, 4, 4)).astype(np.float32)},
            rng.integers(0, 2, count),
            np.arange(count, dtype=np.uint64),
        )

    return dataset.save(
        folder,
        name="noise",
        task="classification",
        classes=("a", "b"),
        inputs={"image": spec},
        splits={"train": split(n), "val": split(4), "test": split(4), "calibration": split(4)},
        duplicates={},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("noise") / "data")


def network(momentum=0.1):
    return nn.Sequential(
        nn.BatchNorm2d(2, momentum=momentum), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, 2)
    )


def test_statistics_are_the_mean_over_batches_of_the_normalised_samples(data):
    model = network()
    assert recalibrate_(model, data, count=100, batch_size=10, seed=3) == 4
    x = normalise(data.split("train").inputs["image"], data.inputs["image"]).astype(np.float64)
    np.testing.assert_allclose(model[0].running_mean.numpy(), x.mean((0, 2, 3)), atol=1e-5)
    # The mean of four batches' unbiased variances; they sum over whole batches only.
    assert np.allclose(model[0].running_var.numpy(), x.var((0, 2, 3), ddof=1), rtol=0.05)


def test_old_statistics_are_forgotten_and_weights_are_not_touched(data):
    model, other = network(), network()
    other.load_state_dict(model.state_dict())
    other[0].running_mean.fill_(1e6)
    other[0].running_var.fill_(1e-6)
    weight = model[3].weight.clone()
    for net in (model, other):
        recalibrate_(net, data, count=2, batch_size=8)
    assert torch.equal(model[0].running_mean, other[0].running_mean)
    assert torch.equal(model[0].running_var, other[0].running_var)
    assert torch.equal(model[3].weight, weight)


def test_it_ends_in_evaluation_mode_with_the_momentum_it_had(data):
    model = network(momentum=0.3).train()
    recalibrate_(model, data, count=1)
    assert not any(m.training for m in model.modules())
    assert model[0].momentum == 0.3


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(data):
    nets = [copy.deepcopy(network()) for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        recalibrate_(net, data, count=1, batch_size=8, seed=seed)
    assert torch.equal(nets[0][0].running_var, nets[1][0].running_var)
    assert not torch.equal(nets[0][0].running_var, nets[2][0].running_var)


def test_a_split_smaller_than_a_batch_is_read_whole(data):
    assert recalibrate_(network(), data, count=5, batch_size=10_000) == 1


def test_without_statistics_or_batches_nothing_is_read(data):
    assert recalibrate_(nn.Sequential(nn.Flatten(), nn.Linear(32, 2)), data) == 0
    model = network()
    model[0].running_mean.fill_(7)
    assert recalibrate_(model, data, count=0) == 0
    assert (model[0].running_mean == 7).all()
