"""Objects by their names in a user's code, and every way in which they are not there."""

import hashlib
import sys

import pytest

from flatminima.own.objects import load_object
from flatminima.own.sources import source_digest


@pytest.fixture(autouse=True)
def code(tmp_path, monkeypatch):
    """A folder of a user's code as the current one; its modules are forgotten afterwards."""
    (tmp_path / "mine.py").write_text("def build(): return 1\nclass Makers:\n    first = build\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit('give arguments')\n")
    (tmp_path / "unwritten.py").write_text("def build(:\n")
    (tmp_path / "needy.py").write_text("import need\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.py").write_text("def build(): return 2\n")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("")
    (tmp_path / "pack/inner.py").write_text("def build(): return 3\n")
    (tmp_path / "json.py").write_text("def build(): return 4\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mine:build", 1),
        ("mine:Makers.first", 1),
        ("mine.py:build", 1),
        ("./mine.py:build", 1),
        ("other/mine.py:build", 2),
        ("pack.inner:build", 3),
        ("pack/inner.py:build", 3),
        ("json.py:build", 4),
    ],
)
def test_modules_and_files_are_found_from_the_current_folder(name, value):
    assert load_object(name, "--model")() == value


@pytest.mark.parametrize("order", [1, -1])
def test_two_files_of_one_name_are_two_modules(order):
    names = ["mine.py:build", "other/mine.py:build"][::order]
    values = {name: load_object(name, "--model")() for name in [*names, *names]}
    assert values == {"mine.py:build": 1, "other/mine.py:build": 2}
    assert source_digest(names[0]) != source_digest(names[1])


def test_a_file_is_not_the_standard_module_of_its_name():
    import json

    assert load_object("json.py:build", "--model")() == 4
    assert sys.modules["json"] is json
    assert load_object("json:dumps", "--model") is json.dumps


def test_the_digest_is_that_of_the_file(code):
    for name, file in (("mine:build", "mine.py"), ("other/mine.py:build", "other/mine.py")):
        load_object(name, "--model")
        assert source_digest(name) == hashlib.sha256((code / file).read_bytes()).hexdigest()
    load_object("sys:path", "--model")
    assert source_digest("sys:path") == ""


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("mine", "expected --model as module:name or file.py:name, got 'mine'"),
        ("mine:", "got 'mine:'; for a function build in net.py write net:build"),
        (":build", "got ':build'"),
        ("", "got ''"),
        ("mime:build", "expected the module 'mime' for --model, got none in"),
        ("mine/build:x", "expected the module 'mine/build'"),
        ("pack.outer:build", "expected the module 'pack.outer'"),
        ("mime.py:build", "expected the file mime.py for --model, got none; check the path"),
        ("mine:biuld", "got no 'biuld' in mine; did you mean 'build'?"),
        ("mine:zzz", "got no 'zzz' in mine; check the name"),
        ("mine:Makers.firts", "did you mean 'first'?"),
        ("json.py:build.x", "got no 'x' in json.py"),
        ("sys:maxsize.x", "got no 'x' in sys"),
        ("broken:build", "got ZeroDivisionError from it (division by zero)"),
        ("broken.py:build", "got ZeroDivisionError from it (division by zero)"),
        ("script:build", "got SystemExit from it (give arguments); run it by itself"),
        ("unwritten:build", "got SyntaxError from it"),
        ("needy:build", "got no module 'need', which it needs; install it"),
        (".mine:build", "got TypeError"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(name, complaint):
    for _ in range(2):  # a module that failed is not there the second time either
        with pytest.raises(ValueError) as caught:
            load_object(name, "--model")
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)
