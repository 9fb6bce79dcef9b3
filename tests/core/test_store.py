import dataclasses
import os
import threading

import pytest

from compressor.core import files
from compressor.core.errors import SystemFault
from compressor.core.hashing import digest_path
from compressor.core.store import Entry, Store
from compressor.core.types import Metric

KEY = "ab" * 32


def stored(store, content=b"weights", key=KEY, folder=False):
    with store.workdir() as work:
        if folder:
            (work / "out" / "sub").mkdir(parents=True)
            (work / "out" / "sub" / "a").write_bytes(content)
            (work / "out" / "b").write_bytes(b"b")
        else:
            (work / "out").write_bytes(content)
        output = dataclasses.replace(store.put(work / "out"), kind="thing")
    entry = Entry(key, "toy", {"out": output}, {"m": Metric(1.5, "%", "higher")}, {"a": 1}, 0.1)
    store.commit(entry)
    return entry


@pytest.mark.parametrize("folder", [False, True])
def test_an_entry_comes_back_as_it_was_put(tmp_path, folder):
    store = Store(tmp_path)
    entry = stored(store, folder=folder)
    assert store.lookup(KEY) == entry
    assert digest_path(store.object(entry.outputs["out"].digest)) == entry.outputs["out"].digest


def test_an_unknown_key_is_a_miss(tmp_path):
    assert Store(tmp_path).lookup("cd" * 32) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "extend"])
@pytest.mark.parametrize("folder", [False, True])
def test_damaged_bytes_are_a_miss_and_are_said(tmp_path, damage, folder):
    warnings = []
    store = Store(tmp_path, warnings.append)
    entry = stored(store, b"0123456789", folder=folder)
    path = store.object(entry.outputs["out"].digest)
    file = path / "sub" / "a" if folder else path
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[4] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        file.write_bytes(data[:5])
    elif damage == "extend":
        file.write_bytes(data + b"x")
    else:
        file.unlink()
    assert store.lookup(KEY) is None
    if file.exists() or folder or damage != "delete":
        assert warnings
    again = stored(store, b"0123456789", folder=folder)  # recomputing heals it
    assert store.lookup(KEY) == again


def test_swapped_objects_are_both_misses(tmp_path):
    store = Store(tmp_path)
    one = stored(store, b"one", KEY)
    two = stored(store, b"two", "cd" * 32)
    a, b = (store.object(e.outputs["out"].digest) for e in (one, two))
    content = a.read_bytes(), b.read_bytes()
    a.write_bytes(content[1])
    b.write_bytes(content[0])
    assert store.lookup(KEY) is None
    assert store.lookup("cd" * 32) is None


def test_a_key_file_under_another_key_is_a_miss(tmp_path):
    store = Store(tmp_path)
    stored(store)
    source = tmp_path / "keys" / "ab" / f"{KEY}.json"
    target = tmp_path / "keys" / "ef" / f"{'ef' * 32}.json"
    target.parent.mkdir()
    target.write_bytes(source.read_bytes())
    assert store.lookup("ef" * 32) is None


def test_every_truncation_of_a_key_file_is_a_miss(tmp_path):
    store = Store(tmp_path)
    stored(store)
    path = tmp_path / "keys" / "ab" / f"{KEY}.json"
    data = path.read_bytes()
    for cut in range(0, len(data) - 1, 37):
        path.write_bytes(data[:cut])
        assert store.lookup(KEY) is None


def test_equal_content_is_stored_once(tmp_path):
    store = Store(tmp_path)
    stored(store, b"same", KEY)
    stored(store, b"same", "cd" * 32)
    assert len(list((tmp_path / "objects").glob("??/*"))) == 1


def test_an_external_is_hashed_again_when_it_changes(tmp_path):
    store = Store(tmp_path / "store")
    file = tmp_path / "data.bin"
    file.write_bytes(b"one")
    first = store.external(file)
    assert store.external(file) == first
    file.write_bytes(b"two!")
    assert store.external(file) != first
    stat = file.stat()
    file.write_bytes(b"tow!")  # same size
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert store.external(file) != first


def test_only_one_holder_of_a_key_at_a_time(tmp_path):
    store, inside, most = Store(tmp_path), 0, 0
    guard = threading.Lock()

    def work():
        nonlocal inside, most
        with store.lock(KEY):
            with guard:
                inside += 1
                most = max(most, inside)
            with guard:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert most == 1


def test_collect_keeps_what_is_asked_and_drops_the_rest(tmp_path):
    store = Store(tmp_path)
    stored(store, b"one", KEY)
    stored(store, b"two", "cd" * 32)
    removed, freed = store.collect(lambda entry: entry.key == KEY)
    assert (removed, freed) == (1, 3)
    assert store.lookup(KEY) is not None
    assert store.lookup("cd" * 32) is None


def test_damaged_lists_what_does_not_match_its_name(tmp_path):
    store = Store(tmp_path)
    entry = stored(store)
    assert store.damaged() == []
    path = store.object(entry.outputs["out"].digest)
    path.write_bytes(b"other")
    assert store.damaged() == [path.name]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "f"
    files.write_bytes(path, b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SystemFault, match="disk is full"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_is_a_sentence():
    full = files.Path("/dev/full")
    with pytest.raises(SystemFault, match="disk is full"), files.faults(full):
        full.write_bytes(b"x")


def test_a_link_inside_an_artifact_is_refused(tmp_path):
    store = Store(tmp_path / "s")
    with store.workdir() as work:
        (work / "out").mkdir()
        (work / "out" / "l").symlink_to("/etc/passwd")
        with pytest.raises(ValueError, match="link"):
            store.put(work / "out")
