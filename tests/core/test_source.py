import ast
import sys
import textwrap
from pathlib import Path

import pytest

from compressor.core import source, syntax


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
    monkeypatch.setattr(source.syntax, "outline", None)  # nothing is parsed a second time
    assert source.behind(["userpkg.nets:net"], memo) == plain


def _walked(data: bytes, name: str, is_package: bool) -> tuple[str, set[str]]:
    """The same by the standard library, one walk for each: what the digest promises."""
    tree, names = ast.parse(data), set()
    for node in ast.walk(tree):
        names.update(syntax._imported(node, name, is_package))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = syntax._undocumented(node.body)
    complete = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **complete), names


FILES = sorted(Path(source.__file__).parents[1].rglob("*.py"))[::5]


@pytest.mark.parametrize("file", [*FILES, Path(ast.__file__)], ids=lambda f: f.stem)
def test_one_walk_gives_what_the_standard_library_gives_in_three(file):
    data = file.read_bytes()
    for is_package in (True, False):
        text, names = syntax.outline(data, str(file), "compressor.core.x", is_package)
        wanted, all_names = _walked(data, "compressor.core.x", is_package)
        assert text == wanted
        assert names == sorted(all_names)


EDITS = [
    ("x = 1", "x = 2"), ("x = 1", "x = 1.0"), ("x = 'a'", "x = b'a'"), ("x = None", "x = 0"),
    ("x: int = 1", "x: float = 1"), ("assert x", "assert y"), ("f(a=1)", "f(b=1)"),
    ("def f(a, b=1): pass", "def f(a, *, b=1): pass"), ("if 0: a()", "if 0: b()"),
    ("import a", "import a as b"), ("from . import a", "from .. import a"),
    ("def f(): 'words'; return 1", "def f(): 'words'; return 2"), ("[1, 2]", "[2, 1]"),
    ("async def f(): pass", "def f(): pass"), ("x = u'a'", "x = 'a'"), ("f'{a}'", "f'{a!r}'"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), EDITS)
def test_every_edit_of_code_is_seen(before, after):
    one, two = (syntax.outline(text.encode(), "f", "pkg.mod", False) for text in (before, after))
    assert one[0] != two[0]
