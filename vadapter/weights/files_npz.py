"""NumPy's .npz, as big_vision publishes weights: read from the archive in passing, never a whole array for a part."""

import math
import zipfile
import zlib
from typing import IO

import ml_dtypes
import numpy as np
from numpy.lib import format as npy

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.weights.tensors import TensorInfo

_BLOCK = 16 << 20
_BROKEN = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError)


class NpzFile:
    """Arrays of an .npz file.

    bf16 is stored as void of two bytes (`V2`), which numpy makes of it, and read as bf16. Pickled objects are refused.

    Args:
        path: the file.

    Raises:
        UserError: the file is corrupt, or has an array of objects or of a kind that is no number.
    """

    def __init__(self, path: str):
        self.where = path
        self.infos: dict[str, TensorInfo] = {}
        self._fortran: dict[str, bool] = {}
        self._cursor: _Cursor | None = None
        try:
            self._zip = zipfile.ZipFile(local_files.open_file(path))
            for member in self._zip.namelist():
                name = member.removesuffix(".npy")
                with self._zip.open(member) as file:
                    shape, self._fortran[name], stored = _header(file)
                self.infos[name] = TensorInfo(shape, _dtype(path, name, stored))
        except _BROKEN as e:
            if isinstance(e, UserError):
                raise
            raise _corrupt(path, str(e)) from e

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns entries start..stop of the first axis. See `Tensors.read`."""
        info = self.infos[name]
        try:
            if not info.shape:
                return self._bytes(name, 0, info.dtype.itemsize).view(info.dtype).reshape(())
            start, stop, _ = slice(start, stop).indices(info.shape[0])
            if self._fortran[name]:
                return self._columns(name, info, start, stop)
            row = math.prod(info.shape[1:]) * info.dtype.itemsize
            data = self._bytes(name, start * row, (stop - start) * row)
            return data.view(info.dtype).reshape(stop - start, *info.shape[1:])
        except _BROKEN as e:
            raise _corrupt(self.where, f"{name}: {e}") from e

    def _bytes(self, name: str, start: int, size: int) -> np.ndarray:
        # The layers of a stacked array are asked for one after the other: going on where the last read ended reads a
        # compressed array once, and zipfile compares the checksum at its end.
        cursor = self._cursor
        if cursor is None or cursor.name != name or cursor.position > start:
            cursor = self._cursor = _Cursor(self._zip, name)
        return cursor.read(start, size)

    def _columns(self, name: str, info: TensorInfo, start: int, stop: int) -> np.ndarray:
        """Rows of an array in Fortran order, where the first axis is the innermost: cut out of a pass over it all."""
        count, length = math.prod(info.shape[1:]), info.shape[0]
        out = np.empty((count, stop - start), info.dtype)
        step = max(1, _BLOCK // max(1, length * info.dtype.itemsize))
        for at in range(0, count, step):
            n = min(step, count - at)
            size = n * length * info.dtype.itemsize
            block = self._bytes(name, at * length * info.dtype.itemsize, size).view(info.dtype)
            out[at : at + n] = block.reshape(n, length)[:, start:stop]
        return out.T.reshape((stop - start, *info.shape[1:]), order="F")


class _Cursor:
    """A place in the data of one array of the archive."""

    def __init__(self, archive: zipfile.ZipFile, name: str):
        member = name + ".npy"
        self.name = name
        self._file = archive.open(member if member in archive.NameToInfo else name)
        _header(self._file)
        self.position = 0

    def read(self, start: int, size: int) -> np.ndarray:
        """Returns `size` bytes from `start`, which is not before `position`."""
        while self.position < start:
            self.position += len(self._some(min(_BLOCK, start - self.position)))
        data = np.empty(size, np.uint8)
        for at in range(0, size, _BLOCK):
            part = self._some(min(_BLOCK, size - at))
            data[at : at + len(part)] = np.frombuffer(part, np.uint8)
            self.position += len(part)
        return data

    def _some(self, size: int) -> bytes:
        part = self._file.read(size)
        if len(part) != size:
            raise EOFError("the data ends too early")
        return part


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype)"""
    version = npy.read_magic(file)
    if version == (1, 0):
        return npy.read_array_header_1_0(file)
    if version == (2, 0):
        return npy.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the npy format")


def _dtype(path: str, name: str, stored: np.dtype) -> np.dtype:
    if stored.kind == "V" and stored.names is None and stored.itemsize == 2:
        return np.dtype(ml_dtypes.bfloat16)
    if stored.hasobject:
        raise UserError(
            f"{path}: {name} is an array of Python objects. They are pickled, and unpickling a file runs what is in "
            "it; nothing here does that. Expected numbers: save the weights again without objects."
        )
    if stored.kind not in "fiub" or not stored.isnative:
        raise UserError(f"{path}: {name} has the dtype {stored}; expected numbers. Save the weights as f32 or bf16.")
    return stored


def _corrupt(path: str, what: str) -> UserError:
    return UserError(
        f"{path} is no complete .npz file ({what}). It was cut off or damaged; fetch it again and compare its size "
        "with the publisher's."
    )
