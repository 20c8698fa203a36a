"""llama.cpp's format, GGUF: tensors of one file or of several, dequantised rows at a time."""

import dataclasses
import glob
import math
import os
import re
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np

from vadapter.base import local_files
from vadapter.base.errors import UserError
from vadapter.weights.gguf_header import Header, StoredTensor, damaged, read_header
from vadapter.weights.tensors import TensorInfo

SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
# Stored as they are; all other types are dequantised to f32.
_PLAIN = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
_AT_ONCE = 1 << 22  # numbers that are dequantised together; the library needs some temporary arrays of that size


@dataclasses.dataclass(frozen=True)
class _Type:
    """A ggml type: blocks of so many numbers have so many bytes."""

    name: str
    number: int
    block: int
    bytes: int


class GgufFiles:
    """Tensors of a GGUF model under the names that they have in the file.

    Args:
        path: the file, or any of the files of a model that was split.

    Attributes:
        where: the file, for messages.
        metadata: of the file; of the first one of several.
        infos: shape and dtype of every tensor by its name. Quantised ones are f32 to the reader.

    Raises:
        UserError: the library `gguf` is not installed; a file is missing, cut off, damaged or of another kind; or a
            tensor is of a type that cannot be dequantised.
    """

    def __init__(self, path: str):
        self._gguf = _library(path)
        self.where = path
        headers = _read_all(path)
        first = next(iter(headers.values()))
        self.metadata: Mapping[str, Any] = first.metadata
        self.infos: dict[str, TensorInfo] = {}
        self._stored: dict[str, StoredTensor] = {}
        self._types: dict[int, _Type] = {}
        for file, header in headers.items():
            for name, stored in header.tensors.items():
                if name in self._stored:
                    raise damaged(path, f"{name} is in {os.path.basename(file)} and in another file too")
                self._add(name, stored, header.size)

    def _add(self, name: str, stored: StoredTensor, size: int) -> None:
        kind = self._type(name, stored)
        if stored.shape and stored.shape[-1] % kind.block:
            raise damaged(stored.file, f"{name} has rows of {stored.shape[-1]}, no multiple of {kind.block}")
        end = stored.offset + math.prod(stored.shape) // kind.block * kind.bytes
        if end > size:
            raise damaged(stored.file, f"{name} ends at byte {end}, the file at {size}")
        self._stored[name] = stored
        self.infos[name] = TensorInfo(stored.shape, _PLAIN.get(kind.name, np.dtype(np.float32)))

    def _type(self, name: str, stored: StoredTensor) -> _Type:
        """What the library knows of a tensor's type."""
        if stored.type in self._types:
            return self._types[stored.type]
        known = {int(kind): kind for kind in self._gguf.GGMLQuantizationType}
        if stored.type not in known:
            raise UserError(
                f"{stored.file}: {name} is of the ggml type {stored.type}, which the installed gguf does not know. "
                "Update it (pip install -U gguf), or take the model in another quantisation."
            )
        block, length = self._gguf.GGML_QUANT_SIZES[known[stored.type]]
        kind = _Type(known[stored.type].name, stored.type, block, length)
        if kind.name not in _PLAIN:
            try:
                self._dequantize(np.zeros((1, length), np.uint8), kind)
            except NotImplementedError as e:
                raise UserError(
                    f"{stored.file}: {name} is stored as {kind.name}, which cannot be dequantised. Take the model in "
                    "another quantisation, for example Q8_0 or F16."
                ) from e
        self._types[stored.type] = kind
        return kind

    def _dequantize(self, raw: np.ndarray, kind: _Type) -> np.ndarray:
        return self._gguf.quants.dequantize(raw, self._gguf.GGMLQuantizationType(kind.number))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Returns entries start..stop of the first axis. See `Tensors.read`."""
        stored, info = self._stored[name], self.infos[name]
        kind = self._types[stored.type]
        if len(stored.shape) < 2 and kind.block > 1 or not stored.shape:  # nothing to take rows of
            whole = self._rows(name, 0, 1, math.prod(stored.shape)).reshape(stored.shape)
            return whole[start:stop] if stored.shape else whole
        start, stop, _ = slice(start, stop).indices(stored.shape[0])
        rows = self._rows(name, start, max(start, stop), math.prod(stored.shape[1:]))
        return rows.reshape(-1, *info.shape[1:])

    def _rows(self, name: str, start: int, stop: int, width: int) -> np.ndarray:
        """Reads rows of `width` numbers, a few at a time where they are dequantised."""
        stored, dtype = self._stored[name], self.infos[name].dtype
        kind = self._types[stored.type]
        length = width // kind.block * kind.bytes
        if kind.name in _PLAIN:
            return self._bytes(name, start * length, (stop - start) * length).view(dtype).reshape(-1, width)
        made = np.empty((stop - start, width), np.float32)
        step = max(1, _AT_ONCE // max(1, width))
        for at in range(start, stop, step):
            count = min(step, stop - at)
            raw = self._bytes(name, at * length, count * length)
            made[at - start : at - start + count] = self._dequantize(raw.reshape(count, length), kind)
        return made

    def _bytes(self, name: str, start: int, count: int) -> np.ndarray:
        stored = self._stored[name]
        # Read and not mapped, as pages of a mapped file that were read stay resident.
        try:
            with local_files.open_file(stored.file) as file:
                file.seek(stored.offset + start)
                found = np.fromfile(file, np.uint8, count)
        except OSError as e:
            raise damaged(stored.file, f"{name}: {e}") from e
        if found.size != count:
            raise damaged(stored.file, f"{name} ends too early")
        return found


def models(names: Iterable[str]) -> list[str]:
    """Returns the .gguf files that language models begin with: of one that was split, the first file that is there.

    Args:
        names: files; others than .gguf ones and vision towers (`mmproj`) do not count. May have folders, with slashes.
    """
    first: dict[tuple[str, str], str] = {}
    for name in sorted(names):
        if name.endswith(".gguf") and "mmproj" not in name.rsplit("/", 1)[-1].lower():
            split = SPLIT.fullmatch(name)
            first.setdefault((split[1], split[3]) if split else (name, ""), name)
    return list(first.values())


def choose(folder: str, names: list[str]) -> str:
    """Returns the .gguf file of a folder that has the model: the only one, or the first of one that was split.

    Args:
        folder: for messages.
        names: its .gguf files. Those with a vision tower (`mmproj`) count only where there is nothing else.

    Raises:
        UserError: they are several models.
    """
    found = models(names) or sorted(names)
    if len(found) > 1:
        raise UserError(
            f"{folder} has {len(found)} GGUF models ({', '.join(found[:5])}). Give the file of one of them as the "
            "source."
        )
    return os.path.join(folder, found[0])


def _library(path: str) -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError as e:
        raise UserError(
            f"{path} is a GGUF file, and the library that dequantises it is not installed. Install it with "
            "pip install 'vadapter[gguf]'."
        ) from e
    return gguf


def _read_all(path: str) -> dict[str, Header]:
    """The headers of a model's files by their paths, the first one first."""
    header = read_header(path)
    count = header.metadata.get("split.count", 0)
    if count in (0, 1):
        return {path: header}
    match = SPLIT.fullmatch(os.path.basename(path))
    if not match or int(match[3]) != count:
        raise UserError(
            f"{path} is one of {count} files of a model; expected a name that ends in -00001-of-{count:05}.gguf, as "
            "the others are found by it. Give the files the names that they were published with."
        )
    folder = os.path.dirname(path)
    files = [os.path.join(folder, f"{match[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    if missing := [os.path.basename(file) for file in files if not os.path.isfile(file)]:
        there = len(glob.glob(os.path.join(glob.escape(folder), f"{glob.escape(match[1])}-*-of-{count:05}.gguf")))
        raise UserError(
            f"{path} is one of {count} files of a model, {there} of which are there; missing: {', '.join(missing)}. "
            "Fetch the missing files into the same folder."
        )
    headers = {file: header if file == path else read_header(file) for file in files}
    for i, (file, one) in enumerate(headers.items()):
        if (one.metadata.get("split.count"), one.metadata.get("split.no")) != (count, i):
            raise UserError(
                f"{file} says that it is file {one.metadata.get('split.no')} of {one.metadata.get('split.count')} "
                f"(counted from 0); expected {i} of {count} by its name. Fetch all of the files again."
            )
    total, found = header.metadata.get("split.tensors.count"), sum(len(one.tensors) for one in headers.values())
    if total is not None and total != found:
        raise damaged(path, f"the model has {total} tensors, and its {count} files have {found}")
    return headers
