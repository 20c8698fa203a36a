"""Keeping other libraries' chatter out of the log."""

import contextlib
from collections.abc import Iterator

import absl.logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences absl warnings: TFDS warns of each configuration that is not in a class's list, and of its own use of
    deprecated attributes."""
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(verbosity)
