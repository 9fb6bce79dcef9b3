from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pytest

from compressor import api
from compressor.core.errors import ConfigError
from compressor.quantization.plain import quantize
from compressor.runtime import metadata
from tests.helpers import compressor
from tests.quantization.graphs import images, put
from tests.quantization.test_tune import Priced, narrow


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compressor.quantization.tune.instruction_set", lambda: "x86")
    put(narrow(), tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=images(40))
    np.savez(tmp_path / "e.npz", x=images(40, seed=3), labels=np.zeros(40, np.int64))
    return tmp_path


@pytest.fixture
def priced(monkeypatch):
    timings = Priced(dear={"Conv_b"})
    monkeypatch.setattr("compressor.pipeline.timings.StoredTimings", lambda store: timings)
    return timings


def go(*words):
    return compressor("quantize", "m.onnx", "--calibration", "c.npz", "-o", "q.onnx", *words)


def test_the_default_measures_and_says_the_verdict_first(here, priced):
    outcome = go()
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("int8 is 1.67x [1.67, 1.67] the speed of fp32 on ")
    assert "measuring" in outcome.err
    assert metadata.read(here / "q.onnx")["compressor.placement"].startswith("int8 is 1.67x")
    assert sorted(p.name for p in here.iterdir()) == ["c.npz", "e.npz", "m.onnx", "q.onnx"]


def test_json_holds_the_table_and_nothing_else_is_printed(here, priced):
    outcome = go("--json")
    assert len(outcome.json["regions"]) == 5
    assert outcome.json["verdict"]
    assert outcome.err == ""


def test_no_placement_is_the_plain_path(here, priced):
    assert go("--placement", "none").code == 0
    quantize(here / "m.onnx", here / "plain.onnx", {"x": images(40)})
    assert (here / "q.onnx").read_bytes() == (here / "plain.onnx").read_bytes()
    assert priced.asked == 0


def test_what_is_not_timed_uses_all_threads(here, priced, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "compressor.quantization.plain.quantize",
        lambda *given: asked.append(given[3].threads) or quantize(*given),
    )
    monkeypatch.setattr("compressor.core.environment.usable_threads", lambda: 3)
    assert go("--placement", "none").code == 0
    assert asked == [3]


def test_a_killed_search_leaves_its_best_and_goes_on(here, priced, monkeypatch):
    real, calls = Priced.measure, []

    def killed(*words):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(words)
        return real(*words)

    monkeypatch.setattr(Priced, "measure", killed)
    assert go().code == 130
    assert not (here / "q.onnx").exists()
    best = here / "q.onnx.tune" / "best.onnx"
    assert onnxruntime.InferenceSession(str(best)).run(None, {"x": images(2)})[0].shape == (2, 5)
    assert json.loads((here / "q.onnx.tune" / "best.json").read_text())["speedup"] > 1.5
    monkeypatch.setattr(Priced, "measure", real)
    assert go().code == 0
    assert not (here / "q.onnx.tune").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--max-drop", "1"), 2, "--max-drop: needs --eval"),
        (("--placement", "none", "--budget", "9s"), 2, "--placement none has no use for --budget"),
        (("--scheme", "int8", "--device", "cuda"), 2, "cuda is for scheme fp16"),
        (("--max-drop", "1", "--eval", "c.npz"), 2, "c.npz: needs `labels`"),
        (("--max-drop", "1", "--eval", "e.npz", "--placement", "none"), 2, "cannot be held"),
        (("--budget", "soon"), 2, 'got "soon"; needs a time above 0 such as 90, 90s, 3m or 1h'),
        (("--budget", "0s"), 2, "needs a time above 0"),
        (("--target", "arm64", "--placement", "measured"), 6, "needs a machine with arm64"),
        (("--target", "arm64", "--min-sqnr", "9"), 2, "arm64 has no use for --min-sqnr: the place"),
        (("--target", "arm64", "--eval", "e.npz"), 2, "target arm64 has no use for --eval"),
        (("--min-sqnr", "nan"), 2, "--min-sqnr: got nan; needs a finite number"),
        (("--max-drop", "inf", "--eval", "e.npz"), 2, "--max-drop: got inf; needs a finite"),
    ],
)
def test_what_cannot_be_is_refused_with_its_exit_code(here, priced, words, code, said):
    outcome = go(*words)
    assert outcome.code == code
    assert said in outcome.err
    assert not (here / "q.onnx").exists()
    assert not (here / "q.onnx.tune").exists()


def test_a_foreign_target_is_written_unmeasured_and_says_so(here, priced):
    outcome = go("--target", "arm64")
    assert outcome.code == 0
    assert outcome.out.startswith("not measured on arm64; run `verify --choose` there")
    assert priced.asked == 0


def test_a_drop_is_judged_by_the_labels_given(here, priced):
    outcome = go("--json", "--max-drop", "100", "--eval", "e.npz")
    assert outcome.code == 0, outcome.err
    assert all(row["alone_int8"]["drop"] is not None for row in outcome.json["regions"])


# -- the other schemes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "more", "said"),
    [
        ("int4", (), "1 of 5 layers in 4 bits"),
        ("dynamic", ("--exclude", "Conv"), "1 of 5 layers in dynamic int8"),
        ("fp16", (), "all of it in fp16"),
    ],
)
def test_every_scheme_is_a_word_away(here, priced, scheme, more, said):
    outcome = go("--scheme", scheme, *more)
    assert outcome.code == 0, outcome.err
    assert f"wrote q.onnx: {said}" in outcome.out
    assert "on 40 samples" in outcome.out
    assert metadata.read(here / "q.onnx")["compressor.scheme"] == scheme
    assert priced.asked == 0
    assert not (here / "q.onnx.tune").exists()


@pytest.mark.parametrize("scheme", ["int4", "dynamic", "fp16"])
@pytest.mark.parametrize(
    "words",
    [("--placement", "measured"), ("--budget", "90s"), ("--min-sqnr", "20"),
     ("--max-drop", "1"), ("--eval", "e.npz"), ("--method", "mse")],
    ids=lambda words: words[0],
)  # fmt: skip
def test_an_option_that_a_scheme_would_ignore_is_refused_with_the_reason(here, scheme, words):
    outcome = go("--scheme", scheme, *words)
    assert outcome.code == 2
    assert f"scheme {scheme} has no use for {words[0]}: " in outcome.err
    assert f"leave {words[0]} out" in outcome.err
    assert not (here / "q.onnx").exists()


def test_options_of_another_scheme_are_named_all_at_once(here):
    outcome = go("--scheme", "fp16", "--exclude", "Conv", "--target", "arm64")
    assert outcome.code == 2
    assert "no use for --target, --exclude" in outcome.err or (
        "no use for --exclude, --target" in outcome.err
    )
    outcome = go("--scheme", "int4", "--target", "host")
    assert "no use for --target" in outcome.err


def test_from_python_an_unknown_option_or_scheme_is_named(here):
    with pytest.raises(ConfigError, match="treshold: unknown option"):
        api.quantize("m.onnx", "q.onnx", "c.npz", treshold=3)
    with pytest.raises(ConfigError, match="scheme: unknown 'int5'; did you mean 'int"):
        api.quantize("m.onnx", "q.onnx", "c.npz", scheme="int5")
