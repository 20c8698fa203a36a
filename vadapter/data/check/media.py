"""Which medium a record shows, told by the sha256 of its encoded bytes."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable
from typing import Any

import tensorflow as tf

from vadapter.data.reading import shards
from vadapter.data.reading.jsonl import JsonlSource
from vadapter.data.reading.pairs import PairsSource
from vadapter.data.reading.sources import ArrayRecordSource, RandomAccessSource


@dataclasses.dataclass(frozen=True)
class Medium:
    """Names a record's image or video.

    Attributes:
        digest: the first 16 bytes of the sha256 of its encoded bytes; None if they cannot be read or the source does
            not give them.
        path: of its file, or "" where it lies in the record.
    """

    digest: bytes | None = None
    path: str = ""


@functools.singledispatch
def medium(source: RandomAccessSource, record: Any) -> Medium:
    """Returns the medium of a record that `source.read` gave. Sources of other kinds do not tell theirs."""
    return Medium()


@medium.register
def _(source: ArrayRecordSource, record: bytes) -> Medium:
    features = tf.train.Example.FromString(record).features.feature
    return Medium(digest(features["image" if source.media == "image" else "frames"].bytes_list.value))


@medium.register
def _(source: JsonlSource, record: bytes) -> Medium:
    return _of_file(tf.train.Example.FromString(record).features.feature["path"].bytes_list.value[0].decode())


@medium.register
def _(source: PairsSource, record: Any) -> Medium:
    if record.path and not record.media:
        return _of_file(record.path)
    return Medium(digest(record.media))


def _of_file(path: str) -> Medium:
    try:
        with shards.open_file(path) as file:
            return Medium(digest(iter(lambda: file.read(1 << 20), b"")), path)
    except Exception:  # a missing or unreadable file, here or in a bucket: decoding it says what is wrong
        return Medium(None, path)


def digest(parts: Iterable[bytes]) -> bytes | None:
    found, size = hashlib.sha256(), 0
    for part in parts:
        found.update(part)
        size += len(part)
    return found.digest()[:16] if size else None
