import sys
import textwrap

import pytest

from compressor.core import source


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A user's package of three modules; ``write`` changes one of them."""
    root = tmp_path / "userpkg"
    root.mkdir()

    def write(name, text):
        (root / name).write_text(textwrap.dedent(text))
        source._file_of.cache_clear()
        source._read.cache_clear()
        return source.behind(["userpkg.nets:net"])

    monkeypatch.syspath_prepend(tmp_path)
    write("__init__.py", "")
    write("blocks.py", "import numpy\ndef block(): return 1\n")
    write("unused.py", "x = 1\n")
    write("nets.py", "def net():\n    from .blocks import block\n    return block()\n")
    return write


def test_imports_inside_functions_are_followed_and_nothing_is_executed(package):
    package("blocks.py", "import numpy\nraise SystemExit('executed')\n")
    code = package("unused.py", "x = 1\n")
    assert set(code.modules) == {"userpkg", "userpkg.nets", "userpkg.blocks"}
    assert code.libraries == {"numpy"}
    assert "userpkg" not in sys.modules


def test_a_changed_import_changes_the_digest_and_an_unused_module_does_not(package):
    before = package("unused.py", "x = 1\n")
    assert package("unused.py", "x = 2\n") == before
    after = package("blocks.py", "import numpy\ndef block(): return 2\n")
    changed = {m for m in after.modules if after.modules[m] != before.modules[m]}
    assert changed == {"userpkg.blocks"}


def test_comments_docstrings_and_layout_do_not_count(package):
    before = package("blocks.py", "import numpy\ndef block(): return 1\n")
    text = '"""Words."""\nimport numpy\n\n\ndef block():  # why\n    """More."""\n    return 1\n'
    assert package("blocks.py", text).modules == before.modules


def test_a_docstring_that_is_data_counts(package):
    before = package("blocks.py", "import numpy\nTEXT = 'a'\n")
    assert package("blocks.py", "import numpy\nTEXT = 'b'\n").modules != before.modules


def test_a_single_file_module_brings_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lonely_net.py").write_text("import lonely_help\n")
    (tmp_path / "lonely_help.py").write_text("import json\n")
    source._file_of.cache_clear()
    code = source.behind(["lonely_net:net"])
    assert set(code.modules) == {"lonely_net", "lonely_help"}


def test_the_frame_is_not_part_of_a_stage():
    code = source.behind(["compressor.stages.data:DATA"])
    assert "compressor.stages.data" in code.modules
    assert not [m for m in code.modules if m.startswith(("compressor.core", "compressor.api"))]


def test_a_memo_changes_nothing_but_the_work(package, monkeypatch):
    plain = package("unused.py", "x = 1\n")
    memo = {}
    assert source.behind(["userpkg.nets:net"], memo) == plain
    monkeypatch.setattr(source, "_strip_docstrings_", None)  # nothing is parsed a second time
    assert source.behind(["userpkg.nets:net"], memo) == plain
