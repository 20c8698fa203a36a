"""Errors of the disk or the bucket that files are written to, in whatever wrapping libraries raise them."""

import errno
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vadapter.base.errors import UserError

# What a file system says when it takes no more, and what can be done.
_BY_NUMBER = {
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the quota of this user is used up",
    errno.EFBIG: "a file would be larger than this process may write",
    errno.EROFS: "the file system can only be read",
    errno.EIO: "the device reports an error",
    errno.EOPNOTSUPP: "the file system cannot do what was asked of it, such as to rename a folder",
    errno.ENOSYS: "the file system cannot do what was asked of it, such as to rename a folder",
    errno.ESTALE: "the network file system has lost the folder",
}
_BY_TEXT = (
    (re.compile(r"No space left on device"), _BY_NUMBER[errno.ENOSPC]),
    (re.compile(r"Disk quota exceeded"), _BY_NUMBER[errno.EDQUOT]),
    (re.compile(r"File too large"), _BY_NUMBER[errno.EFBIG]),
    (re.compile(r"Read-only file system"), _BY_NUMBER[errno.EROFS]),
    (re.compile(r"Input/output error"), _BY_NUMBER[errno.EIO]),
    (re.compile(r"Stale file handle"), _BY_NUMBER[errno.ESTALE]),
)


class StorageError(UserError):
    """Files cannot be written; the message says where the run stands and what to do."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and what it came from, each once: causes, contexts and the parts of groups."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def reason(error: BaseException | None) -> str | None:
    """Returns why files could not be written, such as "no space is left on the device"; None for other errors."""
    for one in chain(error):
        if isinstance(one, OSError) and one.errno in _BY_NUMBER:
            return _BY_NUMBER[one.errno]
        for pattern, text in _BY_TEXT:
            if not isinstance(one, UserError) and pattern.search(str(one)):
                return text
    return None


@contextmanager
def told_once() -> Iterator[None]:
    """Keeps threads of libraries from telling of such errors too, each with a traceback of its own.

    The error itself is raised where the thread is waited for. After it, results of TensorStore's other writes come to
    an event loop that Orbax has closed; nobody waits for them.
    """

    def is_other(record: logging.LogRecord) -> bool:
        about = record.exc_info[1] if record.exc_info else None
        return reason(about or Exception(record.getMessage())) is None

    def hook(args: Any) -> None:
        if reason(args.exc_value) is None:
            former(args)

    def unraisable(args: Any) -> None:
        late = isinstance(args.exc_value, RuntimeError) and str(args.exc_value) == "Event loop is closed"
        if not late and reason(args.exc_value) is None:
            former_unraisable(args)

    former, former_unraisable = threading.excepthook, sys.unraisablehook
    loggers = [logging.getLogger("absl"), logging.getLogger()]
    threading.excepthook, sys.unraisablehook = hook, unraisable
    for logger in loggers:
        logger.addFilter(is_other)
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = former, former_unraisable
        for logger in loggers:
            logger.removeFilter(is_other)
