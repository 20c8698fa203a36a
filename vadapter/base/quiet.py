"""Keeping other libraries' chatter out of the log."""

import contextlib
import importlib.machinery
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

_NOTES = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|I\d{4} [\d:.]+ +\d+ \S+\] |To enable the following"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences warnings of absl's logger.

    Orbax warns that a folder that is only read is only read, and of handlers and files that it does not find; TFDS of
    each configuration that is not in a class's list, and of its own use of deprecated attributes.
    """
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Quietly(importlib.machinery.PathFinder):
    """Finds one package, and holds back the notes of its C++ parts while it is imported for the first time."""

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:  # pyright: ignore
        if fullname != self.name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                with _notes_held_back():
                    run(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def import_quietly(name: str) -> None:
    """Lets a package be imported later without what it tells of itself on stderr, such as TensorFlow of GPUs.

    Its log levels do not reach these lines, which are written before they are read. Warnings and errors stay.
    """
    if name not in sys.modules and not any(isinstance(x, _Quietly) and x.name == name for x in sys.meta_path):
        sys.meta_path.insert(0, _Quietly(name))


@contextlib.contextmanager
def _notes_held_back() -> Iterator[None]:
    sys.stderr.flush()
    former = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(former, 2)
            os.close(former)
            said.seek(0)
            for line in said:
                if not _NOTES.match(line):
                    os.write(2, line)
