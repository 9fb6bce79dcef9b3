"""Reading digits, IDX files, CIFAR-10, image folders and .npz files."""

from __future__ import annotations

import gzip
import io
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from compressor.core.errors import ConfigError, MissingError
from compressor.data import idx
from compressor.data.arrays import arrays, read_npz
from compressor.data.digits import digits, resize
from compressor.data.vision import (
    cifar10,
    cifar10_files,
    image_folder,
    image_folder_files,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# digits


def test_digits_are_enlarged_and_complete() -> None:
    pytest.importorskip("sklearn")
    raw = digits()
    x = raw.splits["all"].inputs["image"]
    assert x.shape == (1797, 1, 32, 32)
    assert x.dtype == np.uint8
    assert x.max() > 240
    assert np.bincount(raw.splits["all"].labels).min() > 170
    assert digits(size=8).splits["all"].inputs["image"].max() == 255


def test_resize_keeps_constants_and_ramps_and_its_own_size() -> None:
    flat = np.full((1, 8, 8), 3.0)
    assert np.array_equal(resize(flat, 32), np.full((1, 32, 32), 3.0))
    ramp = np.tile(np.arange(8.0), (8, 1))[None]
    bigger = resize(ramp, 32)[0, 0]
    assert np.allclose(np.diff(bigger[2:-2]), 0.25)  # half-pixel centres: 4 new pixels per old
    assert bigger[0] == 0
    assert bigger[-1] == 7
    image = rng().random((2, 8, 8))
    assert np.allclose(resize(image, 8), image)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"dataset digits needs sklearn.*compressor\[train\]"):
        digits()


# IDX


def idx_bytes(array: np.ndarray, magic: bytes | None = None) -> bytes:
    head = magic or bytes([0, 0, 8, array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def fashion(folder: Path, *, packed: bool = False) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name, n in (("train", 30), ("t10k", 20)):
        made[f"{name}-images-idx3-ubyte"] = rng().integers(0, 256, (n, 28, 28), dtype=np.uint8)
        made[f"{name}-labels-idx1-ubyte"] = (np.arange(n) % 10).astype(np.uint8)
    for name, array in made.items():
        data = idx_bytes(array)
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data))
        else:
            (folder / name).write_bytes(data)
    return made


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_plain_and_packed(tmp_path: Path, packed: bool, below: str) -> None:
    made = fashion(tmp_path / below, packed=packed)
    raw = idx.fashion_mnist(tmp_path)
    assert len(raw.classes) == 10
    train = raw.splits["train"]
    assert np.array_equal(train.inputs["image"][:, 0], made["train-images-idx3-ubyte"])
    assert np.array_equal(raw.splits["test"].labels, made["t10k-labels-idx1-ubyte"])
    assert len(idx.fashion_mnist_files(tmp_path)) == 4


def test_fashion_mnist_is_looked_for_in_root_then_variable_then_debian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("debian", "variable", "root"):
        fashion(tmp_path / name)
    monkeypatch.setattr(idx, "DEBIAN", tmp_path / "debian")
    monkeypatch.delenv(idx.ENVIRONMENT, raising=False)
    assert idx.fashion_mnist_files()[0].parent.name == "debian"
    monkeypatch.setenv(idx.ENVIRONMENT, str(tmp_path / "variable"))
    assert idx.fashion_mnist_files()[0].parent.name == "variable"
    assert idx.fashion_mnist_files(tmp_path / "root")[0].parent.name == "root"


def test_missing_fashion_mnist_says_where_it_looked_and_what_would_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(idx.ENVIRONMENT, str(tmp_path))
    with pytest.raises(ConfigError) as error:
        idx.fashion_mnist()
    for word in (str(tmp_path), idx.ENVIRONMENT, "apt install dataset-fashion-mnist", "download"):
        assert word in str(error.value)


IMAGES = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx_bytes(IMAGES)[:-1], r"declares \[3, 2, 2\] = 12 bytes and holds 11"),
        (idx_bytes(IMAGES) + b"x", "and holds more"),
        (idx_bytes(IMAGES, b"\0\1\x08\3"), "not an IDX file"),
        (b"", "not an IDX file"),
        (idx_bytes(IMAGES, b"\0\0\x0d\3"), "type 0x0d with 3 axes"),
        (idx_bytes(IMAGES[:, 0, 0]), "with 1 axes; unsigned bytes"),
        (idx_bytes(IMAGES)[:9], "ends inside its header"),
        (b"\0\0\x08\3" + b"\xff" * 12, "declares .* at most"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx_files_are_refused(
    tmp_path: Path, data: bytes, message: str, packed: bool
) -> None:
    file = tmp_path / ("f.gz" if packed else "f")
    file.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(ConfigError, match=message):
        idx.read_idx(file, axes=3)


def test_damaged_gzip_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.gz"
    whole = gzip.compress(idx_bytes(rng().integers(0, 256, (40, 9, 9), dtype=np.uint8)))
    for damaged in (b"no gzip at all", whole[:-40], whole[:100] + b"\0" * 50 + whole[150:]):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match="damaged gzip file"):
            idx.read_idx(file, axes=3)


def test_a_download_needs_a_folder() -> None:
    with pytest.raises(ConfigError, match="needs root"):
        idx.fashion_mnist(None, download=True)


def test_with_download_only_files_that_were_compared_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utils = pytest.importorskip("torchvision.datasets.utils")
    fashion(tmp_path)  # plain files of unknown origin, which are preferred without download
    fashion(tmp_path / "FashionMNIST" / "raw")
    made = fashion(tmp_path / "served")
    compared: list[str] = []

    def fetch(url: str, root: str, filename: str, md5: str) -> None:
        array = made[filename.removesuffix(".gz")]
        if "images" in filename:
            array = 255 - array
        Path(root, filename).write_bytes(gzip.compress(idx_bytes(array)))
        compared.append(filename)

    monkeypatch.setattr(utils, "download_url", fetch)
    raw = idx.fashion_mnist(tmp_path, download=True)
    assert len(compared) == 4
    want = 255 - made["train-images-idx3-ubyte"]
    assert np.array_equal(raw.splits["train"].inputs["image"][:, 0], want)
    assert np.array_equal(raw.splits["test"].labels, made["t10k-labels-idx1-ubyte"])


# CIFAR-10

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar(folder: Path, n: int = 4) -> list[np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    blocks = []
    for k, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        block = np.random.default_rng(k).integers(0, 256, (n, 3073), dtype=np.uint8)
        block[:, 0] %= 10
        block.tofile(folder / name)
        blocks.append(block)
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return blocks


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"])
def test_cifar10_binary_version_is_read(tmp_path: Path, below: str) -> None:
    blocks = cifar(tmp_path / below)
    raw = cifar10(tmp_path)
    assert raw.classes == tuple(NAMES)
    train = np.concatenate(blocks[:5])
    got = raw.splits["train"]
    assert got.inputs["image"].shape == (20, 3, 32, 32)
    assert np.array_equal(got.labels, train[:, 0])
    # channel, row and column of one pixel: red plane first, row-major
    assert got.inputs["image"][7, 1, 2, 3] == train[7, 1 + 1024 + 2 * 32 + 3]
    assert len(raw.splits["test"]) == 4
    assert len(cifar10_files(tmp_path)) == 7


def test_damaged_or_missing_cifar10_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cifar-10-binary\.tar\.gz there, or set download"):
        cifar10(tmp_path)
    blocks = cifar(tmp_path)
    (tmp_path / "data_batch_2.bin").write_bytes(blocks[1].tobytes()[:-5])
    with pytest.raises(ConfigError, match=r"data_batch_2\.bin: 12287 bytes; whole records"):
        cifar10(tmp_path)
    blocks[1][2, 0] = 10
    blocks[1].tofile(tmp_path / "data_batch_2.bin")
    with pytest.raises(ConfigError, match=r"data_batch_2\.bin: label 10 in record 2"):
        cifar10(tmp_path)
    (tmp_path / "data_batch_2.bin").unlink()
    with pytest.raises(ConfigError, match=r"has no data_batch_2\.bin"):
        cifar10(tmp_path)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, ("canary", "w"))


@pytest.mark.slow
def test_cifar10_pickles_with_wrong_checksums_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchvision")
    import pickle

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps(Evil()))
    assert len(cifar10_files(tmp_path)) == 7
    with pytest.raises(ConfigError, match="torchvision cannot read"):
        cifar10(tmp_path)
    assert not (tmp_path / "canary").exists()


# image folders


def picture(file: Path, size: tuple[int, int] = (5, 4), value: int = 9, mode: str = "RGB") -> None:
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], (value,) * 3 if mode == "RGB" else value).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("PIL")
    root = tmp_path / "pets"
    for label, name in enumerate(("cat", "dog")):
        for k in range(3):
            picture(root / name / f"{k}.png", value=10 * label + k)
    (root / "cat" / "notes.txt").write_text("no image")
    (root / ".git").mkdir()
    return root


def test_an_image_folder_is_read_in_the_order_of_names(folder: Path) -> None:
    raw = image_folder(folder)
    assert (raw.name, raw.classes) == ("pets", ("cat", "dog"))
    whole = raw.splits["all"]
    assert whole.inputs["image"].shape == (6, 3, 5, 4)
    assert whole.inputs["image"][:, 2, 4, 3].tolist() == [0, 1, 2, 10, 11, 12]
    assert whole.labels.tolist() == [0, 0, 0, 1, 1, 1]
    grey = image_folder(folder, channels=1).splits["all"].inputs["image"]
    assert grey.shape == (6, 1, 5, 4)
    assert grey[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert [f.name for f in image_folder_files(folder)] == ["0.png", "1.png", "2.png"] * 2


def test_train_and_test_folders_are_splits_but_a_class_may_be_called_train(
    folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "split"
    root.mkdir()
    folder.rename(root / "train")
    picture(root / "test" / "cat" / "a.jpg")
    picture(root / "test" / "dog" / "a.jpeg")
    raw = image_folder(root)
    assert {k: len(v) for k, v in raw.splits.items()} == {"train": 6, "test": 2}
    assert raw.classes == ("cat", "dog")
    picture(root / "test" / "emu" / "a.png")
    with pytest.raises(ConfigError, match="differ in emu"):
        image_folder(root)
    traffic = tmp_path / "traffic"
    picture(traffic / "train" / "a.png")
    picture(traffic / "bus" / "a.png")
    assert image_folder(traffic).classes == ("bus", "train")


def test_images_of_unequal_size_are_refused_or_resized(folder: Path) -> None:
    picture(folder / "dog" / "9.png", size=(7, 4))
    with pytest.raises(ConfigError) as error:
        image_folder(folder)
    for word in ("0.png is 5 x 4", "9.png is 7 x 4", "size: [h, w]"):
        assert word in str(error.value)
    x = image_folder(folder, size=(8, 6)).splits["all"].inputs["image"]
    assert x.shape == (7, 3, 8, 6)
    assert x[6, 0, 0, 0] == 9


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_and_sizes_come_from_headers(
    tmp_path: Path, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow itself is the oracle for the pixels; nothing is decoded to know the size."""
    pil, ops = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
    from compressor.data import vision

    exif = pil.Exif()
    exif[0x0112] = orientation
    stored = pil.fromarray(rng().integers(0, 256, (5, 4, 3), dtype=np.uint8))
    (tmp_path / "a").mkdir()
    for name in ("0.png", "1.png"):
        stored.save(tmp_path / "a" / name, **({} if orientation == 1 else {"exif": exif}))
    with pil.open(tmp_path / "a" / "0.png") as image:
        upright = np.asarray(ops.exif_transpose(image))
    got = image_folder(tmp_path).splits["all"].inputs["image"]
    assert got.shape == ((2, 3, 5, 4) if orientation < 5 else (2, 3, 4, 5))
    assert np.array_equal(got[1], upright.transpose(2, 0, 1))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(pil.Image, "convert", refuse)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", refuse)
    assert vision._common_size([tmp_path / "a" / "0.png"]) == upright.shape[:2]


def test_what_is_no_image_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        image_folder(folder / "missing")
    with pytest.raises(ConfigError, match="no folders in"):
        image_folder(folder / "dog")
    (folder / "emu").mkdir()
    with pytest.raises(ConfigError, match="class 'emu': no images in"):
        image_folder(folder)


def test_unreadable_and_deep_images_are_named(folder: Path) -> None:
    file = folder / "dog" / "2.png"
    whole = file.read_bytes()
    for damaged in (b"GIF?", whole[:40], b""):
        file.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"dog/2\.png: not a readable image"):
            image_folder(folder)
    picture(file, mode="I;16", value=700)
    with pytest.raises(ConfigError, match=r"mode I;16 has more than 8 bits"):
        image_folder(folder)


# .npz


def npz(file: Path, **values: object) -> Path:
    np.savez_compressed(file, **values)  # type: ignore[arg-type]
    return file


X = np.arange(60, dtype=np.uint8).reshape(10, 3, 2)
Y = np.arange(10) % 2


def test_arrays_are_read_by_name(tmp_path: Path) -> None:
    raw = arrays(npz(tmp_path / "plankton.npz", x=X, y=Y, unused=np.zeros(3)))
    assert (raw.name, raw.classes) == ("plankton", ("0", "1"))
    assert list(raw.splits) == ["all"]
    assert np.array_equal(raw.splits["all"].inputs["x"], X[:, None])  # a channel axis for images
    assert np.array_equal(raw.splits["all"].labels, Y)


def test_arrays_bring_their_own_splits_names_and_several_inputs(tmp_path: Path) -> None:
    file = npz(
        tmp_path / "a.npz",
        a=X, b=X * 1.5, target=Y, a_test=X[:4], b_test=X[:4] * 1.5, target_test=Y[:4],
        classes=np.array(["no", "yes"]),
    )  # fmt: skip
    raw = arrays(file, inputs=("b", "a"), labels="target")
    assert {k: len(v) for k, v in raw.splits.items()} == {"train": 10, "test": 4}
    assert raw.classes == ("no", "yes")
    assert list(raw.splits["test"].inputs) == ["b", "a"]


def test_images_with_channels_last_are_turned_round(tmp_path: Path) -> None:
    x = rng().integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    raw = arrays(npz(tmp_path / "a.npz", x=x, y=np.arange(6) % 2), channels_last=True)
    assert np.array_equal(raw.splits["all"].inputs["x"], x.transpose(0, 3, 1, 2))


def test_regression_has_no_classes(tmp_path: Path) -> None:
    raw = arrays(npz(tmp_path / "a.npz", x=X, y=Y * 0.5), task="regression")
    assert raw.classes == ()


def object_array() -> np.ndarray:
    return np.array([Evil(), 1], dtype=object)


def test_object_arrays_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="key y: holds Python objects"):
        arrays(npz(tmp_path / "a.npz", x=X, y=object_array()))
    assert not (tmp_path / "canary").exists()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_bombs_are_refused_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = npz(tmp_path / "bomb.npz", x=np.zeros(4_000_000, np.uint8), y=Y)
    assert file.stat().st_size < 10_000
    monkeypatch.setattr("numpy.lib.format.read_array", lambda *a, **k: pytest.fail("unpacked"))
    with pytest.raises(ConfigError, match=r"unpack to 4000\d+; option max_gib is 1048576"):
        arrays(file, max_gib=1 / 1024)
    huge = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        huge, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", huge.getvalue())
    with pytest.raises(ConfigError, match=r"key x: header says 8000000000000 bytes"):
        read_npz(file, 2**30)


def test_malformed_npz_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with pytest.raises(ConfigError, match="no such file"):
        arrays(file)
    with pytest.raises(ConfigError, match=r"a folder; give the \.npz file"):
        arrays(tmp_path)
    file.write_bytes(b"not a zip")
    with pytest.raises(ConfigError, match=r"not a readable \.npz"):
        arrays(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"not an array")
    with pytest.raises(ConfigError, match="key x: not a readable array"):
        arrays(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", npy(X))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", npy(X))
    with pytest.raises(ConfigError, match="key 'x' occurs twice"):
        arrays(file)
    whole = npz(file, x=rng().integers(0, 256, 4000, dtype=np.uint8), y=Y).read_bytes()
    file.write_bytes(whole[:2000] + b"\0\1\2" + whole[2003:])
    with pytest.raises(ConfigError, match="not a readable"):
        arrays(file)


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with pytest.raises(ConfigError, match="no key 'x'; did you mean 'xs'"):
        arrays(npz(file, xs=X, y=Y))
    with pytest.raises(ConfigError, match="no key 'y'; known: label, x"):
        arrays(npz(file, x=X, label=Y))
    with pytest.raises(ConfigError, match="y_test is there and x_test is not"):
        arrays(npz(file, x=X, y=Y, y_test=Y))
    with pytest.raises(ConfigError, match="classes is int64"):
        arrays(npz(file, x=X, y=Y, classes=np.arange(2)))
    with pytest.raises(ConfigError, match="class number 1000000 and only 10 samples"):
        arrays(npz(file, x=X, y=Y * 10**6))


def test_nothing_here_imports_torch() -> None:
    import subprocess

    program = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "import compressor.data.prepare, compressor.data.vision, compressor.data.idx\n"
        "import compressor.data.arrays, compressor.data.digits, compressor.stages.data\n"
        "assert 'PIL' not in sys.modules and 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
