"""Local files that a user names, opened so that none can hang the process or fill its memory.

Only regular files are opened: a FIFO, a socket or a terminal would be waited for without end, and a device such as
/dev/zero has none. The opening itself does not wait, so that a file that changes
between look and opening is refused too.
"""

import io
import os
import stat

from vadapter.base.paths import is_remote

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotAFile(OSError):
    """Something else than a regular file is where a file is expected."""


def check(path: str | os.PathLike[str]) -> os.stat_result:
    """Returns the `stat` of a regular file, for readers that open it by name.

    Raises:
        NotAFile: it is a folder, a FIFO, a socket or a device.
        OSError: there is nothing, or the path cannot be one (a NUL in it).
    """
    return _regular(os.stat(_possible(path)), path)


def descriptor(path: str | os.PathLike[str]) -> int:
    """Opens a regular file for reading and returns its descriptor, which the caller closes. Raises as `check`."""
    check(path)
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        _regular(os.fstat(number), path)
    except OSError:
        os.close(number)
        raise
    return number


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Opens a regular file for reading. Raises as `check`."""
    return os.fdopen(descriptor(path), "rb")


def read_bytes(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Returns the content of a regular file.

    Args:
        path: the file.
        limit: most bytes that it may have; None is any number.

    Raises:
        OSError: as `check`, or it has more than `limit` bytes, of which none is kept.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if limit is None or size <= limit:
            content = (file.read() if limit is None else file.read(limit + 1)) or b""
            if limit is None or len(content) <= limit:
                return content
    raise OSError(f"it has {size} bytes, and at most {limit} are read")


def read_text(path: str | os.PathLike[str], limit: int | None = None) -> str:
    """Returns the content of a regular file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: as `read_bytes`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, limit).decode("utf-8-sig")


def content_of(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """Returns the content of a regular file here, or of a file at an address such as gs://bucket/run.

    Raises:
        OSError: as `read_bytes`; or what the file system of the address says.
    """
    if not is_remote(path):
        return read_bytes(path, limit)
    from etils import epath

    return epath.Path(path).read_bytes()


def _possible(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    if "\0" in name:
        raise OSError("a path with a NUL character names no file")
    try:
        os.fsencode(name)
    except UnicodeEncodeError as e:
        raise OSError(f"the path cannot be written in the file system's encoding ({e.reason})") from None
    return name


def _regular(found: os.stat_result, path: str | os.PathLike[str]) -> os.stat_result:
    if stat.S_ISREG(found.st_mode):
        return found
    kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")
    raise NotAFile(f"{os.fspath(path)} is {kind}; only regular files are read")
