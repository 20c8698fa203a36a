"""`--module`: a user's own Python module, in the working directory, makes a configuration known to gin."""

import sys

import pytest

from vadapter.cli.main import main

ADAPTER = """
import dataclasses

from vadapter.recipes import gin_front as config


@dataclasses.dataclass(frozen=True)
class {name}:
    '''An adapter of one's own.

    Attributes:
        width: channels inside.
    '''

    width: int = 8


config.register({name})
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    for name in ("my_package", "my_package.my_adapter", "my_other"):
        sys.modules.pop(name, None)


def write(folder, name="MyAdapterConfig", file="my_package/my_adapter.py", text=ADAPTER):
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format(name=name))


def show(*modules: str) -> int:
    given = ["--gin.ADAPTER=@MyAdapterConfig()", "--gin.MyAdapterConfig.width=16", "--print_config"]
    return main(["train", *(f"--module={name}" for name in modules), "--gin_file=experiments/own_stage2.gin", *given])


def test_a_module_of_the_working_directory_registers_an_adapter(folder, capsys):
    assert show() == 2
    assert "no configurable called MyAdapterConfig" in capsys.readouterr().err
    write(folder)
    write(folder, text="imported = True", file="my_other.py")
    assert show("my_other", "my_package.my_adapter") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "ADAPTER = @MyAdapterConfig() --gin.ADAPTER" in out
    assert "MyAdapterConfig.width = 16 --gin.MyAdapterConfig.width channels inside" in out


def test_every_command_imports_modules(folder, capsys):
    write(folder, text="raise ValueError('too early')", file="my_other.py")
    for command in ("infer --model_dir=x --media=y", "export --checkpoint=x --out=y", "eval --model_dir=x", "report x"):
        assert main([*command.split(), "--module=my_other"]) == 2
        assert "too early" in capsys.readouterr().err


def test_a_module_that_is_not_there_is_named_with_the_places(folder, capsys):
    for name, missing in (("my_adaptr", "my_adaptr"), ("my_package.my_adaptr", "my_package")):
        assert main(["report", "x", f"--module={name}"]) == 2
        error = capsys.readouterr().err
        assert f"no module {missing} was found in the working directory" in error and str(folder) in error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("x = 1\ny = x / 0", "ZeroDivisionError: division by zero"),
        ("x = (", "SyntaxError"),
    ],
)
def test_a_module_that_does_not_import_says_what_failed(folder, capsys, text, said):
    write(folder, text=text, file="my_other.py")
    assert main(["report", "x", "--module=my_other"]) == 2
    error = capsys.readouterr().err
    assert "--module=my_other does not import" in error and said in error
    assert ("my_other.py, line 2" in error) == ("/ 0" in text)


def test_a_name_that_is_taken_is_refused(folder, capsys):
    from vadapter.recipes import experiments

    experiments.register()
    write(folder, "OptimizerConfig", "my_other.py")
    assert main(["report", "x", "--module=my_other"]) == 2
    assert "OptimizerConfig in gin is wanted for my_other" in " ".join(capsys.readouterr().err.split())
