"""Text of others, such as names in a user's files, as it may be printed."""

import logging
import re

# Control characters but for tab and newline, and halves of surrogate pairs, which stand for bytes that are no UTF-8.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Returns the text with control characters as Python writes them, such as `\x1b`: a terminal would obey them."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_printable() -> None:
    """Writes the log to stderr as `logging.basicConfig` does, printable. A log that is set up already stays."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(logging.BASIC_FORMAT))
    logging.basicConfig(handlers=[handler])
