"""Gin files of others: they set values, and do nothing else."""

import os
import sys

import pytest

from vadapter.base.errors import UserError
from vadapter.cli import modules
from vadapter.recipes import gin_files, gin_front


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a module that leaves a trace when it is run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(gin_files, "_imports", set())
    (tmp_path / "trap_of_a_test.py").write_text("open('sprung', 'w').close()\n")
    yield tmp_path
    sys.modules.pop("trap_of_a_test", None)


def refused(*files, bindings=()):
    with pytest.raises(UserError) as caught:
        gin_front.parse_gin(files, bindings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


IMPORTS = (
    "import trap_of_a_test",
    "import trap_of_a_test as harmless",
    "from trap_of_a_test import x",
    "A = 1\nimport trap_of_a_test\nB = ((",
    "from __gin__ import dynamic_registration\nimport os\nA = @os.system()\nos.system.command = 'touch sprung'",
)


@pytest.mark.parametrize("text", IMPORTS)
@pytest.mark.parametrize("how", ["file", "config.gin", "include", "flag"])
def test_a_gin_file_runs_no_module(folder, text, how):
    (folder / "evil.gin").write_text(text)
    (folder / "config.gin").write_text(text)
    (folder / "other.gin").write_text("include 'evil.gin'")
    file = {"file": "evil.gin", "config.gin": "config.gin", "include": "other.gin"}.get(how)
    message = refused(file) if file else refused(bindings=[f"A=1\n{text}"])
    assert "line" in message and ("--module=trap_of_a_test" in message or "dynamic_registration" in message)
    assert not (folder / "sprung").exists()


def test_an_import_of_what_a_module_flag_names_is_no_error(folder):
    (folder / "mine.gin").write_text("import trap_of_a_test\n")
    modules.import_modules(["trap_of_a_test"])
    gin_front.parse_gin(["mine.gin"])
    (folder / "evil.gin").write_text("import trap_of_a_test\nfrom __gin__ import dynamic_registration\n")
    assert "dynamic_registration" in refused("evil.gin")


def test_includes_have_an_end(folder):
    (folder / "a.gin").write_text("include 'b.gin'")
    (folder / "b.gin").write_text("include 'a.gin'")
    assert "b.gin -> a.gin" in refused("a.gin")
    for i in range(30):  # two to the power of thirty files
        (folder / f"{i}.gin").write_text(f"include '{i + 1}.gin'\ninclude '{i + 1}.gin'\n")
    (folder / "30.gin").write_text("A = 1")
    assert "include" in refused("0.gin")


def test_odd_gin_files_are_explained(folder):
    os.mkfifo(folder / "pipe.gin")
    (folder / "include.gin").write_text("include 'pipe.gin'")
    (folder / "latin.gin").write_bytes(b"A = '\xff'")
    (folder / "deep.gin").write_text(f"A = {'[' * 3000}{']' * 3000}")
    assert "FIFO" in refused("pipe.gin") and "FIFO" in refused("include.gin")
    assert "UTF-8" in refused("latin.gin")
    assert "too deeply" in refused("deep.gin")
