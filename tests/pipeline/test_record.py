import datetime
import os
import time

import pytest

from compressor.core import files, results
from compressor.core.errors import SystemFault
from compressor.pipeline import execution, record
from compressor.pipeline.progress import Quiet
from tests.pipeline.test_wiring import CHAIN

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture
def finished(bench, tmp_path):
    """Writes one more run folder of a finished toy pipeline."""
    bench.write(CHAIN)
    pipeline, state = bench.load(), bench.state()
    done = execution.execute(pipeline, state, pipeline.nodes, execution.Options(), Quiet())

    def write(judge=lambda folder, found: found):
        found = record.summarize(pipeline, done, NOW)
        return record.write(tmp_path / "runs", pipeline, state, found, done, judge)

    return write


def test_a_run_folder_appears_whole_and_latest_points_to_it(finished, tmp_path):
    folder, found = finished()
    assert folder == tmp_path / "runs" / "toy" / "20260102T030405Z"
    assert results.load(folder) == found
    assert os.readlink(folder.parent / "latest") == folder.name
    assert {p.name for p in folder.iterdir()} == {"results.json", "resolved.yaml"}
    assert [s.name for s in found.stages] == ["a", "b", "c"]
    assert found.find("c.value")[0][1].value == 10.0


def test_runs_of_one_second_do_not_overwrite_each_other(finished):
    first, second, third = (finished()[0] for _ in range(3))
    assert [second.name, third.name] == [f"{first.name}-2", f"{first.name}-3"]
    assert os.readlink(first.parent / "latest") == third.name


def test_a_failing_judge_leaves_no_run_and_the_older_latest(finished):
    first, _ = finished()

    def judge(folder, found):
        (folder / "half.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        finished(judge)
    assert {p.name for p in first.parent.iterdir()} == {first.name, "latest"}
    assert os.readlink(first.parent / "latest") == first.name


def test_a_refused_rename_leaves_no_run(finished, monkeypatch, tmp_path):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record.os, "rename", full)
    with pytest.raises(SystemFault, match="disk is full"):
        finished()
    monkeypatch.undo()
    assert list((tmp_path / "runs" / "toy").iterdir()) == []


def test_what_a_killed_run_left_is_removed_after_a_day(finished, tmp_path):
    home = tmp_path / "runs" / "toy"
    old, young = home / ".partial-old", home / ".partial-young"
    old.mkdir(parents=True)
    young.mkdir()
    two_days = time.time() - 48 * 3600
    os.utime(old, (two_days, two_days))
    finished()
    assert not old.exists()
    assert young.exists()


def test_a_judge_may_change_the_record(finished):
    verdict = results.GateRecord("g", "PASS", "fine")

    def judge(folder, found):
        assert (folder / "resolved.yaml").is_file()
        files.write_text(folder / "report.html", "page")
        return type(found)(
            **{f: getattr(found, f) for f in found.__slots__} | {"gates": (verdict,)}
        )

    folder, _ = finished(judge)
    assert results.load(folder).gates == (verdict,)
    assert (folder / "report.html").read_text() == "page"
