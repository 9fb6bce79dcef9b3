import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as OtherLinear
from torch.nn.utils import prune

from compressor.core.errors import IntegrityError, StageError
from compressor.core.files import write_json
from compressor.core.hashing import digest_bytes, digest_path
from compressor.models import build, card, checkpoint
from compressor.models.construct import example_inputs
from tests.models.support import NETWORKS, name, run, settle, spec

SMALL = {"name": "resnet", "depth": 8, "width": 4}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def trained(model, *where, **more):
    what = spec(model, *where, **more)
    return settle(build(what, seed=0)), what


def narrow_resnet_(model):
    """Keep the inner channels 0 and 2 of the first block: conv1's rows, bn1, conv2's columns."""
    block, keep = model.blocks[0], [0, 2]
    block.conv1.weight = nn.Parameter(block.conv1.weight[keep].detach())
    block.conv2.weight = nn.Parameter(block.conv2.weight[:, keep].detach())
    block.conv1.out_channels = block.conv2.in_channels = 2
    narrow_norm_(block.bn1, keep)


def narrow_norm_(norm, keep):
    norm.num_features = len(keep)
    for key in ("weight", "bias"):
        setattr(norm, key, nn.Parameter(getattr(norm, key)[keep].detach()))
    for key in ("running_mean", "running_var"):
        setattr(norm, key, getattr(norm, key)[keep])


def narrow_tiny_(model, keep=(1, 2, 4, 5)):
    """Every layer of toys.Tiny from 6 to 4 channels."""
    keep = list(keep)

    def cut_(module, key, *dims):
        value = getattr(module, key).detach()
        for dim in dims:
            value = value.index_select(dim, torch.tensor(keep))
        setattr(module, key, nn.Parameter(value))

    for module, key, *dims in [
        (model.conv, "weight", 0), (model.conv, "bias", 0), (model.act, "weight", 0),
        (model.depthwise, "weight", 0), (model.depthwise, "bias", 0),
        (model.group, "weight", 0), (model.group, "bias", 0),
        (model.up, "weight", 0, 1), (model.up, "bias", 0),
        (model.norm, "weight", 0), (model.norm, "bias", 0), (model, "scale", 0),
        (model.head, "weight", 1),
    ]:  # fmt: skip
        cut_(module, key, *dims)
    narrow_norm_(model.bn, keep)
    n = len(keep)
    model.conv.out_channels = model.act.num_parameters = model.group.num_channels = n
    model.depthwise.in_channels = model.depthwise.out_channels = model.depthwise.groups = n
    model.up.in_channels = model.up.out_channels = model.head.in_features = n
    model.norm.normalized_shape = (n,)


@pytest.mark.parametrize("model", NETWORKS, ids=name)
def test_a_loaded_network_gives_equal_outputs(tmp_path, model):
    network, what = trained(model)
    x = torch.randn(4, 3, 16, 16)
    checkpoint.save(tmp_path, network, what)
    loaded = checkpoint.load(tmp_path, what)
    assert torch.equal(run(network, x), run(loaded, x))
    assert not any(m.training for m in loaded.modules())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.json", "weights.safetensors"]


@pytest.mark.parametrize("model", NETWORKS, ids=name)
def test_equal_networks_are_equal_bytes_and_a_reloaded_one_too(tmp_path, model):
    network, what = trained(model)
    checkpoint.save(tmp_path / "a", network, what)
    checkpoint.save(tmp_path / "b", trained(model)[0], what)
    checkpoint.save(tmp_path / "c", checkpoint.load(tmp_path / "a", what), what)
    assert len({digest_path(tmp_path / n) for n in "abc"}) == 1


def test_the_memory_format_does_not_change_the_bytes(tmp_path):
    network, what = trained(SMALL)
    checkpoint.save(tmp_path / "a", network, what)
    network.to(memory_format=torch.channels_last)
    assert not network.stem[0].weight.is_contiguous()
    checkpoint.save(tmp_path / "b", network, what)
    assert digest_path(tmp_path / "a") == digest_path(tmp_path / "b")


@pytest.mark.gpu
def test_the_device_does_not_change_the_bytes(tmp_path):
    network, what = trained(SMALL)
    checkpoint.save(tmp_path / "a", network, what)
    checkpoint.save(tmp_path / "b", network.to("cuda"), what)
    assert network.head.weight.is_cuda
    assert digest_path(tmp_path / "a") == digest_path(tmp_path / "b")


def test_saving_and_loading_leave_the_network_and_the_generator_alone(tmp_path):
    network, what = trained(SMALL)
    network.train()
    network.stem.eval()
    network.head.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    modes, generator = [m.training for m in network.modules()], torch.get_rng_state()
    checkpoint.save(tmp_path, network, what)
    checkpoint.load(tmp_path, what)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m._forward_hooks for m in network.modules())


def test_shared_parameters_are_stored_once_and_shared_again(tmp_path):
    network, what = trained("tests.models.toys:tied")
    checkpoint.save(tmp_path, network, what)
    loaded = checkpoint.load(tmp_path, what)
    assert loaded.third.weight is loaded.second.weight
    stored = safetensors.torch.load_file(tmp_path / "weights.safetensors")
    assert "third.weight" not in stored
    assert card.read(tmp_path).aliases == {"third.weight": "second.weight"}


def test_shared_parameters_stay_shared_when_narrowed(tmp_path):
    network, what = trained("tests.models.toys:tied")
    keep = [0, 3]
    for module, columns in ((network.first, slice(None)), (network.second, keep)):
        module.weight = nn.Parameter(module.weight.detach()[keep][:, columns])
    network.third.weight = network.second.weight
    for module in (network.first, network.second, network.third):
        module.bias = nn.Parameter(module.bias.detach()[keep])
        module.out_features, module.in_features = module.weight.shape
    network.head.weight = nn.Parameter(network.head.weight.detach()[:, keep])
    network.head.in_features = 2
    checkpoint.save(tmp_path, network, what)
    loaded = checkpoint.load(tmp_path, what)
    assert loaded.third.weight is loaded.second.weight
    x = torch.randn(3, 3, 16, 16)
    assert torch.equal(run(network, x), run(loaded, x))


RELOAD = """
import json, sys
from pathlib import Path
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch_pruning", "pickle5", "dill"}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import torch, safetensors.torch
torch.set_num_threads(1)
from compressor.models import checkpoint
from tests.models.support import spec
for job in json.loads(sys.argv[1]):
    model = checkpoint.load(Path(job["path"]), spec(job["model"], tuple(job["shape"])))
    x = safetensors.torch.load_file(job["path"] + "/../x.safetensors")["x"]
    with torch.no_grad():
        y = model(x)
    safetensors.torch.save_file({"y": y}, job["path"] + "/../y.safetensors")
"""


def reload_elsewhere(jobs):
    """[(folder, network, model, shape)]: load in a fresh process; outputs must be equal."""
    rows, wanted = [], []
    for folder, network, model, shape in jobs:
        what = spec(model, shape)
        checkpoint.save(folder / "model", network, what)
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2))
        safetensors.torch.save_file({"x": x}, folder / "x.safetensors")
        rows.append({"path": str(folder / "model"), "model": model, "shape": shape})
        wanted.append((folder / "y.safetensors", run(network, x)))
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, json.dumps(rows)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for path, outputs in wanted:
        assert torch.equal(safetensors.torch.load_file(path)["y"], outputs)


def test_a_narrowed_network_reloads_in_a_fresh_process_without_the_pruning_library(tmp_path):
    shape = (3, 16, 16)
    first, _ = trained(SMALL)
    whole = sum(p.numel() for p in first.parameters())
    narrow_resnet_(first)
    user = {"name": "tests.models.toys:tiny", "width": 6}
    second, _ = trained(user)
    narrow_tiny_(second)
    for name_ in "ab":
        (tmp_path / name_).mkdir()
    reload_elsewhere([(tmp_path / "a", first, SMALL, shape), (tmp_path / "b", second, user, shape)])
    record = card.summary(tmp_path / "a" / "model")
    assert record["parameters"] < whole
    assert record["layers"]["blocks.0.conv1"]["out"] == 2
    assert record["layers"]["blocks.0.conv2"]["in"] == 2
    loaded = checkpoint.load(tmp_path / "b" / "model", spec(user))
    assert loaded.depthwise.groups == loaded.conv.out_channels == loaded.head.in_features == 4
    assert loaded.norm.normalized_shape == (4,)
    loaded.train()(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is not None for p in loaded.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("torchvision:resnet18", 32), ("torchvision:mobilenet_v2", 32),
        ("torchvision:densenet121", 32), ("torchvision:vgg11_bn", 32),
        ({"name": "resnet", "depth": 14, "width": 8}, 16),
        ({"name": "mobilenet", "width": 0.5}, 16), ("lenet5", 16), ("mlp", 16),
    ],
)  # fmt: skip
def test_what_torch_pruning_made_reloads_without_it(tmp_path, model, size):
    import torch_pruning as tp

    shape = (3, size, size)
    network, what = trained(model, shape)
    before = sum(p.numel() for p in network.parameters())
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    tp.pruner.BasePruner(
        network.eval(), example_inputs(what, 2), tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5, ignored_layers=[last],
    ).step()  # fmt: skip
    assert sum(p.numel() for p in network.parameters()) < 0.6 * before
    reload_elsewhere([(tmp_path, network, model, shape)])


def saved(tmp_path, model=SMALL):
    network, what = trained(model)
    checkpoint.save(tmp_path, network, what)
    return network, what


def edit_card(folder, change):
    record = json.loads((folder / "checkpoint.json").read_text())
    change(record)
    write_json(folder / "checkpoint.json", record)


def rewrite(folder, change):
    """Weights changed by someone who also corrects the recorded digest."""
    tensors = safetensors.torch.load_file(folder / "weights.safetensors")
    change(tensors)
    data = safetensors.torch.save(tensors)
    (folder / "weights.safetensors").write_bytes(data)
    edit_card(folder, lambda record: record.update(sha256=digest_bytes(data)))


@pytest.mark.parametrize("where", [0, 9, 2000, -1])
def test_a_flipped_byte_of_the_weights_is_found(tmp_path, where):
    _, what = saved(tmp_path)
    data = bytearray((tmp_path / "weights.safetensors").read_bytes())
    data[where] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        checkpoint.load(tmp_path, what)


@pytest.mark.parametrize("name_", ["weights.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("keep", [0, 0.5, 0.999])
def test_a_truncated_or_missing_file_is_found(tmp_path, name_, keep):
    _, what = saved(tmp_path)
    path = tmp_path / name_
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(IntegrityError):
        checkpoint.load(tmp_path, what)
    path.unlink()
    with pytest.raises(IntegrityError, match="No such file"):
        checkpoint.load(tmp_path, what)


def test_weights_of_a_sister_checkpoint_are_found(tmp_path):
    _, what = saved(tmp_path / "a")
    other = settle(build(what, seed=9), seed=9)
    checkpoint.save(tmp_path / "b", other, what)
    data = (tmp_path / "b" / "weights.safetensors").read_bytes()
    (tmp_path / "a" / "weights.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        checkpoint.load(tmp_path / "a", what)
    # Even with a corrected digest the recorded outputs give it away.
    edit_card(tmp_path / "a", lambda record: record.update(sha256=digest_bytes(data)))
    with pytest.raises(IntegrityError, match="other outputs than recorded"):
        checkpoint.load(tmp_path / "a", what)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.update(extra=torch.zeros(2)), "extra: stored ((2,), 'F32'), recorded nothing"),
        (lambda t: t.pop("head.bias"), "head.bias: stored nothing"),
        (lambda t: t.update({"head.bias": torch.zeros(9)}), "stored ((9,), 'F32')"),
        (lambda t: t.update({"head.bias": t["head.bias"].double()}), "stored ((10,), 'F64')"),
        (lambda t: t["stem.0.weight"].neg_(), "other outputs"),
    ],
)  # fmt: skip
def test_tensors_that_the_card_does_not_record_are_found(tmp_path, change, words):
    _, what = saved(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(IntegrityError, match=re.escape(words)):
        checkpoint.load(tmp_path, what)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.update(schema=2), "malformed at schema"),
        (lambda r: r.update(more=1), "malformed at more"),
        (lambda r: r.pop("probe"), "malformed at probe"),
        (lambda r: r.update(factory="os:system"), "another network: factory os:system"),
        (lambda r: r["arguments"].update(stem="pool"), "another network: arguments"),
        (lambda r: r["classes"].reverse(), "another network: classes"),
        (lambda r: r["inputs"][0].__setitem__(0, "x"), "another network: inputs"),
        (lambda r: r["layers"].update(more={"type": "Linear"}), "layer more is recorded"),
        (lambda r: r["layers"].pop("head"), "the factory makes layer head"),
        (lambda r: r["layers"]["head"].update(type="Conv2d"), "a Conv2d, the factory makes Linear"),
        (lambda r: r["layers"]["head"].pop("in"), "no in_features recorded"),
        (lambda r: r["layers"]["head"].update({"in": -1}), "malformed at layers.head.in"),
        (lambda r: r["layers"]["head"].update({"in": "3"}), "malformed at layers.head.in"),
        (lambda r: r["layers"]["head"].update(forward=1), "malformed at layers.head.forward"),
        (lambda r: r["layers"]["stem.0"].update(groups=2), "fails on random inputs"),
        (lambda r: r["tensors"].pop("head.bias"), "recorded nothing"),
        (lambda r: r["aliases"].update(x="head.bias"), "tensor x is recorded"),
        (lambda r: r["probe"]["outputs"][0].__setitem__(0, 9.0), "other outputs than recorded"),
        (lambda r: r["probe"]["outputs"].pop(), "recorded (1, 10)"),
        (lambda r: r["probe"]["outputs"][1].pop(), "malformed at probe"),
        (lambda r: r["probe"].update(seed=-1), "malformed at probe.seed"),
        (lambda r: r["probe"].update(seed=3), "other outputs than recorded"),
        (lambda r: r.update(parameters=1), "recorded 1"),
        (lambda r: r.update(macs=1), "recorded 1"),
    ],
)  # fmt: skip
def test_a_card_that_does_not_fit_is_found(tmp_path, change, words):
    _, what = saved(tmp_path)
    edit_card(tmp_path, change)
    with pytest.raises(IntegrityError, match=re.escape(words)):
        checkpoint.load(tmp_path, what)


def test_the_pipeline_s_spec_decides_and_nothing_the_file_names_is_imported(tmp_path):
    _, what = saved(tmp_path)
    (tmp_path / "evil_factory.py").write_text("raise SystemExit('imported')\n")
    edit_card(tmp_path, lambda record: record.update(factory="evil_factory:make"))
    with pytest.raises(IntegrityError, match="factory evil_factory:make"):
        checkpoint.load(tmp_path, what)
    assert "evil_factory" not in sys.modules
    other = spec({**SMALL, "width": 8})
    saved(tmp_path)
    with pytest.raises(IntegrityError, match="another network: arguments"):
        checkpoint.load(tmp_path, other)
    with pytest.raises(IntegrityError, match="another network: classes"):
        checkpoint.load(tmp_path, replace(what, classes=what.classes[:-1]))


def test_a_checkpoint_needs_the_initial_weights_file_no_more(tmp_path):
    model = {**SMALL, "weights": str(tmp_path / "w.safetensors")}
    safetensors.torch.save_file(trained(SMALL)[0].state_dict(), model["weights"])
    what = spec(model)
    network = build(what, seed=1)
    Path(model["weights"]).unlink()
    checkpoint.save(tmp_path / "model", network, what)
    loaded = checkpoint.load(tmp_path / "model", what)
    assert torch.equal(loaded.head.weight, network.head.weight)
    assert "weights" not in card.read(tmp_path / "model").arguments


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: setattr(m.blocks[0], "bn2", nn.Identity()), "layer blocks.0.bn2"),
        (lambda m: setattr(m, "head", OtherLinear(16, 10)), "a NonDyn.*, the factory makes Linear"),
        (lambda m: m.register_buffer("counter", torch.zeros(1)), "tensor counter"),
        (lambda m: m.head.half(), "fails on random inputs"),
        (lambda m: m.double(), "fails on random inputs"),
        (lambda m: prune.l1_unstructured(m.head, "weight", 0.5), "weight_mask.*prune.remove"),
        (lambda m: m.head.weight.data.fill_(float("nan")), "infinite or NaN"),
        (lambda m: setattr(m.blocks[0].conv1, "stride", (2, 2)), "fails on random inputs"),
        (lambda m: setattr(m.blocks[0].bn2, "eps", 0.5), "other outputs"),
        (lambda m: setattr(m, "pool", nn.AdaptiveMaxPool2d(1)), "other outputs"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, change, words):
    network, what = trained(SMALL)
    network = copy.deepcopy(network)
    change(network)
    with pytest.raises(StageError, match=words):
        checkpoint.save(tmp_path / "model", network, what)
    assert not (tmp_path / "model").exists()


def test_a_summary_is_read_without_torch(tmp_path):
    network, _ = saved(tmp_path)
    code = (
        "import sys, json; from pathlib import Path\n"
        "sys.modules['torch'] = None\n"
        "from compressor.models.card import summary\n"
        f"print(json.dumps(summary(Path({str(tmp_path)!r}))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    record = json.loads(done.stdout)
    assert record["parameters"] == sum(p.numel() for p in network.parameters())
    assert record["macs"] == sum(x["macs"] for x in record["layers"].values()) > 0
    own = sum(x["parameters"] for x in record["layers"].values())
    assert own == record["parameters"]


@pytest.mark.parametrize(
    ("offset", "gap", "fails"),
    [(0, 9e-5, False), (0, 2e-4, True), (300, 2e-4, True), (900, 6.1e-5, False), (9000, 1, True)],
)
def test_outputs_are_compared_by_their_deviation_also_far_from_zero(offset, gap, fails):
    recorded = offset + torch.tensor([[-1.0, 0.0], [0.0, 1.0]]) * 1.5**0.5  # deviation 1
    outputs = recorded + gap
    if fails:
        with pytest.raises(IntegrityError, match="other outputs"):
            checkpoint._same(recorded, outputs, "it")
    else:
        checkpoint._same(recorded, outputs, "it")
