"""Files, local or at an address such as gs://bucket: reading as a whole, as a stream, by ranges of bytes.

TensorFlow is imported for addresses only: its file systems read them.
"""

import contextlib
import functools
import io
import os
from typing import Any

from vadapter.base import local_files
from vadapter.base.paths import is_remote

_REMOTE_THREADS = 32  # requests that wait


def gfile() -> Any:
    """Returns TensorFlow's module of remote files."""
    import tensorflow as tf

    return tf.io.gfile


class _Remote(io.RawIOBase):
    """A remote file as an ordinary one."""

    def __init__(self, path: str):
        self._file = gfile().GFile(path, "rb")
        self._at, self._size = 0, self._file.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:
        self._file.seek(self._at)
        data = self._file.read(min(len(buffer), max(self._size - self._at, 0)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_file(path: str) -> io.BufferedReader:
    """Opens a local or remote file for reading. Raises `OSError` if it is missing or no regular file."""
    return io.BufferedReader(_Remote(path), 1 << 20) if is_remote(path) else local_files.open_file(path)  # type: ignore


def read_file(path: str, limit: int | None = None) -> bytes:
    """Returns a whole file, local or remote.

    Args:
        path: the file.
        limit: most bytes that it may have; None is any number.

    Raises:
        OSError: it is missing, no regular file, larger than `limit`, or cannot be read.
    """
    if not is_remote(path):
        return local_files.read_bytes(path, limit)
    try:
        with gfile().GFile(path, "rb") as file:
            if limit is not None and file.size() > limit:
                raise OSError(f"it has {file.size()} bytes, and at most {limit} are read")
            return file.read()
    except OSError:
        raise
    except Exception as e:  # TensorFlow's, which are no OSErrors
        raise OSError(f"{path}: {getattr(e, 'message', e)}") from e


def version(path: str) -> tuple[int, int]:
    """Returns (size, time of the last change), which tell whether a file is the same as before. OSError if missing."""
    if not is_remote(path):
        stat = local_files.check(path)
        return stat.st_size, stat.st_mtime_ns
    try:
        stat = gfile().stat(path)
    except Exception as e:  # TensorFlow's, which are no OSErrors
        raise OSError(f"{path}: {getattr(e, 'message', e)}") from e
    return stat.length, stat.mtime_nsec


def default_threads(path: str) -> int:
    """Returns how many threads should read files that lie where `path` does."""
    return _REMOTE_THREADS if is_remote(path) else min(8, os.cpu_count() or 1)


class _Descriptor:
    """An open local file, closed when nothing uses it any more."""

    def __init__(self, path: str):
        self.number = local_files.descriptor(path)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)


_descriptor = functools.lru_cache(maxsize=256)(_Descriptor)


def read_range(path: str, offset: int, size: int) -> bytes:
    """Returns `size` bytes from `offset` on. Any number of threads may call it.

    Raises:
        OSError: the file is missing, or ends before.
    """
    if is_remote(path):
        with gfile().GFile(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    else:
        data = os.pread(_descriptor(path).number, size, offset)
    if len(data) != size:
        raise OSError(f"{path} ends after {offset + len(data)} bytes; expected {offset + size}")
    return data
