"""Our own networks through the exporter, with weights that look trained."""

import numpy as np
import onnx
import pytest

from compressor.export import parity
from compressor.export.lower import lower
from compressor.models import build
from tests.models.support import NETWORKS, name, settle, spec

QUICK = [
    {"name": "resnet", "depth": 8, "width": 4},
    {"name": "lenet5", "widths": [4, 6], "hidden": 10},
]
REST = [network for network in NETWORKS if network not in QUICK]


def exported(network, shape, folder):
    network_spec = spec(network, shape)
    model = settle(build(network_spec))
    samples = np.random.default_rng(0).integers(0, 256, (64, *shape), dtype=np.uint8)
    lower(model, network_spec, folder / "m.onnx")
    parity.check(model, folder / "m.onnx", network_spec, {"image": samples})
    return onnx.load(folder / "m.onnx").graph


@pytest.mark.parametrize("network", QUICK, ids=name)
def test_the_exported_network_is_the_network(network, tmp_path):
    graph = exported(network, (3, 16, 16), tmp_path)
    assert not {"BatchNormalization", "Dropout"} & {node.op_type for node in graph.node}


@pytest.mark.slow
@pytest.mark.parametrize("network", REST, ids=name)
def test_every_other_network_is_exported_and_right(network, tmp_path):
    exported(network, (1, 28, 28) if "lenet" in name(network) else (3, 16, 16), tmp_path)
