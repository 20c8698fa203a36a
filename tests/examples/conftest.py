"""The modules of examples/open, for its tests."""

import importlib
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "open"


@pytest.fixture
def example(monkeypatch):
    """Imports a module of the example; those that it imports itself are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for file in EXAMPLE.glob("*.py"):
        monkeypatch.setitem(sys.modules, file.stem, None)  # so that the entry is put back at the end
        del sys.modules[file.stem]
    return importlib.import_module
