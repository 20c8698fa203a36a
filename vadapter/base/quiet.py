"""Keeping other libraries' chatter out of the log."""

import contextlib
import logging
from collections.abc import Iterator


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
