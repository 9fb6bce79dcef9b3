import subprocess
import sys

import numpy as np
import pytest

from compressor.core.errors import ConfigError, IntegrityError
from compressor.data import dataset
from compressor.runtime import predict
from compressor.stages.evaluate import EVALUATE, EvaluateConfig
from tests.runtime import bundles, nets


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    found = bundles.models(folder / "models")
    return found, bundles.data(folder / "data", found["fp32"].path)


def evaluate(folder, model, data, **options):
    config = EvaluateConfig(**options)
    return EVALUATE.run(config, {"model": model, "data": data}, bundles.context(folder))


@pytest.mark.parametrize("split", ["val", "test"])
def test_one_row_per_sample_of_the_split(world, tmp_path, split):
    found, data = world
    result = evaluate(tmp_path, found["fp32"], data, split=split)
    rows = predict.load(result.outputs["predictions"])
    expected = dataset.load(data.path).split(split)
    assert np.array_equal(rows.ids, expected.ids)
    assert np.array_equal(rows.labels, expected.labels)
    assert rows.name == "fp32"
    assert result.metrics["accuracy"].value == 100.0  # it made the labels
    assert result.metrics["accuracy"].unit == "%"


def test_counts_and_bytes_are_the_files(world, tmp_path):
    found, data = world
    metrics = evaluate(tmp_path, found["int8"], data).metrics
    assert metrics["bytes"].value == found["int8"].path.stat().st_size
    assert metrics["macs"].value == 8 * 64 * 9 + 24
    assert metrics["parameters"].value == 72 + 8 + 24 + 3
    assert metrics["zstd_bytes"].value > 0
    assert set(metrics) == {"accuracy", "parameters", "macs", "bytes", "zstd_bytes"}


def test_the_batch_size_changes_nothing_but_rounding(world, tmp_path):
    found, data = world
    one, two = (
        predict.load(
            evaluate(tmp_path / str(b), found["fp32"], data, batch=b).outputs["predictions"]
        )
        for b in (7, 256)
    )
    assert np.array_equal(one.predicted, two.predicted)
    assert np.allclose(one.outputs, two.outputs, atol=1e-2)


def test_the_same_model_gives_the_same_bytes(world, tmp_path):
    found, data = world
    paths = [evaluate(tmp_path / n, found["int8"], data).outputs["predictions"] for n in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_damaged_model_is_an_integrity_error(world, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"bad")
    bad = bundles.artifact("bad", "onnx", tmp_path / "bad.onnx")
    with pytest.raises(IntegrityError, match="not an ONNX file"):
        evaluate(tmp_path, bad, world[1])


def test_a_regression_is_judged_by_its_error(tmp_path):
    path = nets.convnet(tmp_path / "r.onnx", classes=1)
    split = {}
    for name in ("train", "val", "test", "calibration"):
        x = np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
        labels = predict.run(path, {"x": x})[:, 0] + np.float32(0.25)
        split[name] = dataset.Split({"x": x}, labels, np.arange(8, dtype=np.uint64))
    dataset.save(tmp_path / "d", name="r", task="regression", classes=(), splits=split,
                 inputs={"x": bundles.InputSpec((1, 8, 8))}, duplicates={})  # fmt: skip
    data = bundles.artifact("data", "dataset", tmp_path / "d")
    metrics = evaluate(tmp_path, bundles.artifact("r", "onnx", path), data).metrics
    assert metrics["mae"].value == pytest.approx(0.25, abs=1e-4)
    assert metrics["mae"].better == "lower"


def test_an_onnx_file_is_evaluated_where_torch_is_not_installed(world, tmp_path):
    found, data = world
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'torchvision', 'torch_pruning'}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from pathlib import Path\n"
        "from compressor.core.types import Artifact\n"
        "from compressor.stages.evaluate import EVALUATE, EvaluateConfig\n"
        "from tests.runtime import bundles\n"
        "m, d, out = map(Path, sys.argv[1:])\n"
        "given = {'model': Artifact('m', 'onnx', m, ''), 'data': Artifact('d', 'dataset', d, '')}\n"
        "print(EVALUATE.run(EvaluateConfig(), given, bundles.context(out)).metrics['accuracy'])\n"
    )
    command = [sys.executable, "-c", script, found["fp32"].path, data.path, tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "value=100.0" in done.stdout
    assert EVALUATE.needs_extra == ()


def test_torch_and_onnx_agree_and_count_alike(world, tmp_path):
    torch = pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    from compressor.core.types import Artifact, ModelSpec
    from compressor.models import checkpoint

    _, data = world
    opened = dataset.load(data.path)
    spec = ModelSpec(f"{__name__}:network", {}, opened.classes, opened.inputs)
    torch.manual_seed(0)
    net = network(3).eval()
    folder = checkpoint.save(tmp_path / "ckpt", net, spec) or tmp_path / "ckpt"
    half = Artifact("net", "checkpoint", folder, "", spec)
    path = nets.convnet(tmp_path / "net.onnx")
    made = onnx.load(path)
    state = {k: v.detach().numpy() for k, v in net.state_dict().items()}
    # The normalisation (x - 0.5) / 0.5 sits in the graph of an exported file; here in two nodes.
    for tensor, key in zip(made.graph.initializer, ("0.weight", "0.bias", "4.weight", "4.bias"),
                           strict=True):  # fmt: skip
        tensor.CopyFrom(onnx.numpy_helper.from_array(state[key], tensor.name))
    made.graph.initializer.append(nets.tensor("half", np.float32(0.5)))
    made.graph.node.insert(0, onnx.helper.make_node("Sub", ["x", "half"], ["s"]))
    made.graph.node.insert(1, onnx.helper.make_node("Div", ["s", "half"], ["n"]))
    made.graph.node[2].input[0] = "n"
    onnx.save(made, path)
    first = evaluate(tmp_path / "a", half, data)
    second = evaluate(tmp_path / "b", bundles.artifact("net", "onnx", path), data)
    one, two = (predict.load(r.outputs["predictions"]) for r in (first, second))
    assert np.array_equal(one.predicted, two.predicted)
    assert np.allclose(one.outputs.astype(float), two.outputs.astype(float), atol=2e-3)
    for name in ("accuracy", "macs", "parameters"):
        assert first.metrics[name].value == second.metrics[name].value
    assert set(first.metrics) == set(second.metrics)
    with pytest.raises(ConfigError, match="factory"):
        evaluate(tmp_path / "c", Artifact("net", "checkpoint", folder, ""), data)


def network(num_classes):
    from torch import nn

    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(4, num_classes))  # fmt: skip
