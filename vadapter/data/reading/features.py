"""A feature cache on disk: what frozen parts made of the media of each record, read at random in place of the media.

    features.json          what the features are of, and of which records
    <task>/00000.bin       the first shard of a task: records of one size, one after the other
    <task>/00001.bin ...

A shard is written under another name and then renamed, so one that is there is whole; a job that was stopped goes on
with the shards that are missing. Each record has a CRC-32, which is compared whenever it is read.
"""

import dataclasses
import os
import uuid
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vadapter.base import files
from vadapter.base.batch import Features
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.rows.sizes import Shape

FILE = "features.json"
FORMAT = 1
_SHARD_BYTES = 128 << 20  # of a shard, about: what a job that is stopped makes again
_OF_MODEL = ("tokens", "scale", "words")
# numpy has no bfloat16, so its bits are kept.
_STORED = {"bfloat16": "<u2", "float32": "<f4", "int8": "i1"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a record holds of each medium.

    Attributes:
        patches: P, tokens of a frame.
        width: E, of a token.
        dtype: `bfloat16`, `float32`, or `int8` with a scale of each token.
        words: W, ids of words that were written about it.
    """

    patches: int
    width: int
    dtype: str
    words: int = 0

    def record(self, frames: int) -> np.dtype:
        """Returns the dtype of a medium with so many frames. What the CRC covers comes after it."""
        fields: list[tuple] = [("crc", "<u4"), ("valid", "<u4")]
        fields.append(("tokens", _STORED[self.dtype], (frames, self.patches, self.width)))
        if self.dtype == "int8":
            fields.append(("scale", "<f4", (frames, self.patches, 1)))
        if self.words:
            fields.append(("words", "<i4", (self.words,)))
        return np.dtype(fields)


@dataclasses.dataclass(frozen=True)
class Part:
    """The records of one task.

    Attributes:
        records: how many.
        media: M, of a record.
        frames: F, of a medium.
        shard: records of a shard; the last one has fewer.
    """

    records: int
    media: int
    frames: int
    shard: int

    @classmethod
    def of(cls, records: int, shape: Shape, layout: Layout) -> "Part":
        """Returns the part of a task whose records have media of a shape (M, F, h, w, 3)."""
        size = layout.record(shape[1]).itemsize * max(shape[0], 1)
        return cls(records, shape[0], shape[1], max(1, min(records, _SHARD_BYTES // size)))

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.records // self.shard)

    def rows(self, shard: int) -> range:
        """Returns the records of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.records))


class Store:
    """The cache of a folder. Threads read at the same time."""

    def __init__(self, folder: str, layout: Layout, parts: Mapping[str, Part]):
        self.folder, self.layout, self.parts = Path(folder), layout, parts

    def dtype(self, task: str) -> np.dtype:
        """Returns the dtype of a medium of a task."""
        return self.layout.record(self.parts[task].frames)

    def file(self, task: str, shard: int) -> Path:
        """Returns the place of a shard."""
        return self.folder / task / f"{shard:05d}.bin"

    def nbytes(self) -> int:
        """Returns the size of all shards together."""
        return sum(self._bytes(task, part.records) for task, part in self.parts.items())

    def places(self) -> list[tuple[str, int]]:
        """Returns (task, shard) of all shards."""
        return [(task, shard) for task, part in self.parts.items() if part.media for shard in range(part.shards)]

    def missing(self) -> list[tuple[str, int]]:
        """Returns the places of those that are not there, or have another size than they were written with."""
        return [place for place in self.places() if not self._is_whole(*place)]

    def write(self, task: str, shard: int, values: np.ndarray) -> None:
        """Writes a shard: [records, M] of `dtype`, whose CRCs are filled in."""
        for medium in values.reshape(-1):
            medium["crc"] = zlib.crc32(medium.tobytes()[4:])
        place = self.file(task, shard)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with partial.open("wb") as file:
                file.write(values.tobytes())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def read(self, task: str, index: int) -> np.ndarray:
        """Reads a record: [M] of `dtype`.

        Raises:
            UserError: its shard is missing, cut or damaged.
        """
        part, dtype = self.parts[task], self.dtype(task)
        size, place = part.media * dtype.itemsize, self.file(task, index // part.shard)
        try:
            with place.open("rb") as file:
                file.seek(index % part.shard * size)
                content = file.read(size)
        except OSError as e:
            raise UserError(f"The feature cache's file {place} cannot be read ({e}). {_AGAIN}") from e
        if len(content) != size:
            raise UserError(f"The feature cache's file {place} is cut. Delete it. {_AGAIN}")
        found = np.frombuffer(content, dtype)
        for k, medium in enumerate(found):
            start = k * dtype.itemsize
            if zlib.crc32(content[start + 4 : start + dtype.itemsize]) != medium["crc"]:
                raise UserError(
                    f"The feature cache's file {place} has changed since it was written. Delete it. {_AGAIN}"
                )
        return found

    def source(self, task: str, records: RandomAccessSource) -> "CachedSource":
        """Returns a task's records with features in place of their media."""
        return CachedSource(self, task, records)

    def _bytes(self, task: str, records: int) -> int:
        return records * self.parts[task].media * self.dtype(task).itemsize

    def _is_whole(self, task: str, shard: int) -> bool:
        try:
            return self.file(task, shard).stat().st_size == self._bytes(task, len(self.parts[task].rows(shard)))
        except OSError:
            return False


_AGAIN = "Run vadapter cache again with the same arguments: it writes what is missing."


class CachedSource:
    """Records with features in place of their media, as `loading.load` reads them. Media are not opened."""

    def __init__(self, store: Store, task: str, records: RandomAccessSource):
        self._store, self._task, self._records = store, task, records
        self.media, self.threads = records.media, records.threads

    def read_some(self, split: str, indices: np.ndarray) -> tuple[list[Any], list[str]]:
        """See `RandomAccessSource.read_some`."""
        records, errors = self._records.read_some(split, indices)
        return list(zip(map(int, indices), records, strict=True)), errors

    def features(self, record: tuple[int, Any]) -> dict[str, Any]:
        """See `RandomAccessSource.features`."""
        return self._records.features(record[1])

    def medium(self, record: tuple[int, Any]) -> Medium:
        """See `RandomAccessSource.medium`."""
        return self._records.medium(record[1])

    def read_media(self, record: tuple[int, Any], shape: Shape, choice: int = 0) -> np.ndarray:
        """Returns the features of a record's media, [M]. Raises `MediaError` where the cache found none to read."""
        found = self._store.read(self._task, record[0])
        if not found["valid"].all():
            raise MediaError("its media could not be read when the feature cache was written; vadapter check says why")
        return found


def featured(media: Any) -> Features:
    """Returns what a model reads, of an array [B, M] as the cache keeps it."""
    found: dict[str, Any] = {name: np.ascontiguousarray(media[name]) for name in _OF_MODEL if name in media.dtype.names}
    if found["tokens"].dtype == np.uint16:
        found["tokens"] = found["tokens"].view(ml_dtypes.bfloat16)
    return Features(**found)


def stored(media: np.ndarray, features: Features) -> None:
    """Writes the features of media [n, M] into an array as the cache keeps it."""
    tokens = np.asarray(features.tokens)
    media["tokens"] = tokens.view(np.uint16) if tokens.dtype == ml_dtypes.bfloat16 else tokens
    for name in ("scale", "words"):
        if (values := getattr(features, name)) is not None:
            media[name] = np.asarray(values)


def check_dtype(dtype: str) -> None:
    """Raises `UserError` where features cannot be kept so."""
    if dtype not in _STORED:
        raise UserError(f"Features are kept as {', '.join(_STORED)}; found {dtype!r}. Choose one of them.")


def describe(folder: str, facts: Mapping[str, Any], store: Store) -> None:
    """Writes `features.json`, or compares what is there.

    Args:
        folder: of the cache.
        facts: what the features are of, as JSON.
        store: of the folder.

    Raises:
        UserError: it holds other features.
    """
    _local(folder)
    Path(folder).mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "facts": facts, "layout": dataclasses.asdict(store.layout)}
    content["parts"] = {task: dataclasses.asdict(part) for task, part in store.parts.items()}
    if (Path(folder) / FILE).exists():
        found = _record(folder)
        if wrong := differences({k: found.get(k) for k in content}, content):
            raise UserError(
                f"{folder} holds the features of something else: {wrong}. Give another --out, or delete the folder."
            )
        return
    files.write_json(Path(folder) / FILE, content)


def open_store(folder: str, facts: Callable[[bool], Mapping[str, Any]]) -> Store:
    """Opens a whole cache.

    Args:
        folder: of the cache.
        facts: returns what the features have to be of; it is told whether there are words among them.

    Raises:
        UserError: it is missing, not whole, damaged, or of something else.
    """
    _local(folder)
    found = _record(folder)
    try:
        layout = Layout(**found["layout"])
        parts = {task: Part(**part) for task, part in found["parts"].items()}
        numbers = [layout.patches, layout.width, *(x for part in parts.values() for x in dataclasses.astuple(part))]
        if layout.dtype not in _STORED or not all(type(x) is int and x >= 0 for x in [*numbers, layout.words]):
            raise ValueError("a number or a dtype is none")
        if any(not part.shard or os.path.basename(task) != task for task, part in parts.items()):
            raise ValueError("a task or its shards are none")
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{folder}/{FILE} is not as vadapter cache writes it ({e}). Delete the folder. {_AGAIN}") from e
    if wrong := differences(found.get("facts"), facts(layout.words > 0)):
        raise UserError(
            f"The feature cache {folder} is stale: {wrong}. Write it anew in another folder (vadapter cache), or take "
            "Experiment.feature_cache out, and the run makes its features itself."
        )
    store = Store(folder, layout, parts)
    if missing := store.missing():
        raise UserError(
            f"The feature cache {folder} is not whole: {len(missing)} of {len(store.places())} files are missing or "
            f"cut, the first is {store.file(*missing[0])}. {_AGAIN}"
        )
    return store


def differences(found: Any, expected: Any, name: str = "") -> str:
    """Returns where two JSON values differ first, in words; "" where they do not."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in sorted({*found, *expected}):
            if wrong := differences(found.get(key), expected.get(key), f"{name}.{key}" if name else key):
                return wrong
        return ""
    found, expected = (list(x) if isinstance(x, tuple) else x for x in (found, expected))
    return (
        ""
        if found == expected
        else f"its {name or 'content'} is {_short(found)}, and that of the run {_short(expected)}"
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _record(folder: str) -> dict[str, Any]:
    try:
        found = files.read_object(Path(folder) / FILE)
    except FileNotFoundError as e:
        raise UserError(
            f"{folder} has no {FILE}, which vadapter cache writes. Give the folder of a feature cache."
        ) from e
    except (OSError, ValueError) as e:
        raise UserError(f"{folder}/{FILE} {e}. Delete the folder. {_AGAIN}") from e
    if found.get("format") != FORMAT:
        raise UserError(
            f"{folder}/{FILE} has the format {found.get('format')!r}; this version of vadapter reads {FORMAT}. Write "
            "the cache anew."
        )
    return found


def _local(folder: str) -> None:
    if is_remote(folder):
        raise UserError(
            f"A feature cache is read at random and lies on a local disk or a mounted one; found {folder}. "
            "Copy it there."
        )
