"""The wheel: built without network from a copy of the checkout, then used outside of it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("build")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md")
FOLDERS = ("vadapter", "gin", "data")
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")


def relative_files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel made through the source distribution, as `python -m build` does by default."""
    tmp = tmp_path_factory.mktemp("packaging")
    source, out = tmp / "source", tmp / "dist"
    source.mkdir()
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=IGNORED)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(out.glob("*.whl"))


@pytest.mark.parametrize("folder", ["gin", "data"])
def test_the_wheel_carries_every_shipped_file(wheel, folder):
    expected = {f"vadapter/_shipped/{folder}/{name}" for name in relative_files(ROOT / folder)}
    assert expected, f"{folder}/ has no files"
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_carries_the_whole_package_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {f"vadapter/{name}" for name in relative_files(ROOT / "vadapter")} <= names
    assert {name.split("/")[0] for name in names} == {"vadapter"}


def test_the_wheel_works_outside_the_checkout(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    zipfile.ZipFile(wheel).extractall(site)
    empty.mkdir()
    code = (
        "import gin; from vadapter.base import resources as r; gin.clear_config(); "
        "print(r.folder('gin')); print(r.folder('data'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(site / "vadapter" / "_shipped" / name) for name in ("gin", "data")], done.stderr


def test_the_wheel_declares_the_command(wheel):
    archive = zipfile.ZipFile(wheel)
    entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
    assert "vadapter = vadapter.cli.main:main" in archive.read(entry_points).decode()
