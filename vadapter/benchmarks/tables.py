"""Tables with pictures in their cells: Parquet files of a hub, and tab-separated files with pictures in base64.

The texts of a table are read at once; the pictures of Parquet files one by one, when they are written.
"""

import base64
import binascii
import csv
import functools
import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from vadapter.base.errors import UserError
from vadapter.benchmarks import files
from vadapter.benchmarks.files import Picture
from vadapter.data.reading import storage

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_REFERENCE = 64  # letters: a shorter cell of VLMEvalKit's files names the row that has the picture


def shards(folder: epath.Path, pattern: str) -> list[epath.Path]:
    """Returns the files of a pattern such as `test-*.parquet`: in the folder itself, or in folders within it, as
    `data`.

    Raises:
        UserError: there is none, or one of several shards is missing.
    """
    found = sorted(folder.glob(pattern)) or sorted(folder.glob(f"*/{pattern}"))
    if not found:
        raise UserError(
            f"Expected the official file {pattern} in {folder} or in folders within it; found none. data/README.md "
            "says where it comes from; put it there, or correct manual_dir."
        )
    there: dict[tuple[str, str], set[str]] = {}
    for path in found:
        if match := _SHARD.search(path.name):
            there.setdefault((str(path.parent), match[2]), set()).add(match[1])
    for (place, total), numbers in there.items():
        if lost := sorted({f"{i:05}" for i in range(int(total))} - numbers):
            raise UserError(
                f"Expected {int(total)} shards of {pattern} in {place}; number {', '.join(lost[:5])} "
                f"{'is' if len(lost) == 1 else 'are'} missing. Download the folder again."
            )
    return found


# --- Parquet ----------------------------------------------------------------------------------------------------------


def read_parquet(
    path: epath.Path, needed: Sequence[str], others: Iterable[str] = (), pictures: Sequence[str] = ("image",)
) -> list[dict[str, Any]]:
    """Reads a Parquet file as a hub has it.

    Args:
        path: the file.
        needed, others: columns, as of `files.check_rows`.
        pictures: columns of pictures, each `struct<bytes, path>` or bytes. They may be absent.

    Returns:
        The rows. Under the name of a column of pictures is a `Picture`, or None for an empty cell; its name is to be
        changed.

    Raises:
        UserError: it is no Parquet file, is damaged, or lacks a column; or as `files.check_rows`.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with storage.open_file(str(path)) as file:
            table = parquet.ParquetFile(file)
            schema = table.schema_arrow
            _check_columns(path, schema, needed, pictures)
            shown = [name for name in pictures if name in schema.names]
            texts = [name for name in schema.names if name not in pictures]
            rows: list[dict[str, Any]] = []
            for group in range(table.num_row_groups):
                part = table.read_row_group(group, columns=texts).to_pylist()
                for name in shown:
                    for i, there in enumerate(_there(table, group, name)):
                        read = functools.partial(_cell, str(path), group, i, name)
                        part[i][name] = Picture(name, read) if there else None
                rows += part
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        if isinstance(e, UserError):
            raise
        raise UserError(f"Expected a Parquet file in {path}; {e}. Download it again.") from e
    return files.check_rows(path, rows, needed, [*others, *pictures])


def _check_columns(path: epath.Path, schema: Any, needed: Sequence[str], pictures: Sequence[str]) -> None:
    from pyarrow import types

    if lost := [name for name in needed if name not in schema.names]:
        raise UserError(
            f"Expected the columns {', '.join(needed)} in {path}; it has no {', '.join(lost)}, but "
            f"{', '.join(schema.names)}. It is another file than its name says."
        )
    for name in pictures:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        inside = {kind.field(i).name for i in range(kind.num_fields)} if types.is_struct(kind) else set()
        if not ("bytes" in inside or types.is_binary(kind) or types.is_large_binary(kind) or types.is_null(kind)):
            raise UserError(
                f"Expected pictures in the column {name} of {path}, as struct<bytes, path> or as bytes; found {kind}. "
                "Take the file that the hub has, with its pictures inside."
            )


def _there(table: Any, group: int, name: str) -> list[bool]:
    """Which cells of a column of pictures are not empty. Of a struct the paths tell it, so that no picture is read."""
    from pyarrow import types

    kind = table.schema_arrow.field(name).type
    leaf = f"{name}.path" if types.is_struct(kind) and any(f.name == "path" for f in kind.fields) else name
    return table.read_row_group(group, columns=[leaf]).column(0).is_valid().to_pylist()


@functools.lru_cache(maxsize=8)  # cells are read in their order
def _column(path: str, group: int, name: str) -> Any:
    from pyarrow import parquet

    with storage.open_file(path) as file:
        return parquet.ParquetFile(file).read_row_group(group, columns=[name]).column(0)


def _cell(path: str, group: int, row: int, name: str) -> bytes:
    value = _column(path, group, name)[row].as_py()
    return (value.get("bytes") if isinstance(value, dict) else value) or b""


# --- tab-separated, with base64 ---------------------------------------------------------------------------------------


def read_tsv(
    path: epath.Path, needed: Sequence[str], others: Iterable[str] = (), key: str = "index"
) -> list[dict[str, Any]]:
    """Reads a tab-separated file as VLMEvalKit's are, whose column `image` has pictures in base64.

    A short cell of `image` is the index of the row that has the picture.

    Args:
        path: the file.
        needed, others: columns, as of `files.check_rows`; `image` and the key are needed anyway.
        key: the column that names a row.

    Returns:
        The rows, without empty cells. `image` is a `Picture`, named by the row that has it.

    Raises:
        UserError: as `files.read_text` and `files.check_rows`; a picture is not base64, or the row that has it is
            missing.
    """
    text = files.read_text(path)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a picture is one cell
    try:
        table = list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    except csv.Error as e:
        raise UserError(f"Expected a tab-separated file in {path}; {e}. Download it again.") from e
    wide = next((i for i, row in enumerate(table) if None in row), None)
    if wide is not None:
        raise UserError(
            f"Expected as many cells as columns in each row of {path}; record {wide} has more. Download it again."
        )
    rows = [{name: cell for name, cell in row.items() if cell not in ("", None)} for row in table]
    rows = files.check_rows(path, rows, (key, "image", *needed), others)
    files.check_unique(path, (row[key] for row in rows), key)
    cells = {row[key]: row["image"] for row in rows}
    kept: dict[str, Picture] = {}
    for row in rows:
        owner, seen = row[key], set()
        while len(cells[owner]) <= _REFERENCE and owner not in seen and cells[owner] in cells:
            seen.add(owner)
            owner = cells[owner]
        if owner not in kept:
            kept[owner] = Picture(owner, functools.partial(bytes, _decoded(path, row[key], cells[owner])))
        row["image"] = kept[owner]
    return rows


def _decoded(path: epath.Path, row: str, cell: str) -> bytes:
    try:
        found = base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError) as e:
        raise UserError(
            f"Expected a picture in base64 in the column image of {path}, or the index of the row that has it; that "
            f"of row {row} is neither ({cell[:40]!r}...: {e}). The file is cut off or was edited: download it again."
        ) from e
    if len(cell) <= _REFERENCE:
        raise UserError(
            f"Expected a picture in base64 in the column image of {path}, or the index of the row that has it; row "
            f"{row} has {cell!r}, and there is no such row. Download the file again."
        )
    return found
