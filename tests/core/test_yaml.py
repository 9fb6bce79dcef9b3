import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.core import yaml
from compressor.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("60_000", 60000),
        ("-2", -2),
        (".5", 0.5),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("12:30", "12:30"),
        ("0o17", "0o17"),
        ("10m", "10m"),
        ("~", None),
        ("'4'", "4"),
        ("2026-01-01", "2026-01-01"),
        ("", None),
    ],
)
def test_scalars_are_what_yaml_1_2_says(text, value):
    got = yaml.load_text(f"a: {text}").value["a"]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a: 1\na: 2", "duplicate key 'a'"),
        ("a: {b: 1, b: 1}", "duplicate key 'b'"),
        ("a: !!python/object/apply:os.system [ls]", "not allowed"),
        ("a: !mine x", "not allowed"),
        ("a: .inf", "not a finite number"),
        ("a: .nan", "not a finite number"),
        ("<<: {a: 1}", "merge keys"),
        ("? [a]\n: 1", "plain word"),
        ("a: [", "not YAML"),
        ("a: b: c", "not YAML"),
        ("&a [*a]", "too many values"),
    ],
)
def test_what_is_ambiguous_or_dangerous_is_refused_with_its_line(text, word):
    with pytest.raises(ConfigError, match=word) as caught:
        yaml.load_text("x: 0\n" + text if not text.startswith(("&", "?")) else text, "f.yaml")
    assert "f.yaml" in str(caught.value)


def test_an_alias_bomb_is_refused_before_it_expands():
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="alias bomb"):
        yaml.load_text("\n".join(rows))


def test_an_alias_used_modestly_is_a_copy():
    got = yaml.load_text("a: &x {k: 1}\nb: *x").value
    assert got == {"a": {"k": 1}, "b": {"k": 1}}


def test_a_file_over_a_megabyte_is_refused(tmp_path):
    path = tmp_path / "big.yaml"
    path.write_text("#" * (yaml.MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="at most"):
        yaml.load_file(path)


def test_deep_nesting_is_an_error_and_not_a_crash():
    with pytest.raises(ConfigError):
        yaml.load_text("[" * 5000 + "]" * 5000)


def test_missing_folder_and_binary_files_have_sentences(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        yaml.load_file(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="a folder"):
        yaml.load_file(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        yaml.load_file(tmp_path / "b.yaml")


def test_a_problem_is_located_at_its_nearest_known_line():
    document = yaml.load_text("a:\n  b:\n    c: 1\n", "f.yaml")
    assert document.locate(("a", "b", "c")) == "f.yaml:3: a.b.c"
    assert document.locate(("a", "b", "missing", "x")) == "f.yaml:2: a.b.missing.x"


_plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text("ab:#-'\" \n", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), _plain, max_size=3))
def test_what_is_dumped_reads_back_equal(value):
    assert yaml.load_text(yaml.dump(value)).value == value


def test_a_tab_is_told_what_to_use_instead():
    with pytest.raises(ConfigError, match=r"t\.yaml:2: not YAML: .*; indent with spaces"):
        yaml.load_text("a:\n\tb: 1\n", "t.yaml")
