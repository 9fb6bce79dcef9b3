"""Records of another version, of another kind, or damaged."""

import pytest

from compressor.core import results
from compressor.core.errors import IntegrityError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema": 9}', "schema 9, this version reads 1"),
        ('{"schema": 1, "name": 3}', "not a results file (name: got 3; needs text)"),
        ('{"schema": 1}', "not a results file (name is missing)"),
        ('{"schema": 1, "na', "not a results file (not JSON)"),
        ("[]", "not a results file"),
        ("", "not a results file (not JSON)"),
    ],
)
def test_a_record_that_cannot_be_read_says_why_in_our_words(tmp_path, text, said):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(IntegrityError) as caught:
        results.load(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'results.json'}: ")
    assert said in str(caught.value)
    assert "Input should" not in str(caught.value)


def test_a_folder_without_a_record_is_no_run(tmp_path):
    with pytest.raises(IntegrityError, match="no results here; give a run folder"):
        results.load(tmp_path)
