"""The header of a GGUF file (llama.cpp's format): its metadata, and type, shape and place of each tensor.

It is read here and not with the library `gguf`, whose reader makes array objects of every token of the vocabulary and
checks little of what a damaged file says.
"""

import dataclasses
import math
import mmap
import os
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from vadapter.base import local_files
from vadapter.base.errors import UserError

_MAGIC = b"GGUF"
_OLDER_MAGICS = (b"lmgg", b"tjgg", b"fmgg", b"algg")  # ggml, ggjt, ggmf and ggla, as they lie in a file
_LFS = b"version https://git-lfs"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_AXES = 4
# Types of metadata by their number; little-endian.
_SCALARS = dict(enumerate(("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))) | {10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file.

    Attributes:
        file: path.
        type: number of its ggml type.
        shape: rows first, as numpy has it.
        offset: of its first byte in the file.
    """

    file: str
    type: int
    shape: tuple[int, ...]
    offset: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file says before its tensors' numbers.

    Attributes:
        metadata: values by key: numbers, flags and texts; lists of texts; numpy arrays of numbers.
        tensors: by name.
        size: of the file, in bytes.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    size: int


def read_header(path: str) -> Header:
    """Reads the header of a file.

    Raises:
        UserError: it is no GGUF file, of a version or byte order that is not read, cut off or damaged.
    """
    try:
        opened = local_files.open_file(path)
    except OSError as e:
        raise UserError(f"{path} cannot be read as a GGUF file ({e}). Give another file.") from e
    with opened as file:
        size = os.fstat(file.fileno()).st_size
        _check_start(path, file.read(len(_LFS)), size)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _read(path, _Cursor(content), size)
            except (struct.error, ValueError, OverflowError, RecursionError) as e:
                raise damaged(path, f"its header cannot be read: {e}") from e


def damaged(path: str, what: str) -> UserError:
    """Makes the error for a file that is cut off or damaged."""
    return UserError(
        f"{path} is no complete GGUF file ({what}). It was cut off or damaged; fetch it again and compare its size "
        "with the publisher's."
    )


def _check_start(path: str, start: bytes, size: int) -> None:
    if not size:
        raise UserError(f"{path} is empty; expected a GGUF file. Fetch it again.")
    if start.startswith(_LFS):
        raise UserError(
            f"{path} is a pointer of Git LFS, not the weights. Expected a GGUF file; fetch it with `git lfs pull`, or "
            "download it from the site."
        )
    if start[:4] in _OLDER_MAGICS:
        raise UserError(
            f"{path} is a ggml file of the time before GGUF, which is not read. Use a GGUF file of version 2 or 3."
        )
    if not start.startswith(_MAGIC[: len(start)]):
        raise UserError(f"{path} is no GGUF file: expected it to begin with 'GGUF' and found {start[:4]!r}.")
    if len(start) < 8:
        raise damaged(path, f"it has {size} bytes")
    (version,) = struct.unpack("<I", start[4:8])
    if version and not version & 0xFFFF:
        raise UserError(
            f"{path} has its numbers in big-endian order; expected little-endian. Take the usual file of this model, "
            "or turn this one with the tool gguf-convert-endian of the package gguf."
        )
    if version not in _VERSIONS:
        raise UserError(
            f"{path} is GGUF of version {version}; versions {' and '.join(map(str, _VERSIONS))} are read. Take a file "
            "that was made with a newer llama.cpp, or update vadapter if this one is newer."
        )


class _Cursor:
    """Reads values one after the other from a file that is mapped into memory."""

    def __init__(self, content: mmap.mmap):
        self._content = content
        self.at = 8  # behind magic and version

    def take(self, count: int) -> bytes:
        if self.at + count > len(self._content):
            raise ValueError(f"it ends at byte {len(self._content)}, in the middle of a value")
        found = self._content[self.at : self.at + count]
        self.at += count
        return found

    def whole(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        return self.take(self.whole("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._array()
        return np.frombuffer(self.take(_dtype(kind).itemsize), _dtype(kind))[0].item()

    def _array(self) -> Any:
        kind, count = self.whole("I"), self.whole("Q")
        if kind == _STRING:
            return [self.text() for _ in range(count)]
        if kind == _ARRAY:
            return [self._array() for _ in range(count)]
        return np.frombuffer(self.take(count * _dtype(kind).itemsize), _dtype(kind))


def _dtype(kind: int) -> np.dtype:
    if kind not in _SCALARS:
        raise ValueError(f"type {kind} of a metadata value is unknown")
    return np.dtype(_SCALARS[kind])


def _read(path: str, cursor: _Cursor, size: int) -> Header:
    num_tensors, num_values = cursor.whole("Q"), cursor.whole("Q")
    metadata: dict[str, Any] = {}
    for _ in range(num_values):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.whole("I"))
    found: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for _ in range(num_tensors):
        name, axes = cursor.text(), cursor.whole("I")
        if axes > _MAX_AXES or name in found:
            raise ValueError(f"its tensor {name!r} has {axes} axes" if axes > _MAX_AXES else f"{name!r} is there twice")
        shape = tuple(reversed([cursor.whole("Q") for _ in range(axes)]))
        found[name] = (cursor.whole("I"), shape, cursor.whole("Q"))
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = math.ceil(cursor.at / alignment) * alignment
    tensors = {name: StoredTensor(path, kind, shape, start + at) for name, (kind, shape, at) in found.items()}
    return Header(metadata, tensors, size)
