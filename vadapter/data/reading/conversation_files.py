"""Files of conversations, read at random: JSON Lines, JSON arrays, Parquet and tar, told by looking into them."""

import dataclasses
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from vadapter.base import json_text
from vadapter.base.errors import UserError
from vadapter.data.reading import conversations, pair_formats, shard_index, shards, storage, video
from vadapter.data.reading.conversations import Conversation
from vadapter.data.reading.pair_readers import MAX_RECORD_BYTES, ParquetTables, Places
from vadapter.data.reading.shard_index import Index

JSON_ARRAY, JSON_LINES, PARQUET, TAR = "JSON array", "JSON Lines", "Parquet", "tar"
_CHUNK = 1 << 20  # characters of a JSON array that are read at once
_MEDIA = (*pair_formats.IMAGE_ENDINGS, *video.SUFFIXES)


class Reader(Protocol):
    """Records of files, numbered through."""

    left_out: int
    format: str

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Any, Conversation]:
        """Returns a record's fields, and the conversation."""
        ...

    def blocks(self) -> np.ndarray | None: ...


def format_of(path: str) -> str:
    """Tells the format of a file by its first bytes.

    Raises:
        UserError: it cannot be read, or is of another format.
    """
    try:
        with storage.open_file(path) as file:
            start = file.read(1 << 12)
    except Exception as e:  # a missing or unreadable file, here or in a bucket
        raise UserError(f"Expected a file of conversations; {path} cannot be read ({e}). Correct the path.") from e
    if start.startswith(b"PAR1"):
        return PARQUET
    if start[257:262] == b"ustar":
        return TAR
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if text in (b"[", b"{"):
        return JSON_ARRAY if text == b"[" else JSON_LINES
    raise UserError(
        f"Expected conversations in {path}: a JSON array, JSON Lines, Parquet or an uncompressed tar file; "
        f"{'it is empty' if not start else 'it begins like none of these'}. Give another file, or unpack it."
    )


def open_files(patterns: str | Sequence[str], cache_dir: str = "") -> Reader:
    """Opens files of one format.

    Raises:
        UserError: files are missing, of several or unknown formats, or without records.
    """
    files = shards.expand(patterns)
    formats = {file: format_of(file) for file in files}
    format_ = formats[files[0]]
    if other := next((file for file in files if formats[file] != format_), None):
        raise UserError(
            f"Expected files of one format; {files[0]} is {format_} and {other} is {formats[other]}. Give each format "
            "a task of its own, and mix them."
        )
    reader = ParquetReader(files, cache_dir) if format_ == PARQUET else RangeReader(files, format_, cache_dir)
    if not len(reader):
        raise UserError(
            f"Expected conversations in {files[0]}; found none that can be used ({reader.left_out} others). Correct "
            "the file."
        )
    return reader


class RangeReader:
    """JSON Lines, JSON arrays and tar files: each record is a range of bytes."""

    def __init__(self, files: Sequence[str], format_: str, cache_dir: str):
        scans = {
            JSON_LINES: lambda file: shard_index.index_lines(file, _check),
            JSON_ARRAY: index_array,
            TAR: lambda file: shard_index.index_tar(file, _check_members),
        }
        found = shards.indexes(files, scans[format_], f"conversations 1 {format_}", cache_dir)
        self.left_out = sum(index.left_out for index in found)
        self._indexes, self.format = found, format_
        self._places = Places(files, [len(index.offsets) for index in found])

    def __len__(self) -> int:
        return len(self._places)

    def blocks(self) -> np.ndarray | None:
        return None

    def read(self, index: int) -> tuple[Any, Conversation]:
        which, number = self._places.find(index)
        file, where = self._places.files[which], self._indexes[which]
        place, size = self._places.name(which, number), int(where.sizes[number])
        if size > MAX_RECORD_BYTES:
            return {}, Conversation(place, error=f"has {size} bytes, and at most {MAX_RECORD_BYTES} are read")
        raw, folder = storage.read_range(file, int(where.offsets[number]), size), os.path.dirname(file)
        texts, media = [raw], {}
        if self.format == TAR:
            members = pair_formats.members(raw)
            texts = [content for name, content in members if name.lower().endswith(".json")]
            media = {name.rpartition("/")[2]: content for name, content in members if name.lower().endswith(_MEDIA)}
        try:
            fields = json_text.loads(texts[0])
        except (ValueError, IndexError) as e:
            return {}, Conversation(place, error=f"has no JSON object ({e})")
        return fields, conversations.parse(fields, place, folder, media)


class ParquetReader:
    """Parquet files; of their columns those that conversations may have."""

    left_out, format = 0, PARQUET

    def __init__(self, files: Sequence[str], cache_dir: str):
        def columns(found: Sequence[str]) -> list[str]:
            if not {"messages", "conversations", "texts"} & set(found):
                raise UserError(
                    "Expected a column messages, conversations or texts; found the columns "
                    f"{', '.join(found)[:300]}. Rename the column with the turns, or give another file."
                )
            return [name for name in conversations.COLUMNS if name in found]

        self._tables = ParquetTables(files, columns, "conversations", cache_dir)

    def __len__(self) -> int:
        return len(self._tables)

    def blocks(self) -> np.ndarray | None:
        return self._tables.blocks

    def read(self, index: int) -> tuple[Any, Conversation]:
        place, folder, fields = self._tables.row(index)
        return fields, conversations.parse(fields, place, folder)


def _check(raw: bytes) -> str:
    """What is wrong with a record of JSON."""
    try:
        return conversations.parse(json_text.loads(raw), "", "/").error
    except ValueError as e:
        return f"not JSON ({e})"


def _check_members(names: Sequence[str]) -> str:
    described = [name for name in names if name.lower().endswith(".json")]
    return "" if len(described) == 1 else f"{len(described)} members end in .json, and one with the turns is needed"


@dataclasses.dataclass
class _Text:
    """A text file, of which a part is here. `at` counts its bytes up to the character `counted` of the part."""

    file: io.TextIOWrapper
    part: str = ""
    at: int = 0
    counted: int = 0

    def more(self) -> bool:
        """Reads on. False at the end."""
        read = self.file.read(_CHUNK)
        self.part += read
        return bool(read)

    def byte_of(self, position: int) -> int:
        """Returns the place in the file of a character that is not before one asked for earlier."""
        self.at += len(self.part[self.counted : position].encode())
        self.counted = position
        return self.at

    def drop(self, count: int) -> None:
        """Leaves the first characters of the part behind."""
        self.byte_of(count)
        self.part, self.counted = self.part[count:], 0


def index_array(file: io.BufferedReader) -> Index:
    """Finds the objects of a JSON array, of any size: a part of the text is in memory, not all records.

    Raises:
        UserError: it is not UTF-8.
    """
    found: list[tuple[int, int]] = []
    problems: list[str] = []
    start = 3 if file.peek(3)[:3] == b"\xef\xbb\xbf" else 0
    text = _Text(io.TextIOWrapper(file, "utf-8-sig", newline=""), at=start)
    try:
        left_out = 0
        for number, (at, size, wrong) in enumerate(_objects(text)):
            if not wrong:
                found.append((at, size))
                continue
            left_out += 1
            if len(problems) < 20:
                problems.append(f"record {number}: {wrong}")
    except UnicodeDecodeError as e:
        raise UserError(f"Expected JSON in UTF-8; {e}. Write the file as UTF-8.") from e
    finally:
        text.file.detach()
    places = np.asarray(found, np.int64).reshape(-1, 2)
    return Index(places[:, 0].copy(), places[:, 1].copy(), left_out, tuple(problems))


def _objects(text: _Text) -> Iterator[tuple[int, int, str]]:
    """Yields first byte, bytes and what is wrong of each element of an array."""
    decoder = json.JSONDecoder()
    text.more()
    position = re.match(r"\s*\[?", text.part).end()  # type: ignore[union-attr] it matches nothing too
    while True:
        position = re.compile(r"[\s,]*").match(text.part, position).end()  # type: ignore[union-attr] as above
        if position >= len(text.part) - 1 or position > _CHUNK:
            text.drop(position)
            position = 0
            if len(text.part) < 2 and text.more():
                continue
        if not text.part[position:]:
            yield text.at, 0, "the file ends within its array"
            return
        if text.part[position] == "]":
            return
        try:
            fields, end = decoder.raw_decode(text.part, position)
        except RecursionError:
            yield text.at, 0, "the rest: brackets are nested too deeply"
            return
        except ValueError as e:
            if len(text.part) - position <= MAX_RECORD_BYTES and text.more():
                continue
            yield text.at, 0, f"the rest is no JSON ({e})"
            return
        size = len(text.part[position:end].encode())
        yield text.byte_of(position), size, conversations.parse(fields, "", "/").error
        position = end
