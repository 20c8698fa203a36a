"""The folder of a run, before anything is written into it: whether it can be one."""

import errno
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from vadapter.base import buckets, local_files, storage_errors
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote

# What a run writes there, each a regular file.
_FILES = ("run.lock", "config.gin", "operative_config.gin", "model.json", "environment.json", "model-info.txt")
_FILES += ("curve.jsonl", "done.json", "best.json", "bad_batches.jsonl", "waiting.txt", "handoff.json")


def check(folder: Any, what: str = "MODEL_DIR") -> None:
    """Says at once what is wrong with a folder that will be written to. Makes and writes nothing.

    Args:
        folder: a path on a disk, there or not, or an address of a bucket.
        what: how the user calls it.

    Raises:
        UserError: it is no path, something else has its name or that of a file of a run, or it may not be written to.
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
    for name in _FILES if os.path.isdir(folder) else ():
        try:
            local_files.check(os.path.join(folder, name))
        except local_files.NotAFile as e:  # a FIFO would be waited for
            raise UserError(f"{what} is {folder!r}, where a run keeps a file of that name: {e}. Remove it.") from e
        except OSError:  # it is not there
            continue


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


def check_store(folder: str) -> None:
    """Tries what a checkpoint asks of a file system: a folder can be renamed, and is listed by its new name at once.

    Buckets that are mounted as folders often can do neither. What is tried is removed again.

    Args:
        folder: is there, and may be written to. Of a bucket's address nothing is tried: there checkpoints need neither.

    Raises:
        UserError: the file system cannot do it.
        OSError: the disk is full or in trouble.
    """
    if is_remote(folder):
        return
    place, number = Path(folder), uuid.uuid4().hex[:8]
    before, after = place / f"try-{number}.partial", place / f"tried-{number}.partial"
    try:
        before.mkdir()
        (before / "file").write_bytes(b"tried")
        before.rename(after)
        listed = set(os.listdir(place))
        why = "" if after.name in listed and before.name not in listed else "it lists files late"
        if (after / "file").read_bytes() != b"tried":
            why = "it gives other bytes than were written"
    except OSError as e:
        if storage_errors.reason(e) and e.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        why = f"renaming a folder fails: {e.strerror or e}"
    finally:
        shutil.rmtree(before, ignore_errors=True)
        shutil.rmtree(after, ignore_errors=True)
    if why:
        raise UserError(
            f"MODEL_DIR is {folder!r}, whose file system cannot hold checkpoints ({why}). Expected a disk, or a "
            "network file system that renames folders and shows at once what was written. Give a MODEL_DIR on such a "
            "one; of a bucket that is mounted there give the address, such as gs://bucket/run."
        )


def _nearest(folder: str) -> Path:
    """The folder itself, or what is there of the way to it."""
    path = Path(os.path.abspath(folder))
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
