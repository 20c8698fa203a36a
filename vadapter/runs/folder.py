"""The folder of a run, before anything is written into it: whether it can be one."""

import os
import shutil
from pathlib import Path
from typing import Any

from vadapter.base import buckets
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote


def check(folder: Any, what: str = "MODEL_DIR") -> None:
    """Says at once what is wrong with a folder that will be written to. Makes and writes nothing.

    Args:
        folder: a path on a disk, there or not, or an address of a bucket.
        what: how the user calls it.

    Raises:
        UserError: it is no path, something else has its name, or it may not be written to.
    """
    if not isinstance(folder, str | os.PathLike):
        raise UserError(f"{what} is {folder!r}; expected the path of a folder, in quotes. Change {what}.")
    folder = os.fspath(folder)
    if not folder.strip() or "\0" in folder:
        raise UserError(f"{what} is {folder!r}; expected the path of a folder, such as 'runs/first'. Change {what}.")
    if is_remote(folder):
        buckets.check(folder)
        return
    place = _nearest(folder)
    if not place.is_dir():
        found = "a link to nothing" if place.is_symlink() else "a file"
        raise UserError(f"{what} is {folder!r}; expected a folder, and {place} is {found}. Give another {what}.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"{what} is {folder!r}, and {place} cannot be written to by this user: its rights or its file system do "
            f"not allow it. Give another {what}, or change them."
        )


def check_room(folder: str, needed: int) -> None:
    """Raises `UserError` if a folder on a disk has not so many bytes left."""
    if is_remote(folder):
        return
    free = shutil.disk_usage(_nearest(folder)).free
    if free < needed:
        raise UserError(
            f"A checkpoint of this run takes about {_size(needed)}, and the disk of {folder} has {_size(free)} left. "
            "Make room there, or give a MODEL_DIR on another disk."
        )


def _nearest(folder: str) -> Path:
    """The folder itself, or what is there of the way to it."""
    path = Path(os.path.abspath(folder))
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
