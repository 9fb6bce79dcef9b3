from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest

from compressor.core.results import GateRecord, OutputRecord, RunResults, StageRecord
from compressor.core.types import Metric, Timing, TimingProtocol
from compressor.report import html, junit, markdown, rows, table

EVIL = "<img src=x onerror=alert(1)>|a|`b`::set-output name=x::]]>\x00\x1b[31m"


def stage(name, uses, kind, accuracy, size, p50=None, **metrics):
    found = {
        "accuracy": Metric(accuracy, "%", "higher"),
        "bytes": Metric(size, "bytes", "lower"),
        "macs": Metric(size * 10, "count", "lower"),
        **metrics,
    }
    outputs = {"model": OutputRecord(kind, "d", size)}
    return StageRecord(name, uses, "k", "ran", 1.0, outputs=outputs, metrics=found)


@pytest.fixture
def results():
    ratio = Metric(3.0, "x", "higher", (2.9, 3.0, 3.1, 3.0, 3.05))
    bench = StageRecord(
        "bench", "bench", "k", "ran", 9.0,
        config={"provider": "cpu", "threads": [1], "batch": 1},
        metrics={
            "baseline.p50": Metric(0.3, "ms", "lower"),
            "int8.p50": Metric(0.1, "ms", "lower"),
            "int8.speedup": ratio,
            "int8.speedup_reference": Metric(1.2, "x", "higher"),
        },
    )  # fmt: skip
    stages = (
        stage("teacher", "train", "checkpoint", 99.0, 700_000),
        stage("baseline", "export", "onnx", 99.0, 702_113),
        stage("int8", "quantize", "onnx", 98.5, 30_000),
        bench,
        stage("bundle", "bundle", "onnx", 98.5, 30_000, speedup=ratio),
    )
    gates = (GateRecord("bundle.bytes max 60,000", "PASS", "30,000 bytes is at most 60,000"),)
    machine = {"cpu": "Some CPU", "instruction_set": "x86", "features": ["avx2"]}
    return RunResults("digits", "2026-01-01T00:00:00+00:00", "0.1", 0, machine, stages, gates)


def test_rows_join_what_stages_and_bench_measured(results):
    found = {r.stage: r for r in rows.models(results)}
    assert list(found) == ["teacher", "baseline", "int8", "bundle"]
    assert found["int8"].p50 == 0.1
    assert found["int8"].change == pytest.approx(-0.5)
    assert found["int8"].speedup.low <= 3.0 <= found["int8"].speedup.high
    assert found["bundle"].speedup.value == pytest.approx(3.0)
    assert found["teacher"].p50 is None


def test_the_terminal_table_fits_80_columns_and_shows_both_ratios(results):
    text = table.text(results)
    assert max(map(len, text.splitlines())) <= 80
    assert "against the reference: int8 1.20x" in text
    assert "PASS" in text


@pytest.mark.parametrize(
    ("number", "word"), [(None, "-"), (85, "85"), (9_999, "9,999"), (34_500, "34.5k"),
                         (12_345_678, "12.3M"), (2_100_000_000, "2.1G")]
)  # fmt: skip
def test_counts_are_short(number, word):
    assert rows.short(number) == word


class Tags(HTMLParser):
    """Collects tags and attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = set(), []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes


def test_the_page_is_self_contained_and_has_two_plots(results, tmp_path):
    page = html.page(results, tmp_path)
    found = Tags()
    found.feed(page)
    assert not found.tags & {"script", "iframe", "link", "object", "img"}
    links = [v for k, v in found.attributes if k in {"src", "href"} and not v.startswith("#")]
    assert links == []
    assert page.count("<svg") == 2
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in (
        found.attributes
    )


def test_the_same_results_give_the_same_page(results, tmp_path):
    assert html.page(results, tmp_path) == html.page(results, tmp_path)


def evil(results):
    import dataclasses

    stages = [dataclasses.replace(s, name=EVIL, note=EVIL) for s in results.stages[:3]]
    gates = (GateRecord(EVIL, "FAIL", EVIL),)
    return dataclasses.replace(results, name=EVIL, stages=tuple(stages), gates=gates)


def test_names_cannot_break_out_of_the_page(results, tmp_path):
    page = html.page(evil(results), tmp_path)
    found = Tags()
    found.feed(page)
    assert "img" not in found.tags
    assert not [k for k, _ in found.attributes if k.startswith("on")]


def test_names_cannot_break_out_of_markdown(results):
    text = markdown.summary(evil(results))
    assert "<img" not in text
    assert "::set-output" not in text
    columns = {line.count("|") - line.count("\\|") for line in text.splitlines() if line[:1] == "|"}
    assert columns == {11, 4}


def test_junit_parses_and_counts_whatever_the_names_hold():
    gates = [GateRecord(EVIL, v, EVIL) for v in ("PASS", "FAIL", "INCONCLUSIVE", "SKIPPED")]
    root = ET.fromstring(junit.document(gates, EVIL).encode())
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("4", "1", "2")
    assert len(root.findall("testcase/failure")) == 1


def test_a_summary_stays_under_the_limit_of_a_job_summary(results):
    gates = [GateRecord("g" * 2000, "PASS", "s" * 2000)] * 500
    assert len(markdown.gates(gates).encode()) < 1_000_000


def test_bench_text_names_the_control(results):
    protocol = TimingProtocol(rounds=5)
    rounds = {"a": (1.0, 1.1, 0.9, 1.0, 1.0), "b": (0.5,) * 5, "A/A": (1.0, 1.0, 1.0, 1.0, 1.0)}
    timing = Timing("m", protocol, rounds, rounds, unstable=True, note="busy")
    text = table.timing_text(timing)
    assert "2.00x" in text
    assert "A/A control" in text
    assert "UNSTABLE: busy" in text
    assert max(map(len, text.splitlines())) <= 80
