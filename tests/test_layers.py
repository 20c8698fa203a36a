"""Imports go one way, and the slow or special libraries stay in their place. Read from the source, not imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "vadapter"
BASE = "base"
FRONT = "front"

# What each package may import from vadapter, besides itself.
ALLOWED = {
    BASE: set(),
    "partitioning": {BASE},
    "models": {BASE, "partitioning"},
    "weights": {BASE, "partitioning", "models"},
    "training": {BASE, "partitioning", "models"},
    "planning": {BASE, "partitioning", "models"},
    "generation": {BASE, "partitioning", "models"},
    "data": {BASE},
    "evaluation": {BASE, "partitioning", "models", "generation"},
    "reports": {BASE, "evaluation"},
    "benchmarks": {BASE, "data", "evaluation"},
    "sharing": {BASE, "partitioning", "models", "weights", "data"},
}
ALLOWED["runs"] = {*ALLOWED}
ALLOWED["recipes"] = {*ALLOWED}
ALLOWED["serving"] = {BASE, "data", "generation", "runs"}
ALLOWED["contrib"] = {*ALLOWED}
ALLOWED["cli"] = {*ALLOWED, FRONT} - {"contrib"}
ALLOWED[FRONT] = {*ALLOWED} - {"cli", "contrib", "recipes", "serving"}
# Libraries that only some packages may import, at any place in their code.
ONLY_IN = {
    "tensorflow": {"data", "benchmarks", "contrib"},
    "tensorflow_datasets": {"data", "benchmarks"},
    "tensorflow_text": {"data", "benchmarks"},
    "seqio": {"data", "benchmarks", "contrib"},
    "gin": {"recipes"},
    "argparse": {"cli", "contrib"},
    "torch": {"sharing"},
    "transformers": {"sharing"},
    "starlette": {"serving"},
    "uvicorn": {"serving"},
    "prometheus_client": {"serving"},
}

FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__main__.py")


def package_of(module: str) -> str:
    """The layer of a module: its sub-package; `vadapter/__init__.py`, the front door, is a layer of its own."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / parts[1]).is_dir() else FRONT


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, also inside functions. `from a import b` counts as a.b."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_there_are_files_of_every_layer():
    assert {package_of(module_name(path)) for path in FILES} <= ALLOWED.keys()
    assert {"models", "training", "evaluation", "data", "cli"} <= {package_of(module_name(path)) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_imports_go_one_way(path: Path):
    layer = package_of(module_name(path))
    used = {
        name: package_of(name)
        for name in imported(path)
        if name.startswith("vadapter.") and name != "vadapter.__version__"
    }
    wrong = {name for name, other in used.items() if other != layer and other not in ALLOWED[layer]}
    assert not wrong, f"{layer} may import {sorted(ALLOWED[layer])} only"


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path))
def test_special_libraries_stay_in_their_package(path: Path):
    layer = package_of(module_name(path))
    libraries = {name.split(".")[0] for name in imported(path)}
    assert not {name for name in libraries & ONLY_IN.keys() if layer not in ONLY_IN[name]}
