"""Names of files and folders: local paths, and addresses such as gs://bucket/run."""

import os


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address, not one of the local file system."""
    return "://" in os.fspath(path)


def absolute(path: str) -> str:
    """Returns a local path from the root on, `~` being the home folder; an address as it is."""
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def relative(path: str, folder: str) -> str:
    """Returns a path as files in `folder` name it: relative if both are local, so that they can be moved together."""
    return path if is_remote(path) or is_remote(folder) else os.path.relpath(path, folder)


def resolve(path: str, folder: str) -> str:
    """Returns what `relative` was given: the whole of a path as files in `folder` name it."""
    whole = path if is_remote(path) else os.path.join(folder, path)
    return whole if is_remote(whole) else os.path.normpath(whole)
