"""Text of others, such as names in a user's files, as it may be printed."""

import contextlib
import copy
import logging
import os
import re
import sys

# Control characters but for tab and newline, and halves of surrogate pairs, which stand for bytes that are no UTF-8.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_ENDS = re.compile("[\n\u2028\u2029]")


def printable(text: str) -> str:
    r"""Returns the text with control characters as Python writes them, such as `\x1b`: a terminal would obey them."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def line(text: object) -> str:
    r"""Returns the text `printable` and on one line: what ends a line in it, as in a file's name, is written `\n`."""
    return _LINE_ENDS.sub(lambda found: ascii(found.group())[1:-1], printable(str(text)))


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        args = record.args
        if record.name == "root" and isinstance(args, tuple):  # of ours; what it is about is in the arguments
            record = copy.copy(record)
            record.args = tuple(line(x) if isinstance(x, str | os.PathLike | Exception) else x for x in args)
        return printable(super().format(record))


def log_printable() -> None:
    """Writes the log to stderr as `logging.basicConfig` does, printable. A log that is set up already stays."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(logging.BASIC_FORMAT))
    logging.basicConfig(handlers=[handler])


def print_anything() -> None:
    """Lets stdout take any text: what its encoding lacks, and bytes of names that are no UTF-8, is written escaped."""
    with contextlib.suppress(AttributeError, ValueError):  # a stream of another program, or a closed one
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
