from pathlib import Path

import pytest

from vadapter.base import resources
from vadapter.base.errors import UserError


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A stand-in for the installed package, at `<tmp>/site/vadapter`."""
    package = tmp_path / "site" / "vadapter"
    package.mkdir(parents=True)
    monkeypatch.setattr(resources.resources, "files", lambda _: package)
    return package


@pytest.mark.parametrize("name", ["gin", "data"])
def test_both_folders_are_found(name):
    folder = resources.folder(name)
    assert folder.is_dir()
    assert not (folder / "__init__.py").exists()  # it would hide gin-config


def test_the_wheels_copy_comes_before_the_checkouts(package):
    checkout = package.parent / "gin"
    checkout.mkdir()
    assert resources.folder("gin") == checkout
    (package / "_shipped" / "gin").mkdir(parents=True)
    assert resources.folder("gin") == package / "_shipped" / "gin"


def test_a_broken_installation_says_what_to_do(package):
    with pytest.raises(UserError, match="Install vadapter again"):
        resources.folder("data")
