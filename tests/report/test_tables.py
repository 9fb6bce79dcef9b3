from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from compressor.core.results import OutputRecord, RunResults, StageRecord
from compressor.report import html, markdown, plots, quantized, tables

EVIL = "<img src=x onerror=alert(1)>|a|`b`::set-output name=x::$x^2$\x1b[31m" + "w" * 300


def quality(db, drop=None):
    return {"sqnr": {"y": db, "z": db + 9.0}, "agreement": 99.5, "drop": drop}


def layer(name, db, region="", form="int8", drop=None, us=30.0):
    return {
        "name": name, "op": "Conv", "form": form, "weight_bits": 7, "low": -1.0, "high": 2.0,
        "reason": "faster so in this place" if form == "float" else "", "region": region or name,
        "float_us": us, "int8_us": us / 3, "alone_int8": quality(db, drop),
        "alone_float": quality(db / 2, drop),
    }  # fmt: skip


def region(name, *nodes, form="int8"):
    return {"name": name, "nodes": list(nodes), "form": form, "reason": "", "float_us": 70.0,
            "int8_us": 25.0, "alone_int8": quality(33.3), "alone_float": None}  # fmt: skip


def tuned(count=6, drop=None):
    """``count`` layers, the first two in one region, the third float; the last is the noisiest."""
    names = [f"node_conv_{i}" for i in range(count)]
    layers = [layer(name, 60.0 - i, drop=drop) for i, name in enumerate(names)]
    layers[1]["region"] = names[0]
    layers[2] |= {"form": "float", "reason": "faster so in this place"}
    pool = {"name": "pool", "op": "MaxPool", "form": "int8", "weight_bits": None, "reason": ""}
    regions = [
        region(names[0], names[0], names[1], "node_add"),
        region(names[2], names[2], form="float"),
        *(region(n, n) for n in names[3:]),
    ]
    tried = [{"float": [], "value": 1.41, "low": 1.38, "high": 1.44},
             {"float": [names[2]], "value": 1.52, "low": 1.5, "high": 1.55}]  # fmt: skip
    rungs = [{"rung": "bias correction", "before": 21.34, "after": 27.81, "unit": "dB",
              "kept": True, "seconds": 1.5, "note": "all layers"}]  # fmt: skip
    return {
        "schema": 1, "target": {"name": "portable", "reason": "exact on every CPU"},
        "layers": [*layers, pool], "regions": regions, "sqnr": {"y": 31.2}, "agreement": 99.8,
        "held_out": 51, "samples": 205, "verdict": "int8 is 1.52x the speed of fp32",
        "placement": {"candidates": tried, "goal": {"budget": 20.0, "min_sqnr": 25.0},
                      "seconds": 12.2, "unstable": ""},
        "recovery": rungs,
    }  # fmt: skip


def results(**files):
    stages = tuple(
        StageRecord(name, uses, "k", "ran", 1.0,
                    outputs={"table": OutputRecord("table", "d", 9, f"tables/{name}.json")})
        for name, uses in files.items()
    )  # fmt: skip
    return RunResults("net", "2026-01-01T00:00:00+00:00", "0.1", 0, {"cpu": "c"}, stages)


@pytest.fixture
def draw(tmp_path):
    """Puts a table (or bytes) into a run folder; gives page and summary."""

    def run(table, uses="quantize"):
        (tmp_path / "tables").mkdir(exist_ok=True)
        data = table if isinstance(table, bytes) else json.dumps(table).encode()
        (tmp_path / "tables" / "int8.json").write_bytes(data)
        record = results(int8=uses)
        return html.page(record, tmp_path), markdown.summary(record, tmp_path)

    return run


class Page(HTMLParser):
    """Tags, attributes, and the words of every table row."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.rows, self.open = [], [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag == "tr":
            self.rows.append("")
            self.open = True

    def handle_endtag(self, tag):
        self.open = self.open and tag != "tr"

    def handle_data(self, data):
        if self.open:
            self.rows[-1] = " ".join([*self.rows[-1].split(), *data.split()])

    def row(self, word):
        return next(row for row in self.rows if word in row)


def test_every_layer_is_in_the_page_with_its_numbers(draw):
    page, _ = draw(tuned())
    found = Page(page)
    words = found.row("node_conv_3")
    assert words == "node_conv_3 Conv int8 57.0 28.5 99.50 99.50 10.0 30.0"
    assert "float 58.0 29.0" in found.row("node_conv_2")
    assert "faster so in this place" in found.row("node_conv_2")
    for i in range(6):
        assert len([row for row in found.rows if f"node_conv_{i} Conv" in row]) == 1


def test_a_region_of_several_layers_stands_above_them(draw):
    found = Page(draw(tuned())[0])
    at = next(i for i, row in enumerate(found.rows) if "2 layers up to node_add" in row)
    assert "33.3" in found.rows[at]
    assert "node_conv_0" in found.rows[at + 1]
    assert "node_conv_1" in found.rows[at + 2]


def test_verdict_placements_and_recovery_are_told(draw):
    page, summary = draw(tuned())
    found = Page(page)
    assert "int8 is 1.52x the speed of fp32" in page
    assert "asked for an SQNR of at least 25 dB; budget 20 s, of which 12 s were counted" in page
    assert "bias correction 21.34 27.81 dB yes 1.5 all layers" in found.row("bias correction")
    assert "1.52× 1.50–1.55 4 of 5 node_conv_2 (ships)" in found.row("1.52×")
    assert "(ships)" not in found.row("1.41×")
    assert "bias correction 21.34 to 27.81 dB, kept, all layers" in summary


def test_with_labels_it_is_the_drop_that_is_shown(draw):
    page, summary = draw(tuned(drop=0.25))
    assert "drop, points, alone" in page
    assert "+0.25 +0.25" in Page(page).row("node_conv_3")
    assert "drop, points" in summary


def test_the_summary_has_the_five_worst_layers_the_worst_first(draw):
    _, summary = draw(tuned(9))
    named = re.findall(r"^\| (node_conv_\d)", summary, re.MULTILINE)
    assert named == [f"node_conv_{i}" for i in (8, 7, 6, 5, 4)]
    assert "the 5 most sensitive of 9 layers" in summary


def test_a_long_network_is_folded_and_its_plots_stay_small(draw):
    page, _ = draw(tuned(120))
    assert "<details open" not in page[: page.index("<summary>120 layers")]
    assert "Noise of the 20 worst of 120 layers" in page
    assert "Time of the 20 slowest of 120 layers" in page
    heights = [float(h) for h in re.findall(r'<svg[^>]* height="([\d.]+)pt"', page)]
    assert len(heights) == 2
    assert max(heights) < 700
    assert len([row for row in Page(page).rows if "node_conv_" in row]) >= 120


def test_a_small_network_is_not_folded(draw):
    assert re.search(r"<details open>\s*<summary>6 layers", draw(tuned())[0])


def test_names_in_tables_cannot_break_out(draw):
    evil = json.loads(json.dumps(tuned()).replace("node_conv_5", "EVIL").replace("pool", "EVIL"))
    text = json.dumps(evil).replace("EVIL", json.dumps(EVIL)[1:-1])
    table = json.loads(text) | {"verdict": EVIL, "target": {"name": EVIL, "reason": EVIL}}
    table["placement"]["unstable"] = EVIL
    table["recovery"][0] |= {"rung": EVIL, "unit": EVIL, "note": EVIL}
    page, summary = draw(table)
    found = Page(page)
    assert "img" not in found.tags
    assert not [key for key, _ in found.attributes if key.startswith("on")]
    assert "<img" not in summary
    assert "::set-output" not in summary
    rows = [line for line in summary.splitlines() if line.startswith("|")]
    assert {line.count("|") - line.count("\\|") for line in rows} == {11, 7}


def test_without_a_table_there_is_no_section(tmp_path):
    record = RunResults("net", "2026-01-01T00:00:00+00:00", "0.1", 0, {}, ())
    for page in (html.page(record, tmp_path), html.page(results(), tmp_path)):
        assert "Quantization" not in page
        assert "<details" not in page
    assert markdown.summary(results(int8="quantize")) == markdown.summary(
        results(int8="quantize"), tmp_path
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"{", "cannot be read (JSONDecodeError)"), (b"\xff\xfe\x00", "cannot be read"),
     (b"[" * 100_000, "cannot be read"),
     (json.dumps({"layers": [{}], "target": {"name": "portable"}}).encode(),
      "cannot be read (layers.0.name: Field required)"),
     (json.dumps({"layers": "many", "target": None}).encode(), "cannot be read (layers"),
     (json.dumps(tuned()).replace("30.0", "1e999").encode(), "cannot be read (layers.0.float_us"),
     (json.dumps(tuned()).replace("30.0", "NaN").encode(), "cannot be read (layers.0.float_us")],
)  # fmt: skip
def test_a_damaged_table_is_said_and_the_rest_is_drawn(draw, data, words):
    page, summary = draw(data)
    assert words in page
    assert "<h2>Machine</h2>" in page
    assert summary.startswith("## net")


def test_a_table_that_is_gone_or_outside_of_the_folder_is_not_read(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "secret.json").write_text('{"password": "hidden"}')
    outside = OutputRecord("table", "d", 9, "../secret.json")
    stage = StageRecord("t", "mine", "k", "ran", 1.0, outputs={"table": outside})
    record = RunResults("net", "2026-01-01T00:00:00+00:00", "0.1", 0, {}, (stage,))
    page = html.page(record, folder)
    assert "hidden" not in page
    assert "is not inside the run folder" in page
    assert "is not in the run folder" in html.page(results(int8="quantize"), folder)


def test_an_old_table_without_layers_looked_at_shows_its_regions(draw):
    table = tuned()
    for row in table["layers"]:
        for key in ("region", "float_us", "int8_us", "alone_int8", "alone_float"):
            row.pop(key, None)
    del table["recovery"]
    page, _ = draw(table)
    assert "<summary>5 layers" in page
    assert "33.3" in Page(page).row("node_conv_4")
    assert "Accuracy recovery" not in page


def test_a_plain_table_shows_its_operators_and_ranges(draw):
    table = {key: tuned()[key] for key in ("schema", "target", "sqnr", "agreement", "held_out")}
    rows = [{"name": "a", "op": "Conv", "form": "int8", "weight_bits": 7, "low": 0.0, "high": 7.5,
             "reason": ""}, {"name": "b", "op": "Conv", "form": "float", "weight_bits": None,
             "low": None, "high": None, "reason": "excluded"}]  # fmt: skip
    page, summary = draw({**table, "layers": rows})
    assert Page(page).row("a Conv") == "a Conv int8 7 0 7.5"
    assert Page(page).row("b Conv") == "b Conv float – – – excluded"
    assert "1 of 2 operators in int8; SQNR 31.2 dB, top-1 agreement 99.80 % on 51" in page
    assert page.count("<svg") == 0
    assert "most sensitive" not in summary


def test_what_was_not_looked_at_is_a_dash_and_not_in_the_noise(draw):
    table = tuned()
    for row in table["layers"][:5]:
        row["alone_int8"] = row["alone_float"] = None
    page, summary = draw(table)
    assert Page(page).row("node_conv_3").split()[3:] == ["–"] * 4 + ["10.0", "30.0"]
    assert "the 1 most sensitive of 6 layers" in summary


def test_a_rung_may_give_whole_qualities():
    rung = quantized.Rung.model_validate(
        {"name": "adaround", "before": quality(20.0), "after": None, "outcome": "skipped: budget"}
    )
    assert (rung.name, rung.before, rung.after, rung.unit) == ("adaround", 20.0, None, "dB")
    assert rung.note == "skipped: budget"
    judged = quantized.Rung.model_validate({"rung": "x", "before": quality(20.0, drop=0.5)})
    assert (judged.before, judged.unit) == (0.5, "points")


def test_other_tables_are_shown_as_they_are(draw):
    value = {"kept": 3, "best": None, "steps": [{"width": 8, "loss": 0.123456, "ok": True},
                                                {"width": 6, "note": EVIL}]}  # fmt: skip
    page, summary = draw(value, uses="mine")
    found = Page(page)
    assert "<h2>Tables</h2>" in page
    assert "Quantization" not in page
    assert "8 0.1235 yes –" in found.row("0.1235")
    assert "img" not in found.tags
    assert found.row("kept") == "kept 3"
    assert draw([{"a": i} for i in range(300)], uses="mine")[0].count("<td") < 300
    assert "100 more in tables/int8.json" in draw([{"a": 1}] * 300, uses="mine")[0]
    assert "steps" not in summary


@pytest.mark.parametrize("value", [[], {}, 3, "text", None, [1, 2], [[1], [2]], {"a": {"b": [1]}}])
def test_any_json_is_shown(draw, value):
    assert "<h2>Machine</h2>" in draw(value, uses="mine")[0]


def test_the_same_table_gives_the_same_page(draw):
    assert draw(tuned(30)) == draw(tuned(30))


def test_tables_are_drawn_where_torch_is_not(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "int8.json").write_text(json.dumps(tuned()))
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, onnxruntime=None)\n"
        "from pathlib import Path; from tests.report.test_tables import results\n"
        "from compressor import report; report.write(Path(sys.argv[1]), results(int8='quantize'))"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert "node_conv_5" in (tmp_path / "report.html").read_text()
    assert "node_conv_5" in (tmp_path / "summary.md").read_text()


def test_the_noise_of_one_layer_follows_from_its_worst_output():
    row = quantized.Row.model_validate(layer("a", 20.0))
    assert row.sqnr == 20.0
    assert row.noise == pytest.approx(0.01)
    assert quantized.Row(name="b").noise == 0.0


@pytest.mark.parametrize(
    ("name", "word"),
    [("/features/features.3/conv/conv.0/conv.0.0/Conv", "features.3/conv.0.0/Conv"),
     ("/layer1/layer1.0/conv1/Conv", "layer1.0/conv1/Conv"), ("node_conv2d_3", "node_conv2d_3"),
     ("/conv1/Conv", "conv1/Conv"), ("/a/b/Conv", "a/b/Conv"), ("/", "/"), ("", "")],
)  # fmt: skip
def test_paths_are_shortened_where_they_repeat_themselves(name, word):
    assert plots.short(name) == word


def test_long_lists_of_names_are_cut_short():
    assert quantized.shortened(["a", "b"]) == "a, b"
    assert quantized.shortened(list("abcde")) == "a, b, c, d, e"
    assert quantized.shortened(list("abcdef")) == "a, b, c, d and 2 more"
    assert len(tables.sections(results(int8="quantize"), None)) == 0
