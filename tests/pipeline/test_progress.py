import io
from types import SimpleNamespace

import pytest

from compressor.core.store import Entry
from compressor.core.types import Metric
from compressor.pipeline.execution import Done
from compressor.pipeline.progress import INTERVAL_S, Plain, Quiet, reporter


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def node(name="teacher"):
    return SimpleNamespace(name=name)


@pytest.fixture
def plain():
    clock, stream = Clock(), io.StringIO()
    return Plain(stream, clock), clock, stream


def test_a_running_stage_says_where_it_is_at_most_every_ten_seconds(plain):
    progress, clock, stream = plain
    progress.start(node())
    for step in range(1, 1001):  # 50 s in steps of 50 ms
        clock.now += 0.05
        progress.update(step, 1000, f"epoch {step // 100}")
    lines = stream.getvalue().splitlines()
    assert 4 <= len(lines) <= 50 / INTERVAL_S
    assert lines[0].startswith("teacher ")
    assert "20%" in lines[0]
    assert "left" in lines[0]


def test_a_short_stage_says_nothing_before_it_ends(plain):
    progress, clock, stream = plain
    progress.start(node())
    clock.now += INTERVAL_S - 0.1
    progress.update(5, 10)
    assert stream.getvalue() == ""


def test_a_new_stage_starts_its_own_ten_seconds(plain):
    progress, clock, stream = plain
    progress.start(node("a"))
    clock.now += INTERVAL_S + 1
    progress.start(node("b"))
    progress.update(1, 2)
    assert stream.getvalue() == ""


def test_the_rest_is_estimated_from_what_is_done(plain):
    progress, clock, stream = plain
    progress.start(node())
    clock.now += 30
    progress.update(25, 100)
    assert "25%, 90.0 s left" in stream.getvalue()


@pytest.mark.parametrize(("done", "total"), [(0, 0), (0, 10)])
def test_nothing_done_yet_gives_no_estimate(plain, done, total):
    progress, clock, stream = plain
    progress.start(node())
    clock.now += 11
    progress.update(done, total)
    assert "left" not in stream.getvalue()


def test_finished_stages_and_said_lines_are_always_printed(plain):
    progress, _, stream = plain
    entry = Entry("k", "train", {}, {"accuracy": Metric(97.25, "%", "higher")}, {}, 3.21)
    progress.start(node())
    progress.say("early stop")
    progress.finish(Done(node(), entry, ran=True))
    progress.finish(Done(node("data"), entry, ran=False))
    said, ran, cached = stream.getvalue().splitlines()
    assert said.split() == ["teacher", "early", "stop"]
    assert ran.split() == ["teacher", "ran", "in", "3.2", "s", "accuracy", "97.25", "%"]
    assert cached.split()[:2] == ["data", "cached"]


def test_quiet_is_quiet_and_a_pipe_gets_plain_lines(capsys):
    assert isinstance(reporter(quiet=True), Quiet)
    assert isinstance(reporter(quiet=False), Plain)
    reporter(quiet=True).say("x")
    assert capsys.readouterr() == ("", "")
