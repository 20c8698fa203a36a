"""Folders that appear when they are complete."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vadapter.base.errors import UserError


@contextlib.contextmanager
def appearing(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a folder to write into, which gets its name at the end; after an error nothing is left.

    Args:
        out: the name; there must be nothing, or an empty folder.

    Raises:
        UserError: there is something at `out`, or the folder cannot be made there.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{out} is there already. Remove it, or export to another folder.")
    partial = folder.with_name(f".{folder.name}.partial.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
