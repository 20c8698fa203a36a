"""A user's own modules, named by `--module`: importing them makes their parts known."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from vadapter.base.errors import UserError


def add_module_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--module`, which may be repeated."""
    parser.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="NAME",
        help="import this Python module first, from the working directory too: it registers parts of your own, "
        "such as an adapter; may be repeated",
    )


def import_modules(names: Sequence[str]) -> None:
    """Imports modules by their dotted names, from the working directory or where Python finds modules.

    Raises:
        UserError: one is not found or does not import. What it raises as a UserError stays as it is.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    for name in names:
        try:
            importlib.import_module(name)
        except UserError:
            raise
        except Exception as error:
            raise UserError(_reason(name, error)) from error
    if names:
        from vadapter.recipes import gin_files

        gin_files.allow_imports(names)


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        places = ", ".join(path for path in sys.path if os.path.isdir(path))
        return (
            f"--module={name}: no module {error.name} was found in the working directory or in any of: {places}. "
            "Expected the dotted name of a module, such as my_package.my_adapter for my_package/my_adapter.py. "
            "Correct the name, or add its folder to PYTHONPATH."
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"--module={name} does not import: {type(error).__name__}: {error} ({last.filename}, line {last.lineno}). "
        "Correct that; --debug shows where it comes from."
    )
