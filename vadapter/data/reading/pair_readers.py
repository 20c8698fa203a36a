"""Files of captioned media, read at random whatever their format."""

import collections
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from vadapter.base import local_files, trees
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.data.order import schedule
from vadapter.data.reading import shard_index, shards, storage
from vadapter.data.reading.pair_formats import (
    Fields,
    line_check,
    parse_example,
    parse_line,
    parse_tar,
    tar_check,
)
from vadapter.data.reading.records import Record, make_record

MAX_RECORD_BYTES = 1 << 30
FORMATS = ("tar", "tfrecord", "array_record", "parquet", "jsonl")


class Reader(Protocol):
    """Records of several files, numbered through."""

    left_out: int

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> list[Record]: ...

    def blocks(self) -> np.ndarray | None: ...


class Places:
    """Which file a number belongs to, and its number there."""

    def __init__(self, files: Sequence[str], sizes: Sequence[int]):
        self.files = files
        self._ends = np.cumsum(sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def find(self, index: int) -> tuple[int, int]:
        which = int(np.searchsorted(self._ends, index, "right"))
        return which, int(index - (self._ends[which - 1] if which else 0))

    def name(self, which: int, number: int) -> str:
        return f"{os.path.basename(self.files[which])}:{number}"


class RangeReader:
    """Tar, TFRecord and JSONL files: each record is a range of bytes."""

    def __init__(self, files: Sequence[str], format_: str, fields: Fields, cache_dir: str):
        scans = {
            "tar": lambda file: shard_index.index_tar(file, tar_check(fields)),
            "tfrecord": shard_index.index_tfrecord,
            "jsonl": lambda file: shard_index.index_lines(file, line_check(fields)),
        }
        self._indexes = shards.indexes(files, scans[format_], f"{format_} {fields}", cache_dir)
        self._places = Places(files, [len(i.offsets) for i in self._indexes])
        self.left_out = sum(i.left_out for i in self._indexes)
        self._format, self._fields = format_, fields

    def __len__(self) -> int:
        return len(self._places)

    def blocks(self) -> np.ndarray | None:
        return None

    def read(self, indices: np.ndarray) -> list[Record]:
        return [self._one(int(i)) for i in indices]

    def _one(self, i: int) -> Record:
        which, number = self._places.find(i)
        index, file = self._indexes[which], self._places.files[which]
        id_, size = self._places.name(which, number), int(index.sizes[number])
        if size > MAX_RECORD_BYTES:
            return Record(id_, error=f"has {size} bytes, and at most {MAX_RECORD_BYTES} are read")
        checked = shard_index.CHECKSUM_BYTES if self._format == "tfrecord" else 0
        raw = storage.read_range(file, int(index.offsets[number]), size + checked)
        if checked and not shard_index.is_whole(raw):
            return Record(id_, error="its checksum is not that of its content: the file was damaged or changed")
        raw = raw[:size]
        if self._format == "tar":
            return parse_tar(raw, id_, self._fields)
        parse = parse_example if self._format == "tfrecord" else parse_line
        return parse(raw, id_, self._fields, os.path.dirname(file))


class ArrayRecordReader:
    """ArrayRecord files of tf.train.Example. They bring their own index. The library reads local files only."""

    left_out = 0

    def __init__(self, files: Sequence[str], fields: Fields):
        from array_record.python import array_record_data_source

        if remote := [f for f in files if is_remote(f)]:
            raise UserError(f"Expected local ArrayRecord files; found {remote[0]}. Mount the folder, or use tar files.")
        for file in files:
            try:
                local_files.check(file)
            except FileNotFoundError as e:
                raise UserError(f"Expected {len(files)} files; {file} is missing. Correct the names.") from e
            except OSError as e:
                raise UserError(f"Expected ArrayRecord files; {e}. Correct the names.") from e
        try:
            self._source = array_record_data_source.ArrayRecordDataSource(list(files))
            self._count = len(self._source)
        except Exception as e:  # the library's errors are of many types
            raise UserError(f"Expected ArrayRecord files, {files[0]} ...; {e}. Correct the format or the names.") from e
        self._folder, self._name = os.path.dirname(files[0]), os.path.basename(files[0])
        self._fields = fields

    def __len__(self) -> int:
        return self._count

    def blocks(self) -> np.ndarray | None:
        return None

    def read(self, indices: np.ndarray) -> list[Record]:
        raw = self._source.__getitems__([int(i) for i in indices])
        return [
            parse_example(r, f"{self._name}:{i}", self._fields, self._folder) for r, i in zip(raw, indices, strict=True)
        ]


class ParquetTables:
    """Rows of Parquet files: the row groups of the current block are kept in memory, only some columns of them."""

    def __init__(
        self, files: Sequence[str], columns: Callable[[Sequence[str]], list[str]], settings: str, cache_dir: str
    ):
        """Args:
        files: local or remote.
        columns: given all columns of a file, returns those to read; it raises `UserError` where one is missing.
        settings: everything that `columns` depends on.
        cache_dir: see `shards.indexes`.
        """

        def scan(file: Any) -> shards.Index:
            from pyarrow import ArrowException, parquet

            try:
                metadata = parquet.read_metadata(file)
            except (ArrowException, OSError) as e:
                raise UserError(
                    f"Expected a Parquet file; {str(e).rstrip('.')}. Leave it out, or correct the format."
                ) from e
            columns(metadata.schema.to_arrow_schema().names)
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            return shard_index.Index(np.zeros(len(rows), np.int64), np.asarray(rows, np.int64))

        found = shards.indexes(files, scan, f"parquet {settings}", cache_dir)
        self._files = Places(files, [len(i.sizes) for i in found])
        self.blocks = np.concatenate([i.sizes for i in found])
        self._groups = Places(files, self.blocks.tolist() or [0])
        self._columns = columns
        self._tables: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._groups)

    def _table(self, group: int) -> Any:
        """One row group. Dropped are those longest unused, as far as two blocks of the order need them no more."""
        from pyarrow import parquet

        with self._lock:
            if group not in self._tables:
                which, number = self._files.find(group)
                with storage.open_file(self._files.files[which]) as file:
                    whole = parquet.ParquetFile(file)
                    columns = self._columns(whole.schema_arrow.names)
                    self._tables[group] = whole.read_row_group(number, columns=columns)
            self._tables.move_to_end(group)
            while len(self._tables) > 2 and sum(map(len, self._tables.values())) > 2 * schedule.WINDOW:
                self._tables.popitem(last=False)
            return self._tables[group]

    def row(self, index: int) -> tuple[str, str, dict[str, Any]]:
        """Returns what names a row, the folder of its file, and its columns."""
        group, row = self._groups.find(index)
        which, number = self._files.find(group)
        table = self._table(group)
        fields = {name: table.column(name)[row].as_py() for name in table.column_names}
        return f"{self._files.name(which, number)}:{row}", os.path.dirname(self._files.files[which]), fields


class ParquetReader:
    """Parquet files of captioned media."""

    left_out = 0

    def __init__(self, files: Sequence[str], fields: Fields, cache_dir: str):
        def columns(found: Sequence[str]) -> list[str]:
            for name in (fields.media_name, fields.caption_name):
                if name not in found:
                    near = ", ".join(trees.nearest(name, found))
                    raise UserError(f"Expected a column {name!r}; the nearest are {near}. Set its name.")
            return [fields.media_name, fields.caption_name]

        self._tables, self._fields = ParquetTables(files, columns, str(fields), cache_dir), fields

    def __len__(self) -> int:
        return len(self._tables)

    def blocks(self) -> np.ndarray | None:
        return self._tables.blocks

    def read(self, indices: np.ndarray) -> list[Record]:
        found = []
        for place, folder, values in (self._tables.row(int(i)) for i in indices):
            media, caption = values[self._fields.media_name], values[self._fields.caption_name]
            found.append(make_record(place, media, caption, folder))
        return found


def format_of(files: Sequence[str], format_: str = "auto") -> str:
    """Returns the format, told by the files' names unless it is given.

    Raises:
        UserError: the format is not known.
    """
    if format_ in FORMATS:
        return format_
    name = os.path.basename(files[0]).lower()
    found = [f for f in FORMATS if f in name or f.replace("_", "") in name.replace("_", "")]
    if format_ != "auto" or not found:
        raise UserError(
            f"Expected the format of {files[0]} to be one of {', '.join(FORMATS)}; found {format_!r}. Set `format`."
        )
    return found[0]


def open_files(patterns: str | Sequence[str], format_: str, fields: Fields, cache_dir: str) -> Reader:
    """Opens the files of a split.

    Raises:
        UserError: files are missing, of an unknown format, or have no record.
    """
    files = shards.expand(patterns)
    format_ = format_of(files, format_)
    if format_ == "array_record":
        reader: Reader = ArrayRecordReader(files, fields)
    elif format_ == "parquet":
        reader = ParquetReader(files, fields, cache_dir)
    else:
        reader = RangeReader(files, format_, fields, cache_dir)
    if not len(reader):
        raise UserError(
            f"Expected {fields.kind}s with captions in {files[0]}{' ...' if len(files) > 1 else ''}; found no record "
            f"that has both ({reader.left_out} without). Correct the files or the names of fields."
        )
    return reader
