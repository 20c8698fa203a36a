"""The commands and the modules that the pages show are accepted as they are printed."""

import re
import shlex

import pytest

from tests.docs import workspace
from vadapter.cli.main import main

PAGES = ("README.md", "CONTRIBUTING.md", "docs/howto.md", "docs/gin.md", "docs/real_weights.md", "docs/tpu.md")
MODULES = ("my_adapter", "my_text", "my_metric")


def commands(page: str) -> list[list[str]]:
    """The `vadapter train` commands of a page, whose lines may end in a backslash."""
    text = re.sub(r"\\\n\s*", "", (workspace.ROOT / page).read_text())
    lines = re.findall(r"^    (vadapter train .*)$", text, re.MULTILINE)
    return [shlex.split(line)[1:] for line in lines if "..." not in line]


def modules(page: str) -> dict[str, str]:
    """The modules of a page's code blocks, whose first lines name their files."""
    return dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```", (workspace.ROOT / page).read_text(), re.M | re.S))


@pytest.mark.parametrize("page", PAGES)
def test_the_settings_of_each_train_command_are_known(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, code in modules("docs/howto.md").items():
        (tmp_path / f"{name}.py").write_text(code)
    for command in commands(page):
        if any("weights/" in part and part.endswith(".gin") for part in command):
            continue  # a file that an import writes
        assert main([*command, "--print_config"]) == 0, (command, capsys.readouterr().err)


@pytest.mark.parametrize("page", ["docs/howto.md", "CONTRIBUTING.md"])
def test_each_module_of_the_page_imports_in_a_process_of_its_own(page, tmp_path):
    found = modules(page)
    assert len(found) >= 5
    for name, code in found.items():
        (tmp_path / f"{name}.py").write_text(code)
    out = workspace.run("\n".join(f"import {name}; print({name!r})" for name in found), tmp_path)
    assert out.split() == list(found)


def test_the_settings_of_the_how_to_page_are_known(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, code in modules("docs/howto.md").items():
        (tmp_path / f"{name}.py").write_text(code)
    text = re.sub(r"^```.*?^```", "", (workspace.ROOT / "docs" / "howto.md").read_text(), flags=re.M | re.S)
    lines = re.findall(r"^    ([\w/]+(?:\.\w+)? = .*)$", text, re.MULTILINE)
    assert len(lines) > 15
    (tmp_path / "mine.gin").write_text(
        "\n".join(['include "experiments/own_stage2.gin"', *lines, "jsonl_task.captions = @Headline()"])
    )
    given = [f"--module={name}" for name in MODULES]
    assert main(["train", *given, "--gin_file=mine.gin", "--print_config"]) == 0, capsys.readouterr().err
