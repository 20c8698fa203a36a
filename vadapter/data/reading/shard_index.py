"""Where the records of a file lie: one pass over headers, which seeks over everything between them."""

import dataclasses
import io
import re
import struct
import tarfile
from collections.abc import Callable, Sequence

import google_crc32c
import numpy as np

from vadapter.base.errors import UserError

CHECKSUM_BYTES = 4  # of TFRecord, behind the content of a record
MAX_LINE_BYTES = 4 << 20
_NAMED_PROBLEMS = 20  # of a file, in its index
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the records of one file lie.

    Attributes:
        offsets: first byte of each record, int64 [n].
        sizes: bytes of each record, int64 [n]; rows of each row group for Parquet.
        left_out: records that are there and cannot be used.
        problems: what is wrong with some of them, by name.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    left_out: int = 0
    problems: tuple[str, ...] = ()


class _Builder:
    """Collects an index."""

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []
        self._left_out = 0
        self._problems: list[str] = []

    def add(self, offset: int, size: int) -> None:
        self._places.append((offset, size))

    def leave_out(self, what: str) -> None:
        self._left_out += 1
        if len(self._problems) < _NAMED_PROBLEMS:
            self._problems.append(what)

    def done(self) -> Index:
        places = np.asarray(self._places, np.int64).reshape(-1, 2)
        return Index(places[:, 0].copy(), places[:, 1].copy(), self._left_out, tuple(self._problems))


def _size(file: io.BufferedReader) -> int:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    return size


def _refuse_compressed(file: io.BufferedReader) -> None:
    start = file.read(2)
    file.seek(0)
    if start in _COMPRESSED:
        raise UserError(
            f"Expected an uncompressed file, which can be read at random; it is compressed by {_COMPRESSED[start]}. "
            "Decompress it: images and videos hardly shrink."
        )


def index_tar(file: io.BufferedReader, is_complete: Callable[[Sequence[str]], str]) -> Index:
    """Finds the samples of a WebDataset: members in a row whose names are equal up to the first dot of the file name.

    Nothing is ever written under a member's name; still, links, devices, and members whose names point outside of the
    folder (absolute, or with `..`) are refused, and their samples with them. Of a truncated file what is whole is kept.

    Args:
        file: an uncompressed tar file.
        is_complete: given the names of a sample's members, says what is wrong with it, or nothing.

    Raises:
        UserError: not a tar file, or a compressed one.
    """
    _refuse_compressed(file)
    found, size = _Builder(), _size(file)
    key: str | None = None
    names: list[str] = []
    refused, start, end = "", 0, 0

    def close_sample() -> None:
        if names and (wrong := refused or is_complete(names)):
            found.leave_out(f"{key}: {wrong}")
        elif names:
            found.add(start, end - start)

    try:
        archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 its file belongs to the caller
    except tarfile.ReadError as e:
        if not size:
            raise UserError("Expected a tar file; it is empty. Leave it out.") from e
        raise UserError(f"Expected a tar file; {e}. Leave it out, or correct the format.") from e
    try:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined] or it remembers them all
            if member.isdir() or member.name.replace("\\", "/").rpartition("/")[2].startswith("."):
                continue
            if sample_key(member.name) != key:
                close_sample()
                key, names, refused, start = sample_key(member.name), [], "", member.offset
            names.append(member.name)
            end = member.offset_data + member.size
            refused = refused or _refusal(member, end, size)
    except tarfile.TarError:
        pass  # truncated or damaged: said below
    close_sample()
    file.seek(archive.offset)
    if file.read(512) != bytes(512):  # a whole file ends with blocks of zeros
        found.leave_out(f"(the rest): damaged or truncated after {min(archive.offset, size)} of {size} bytes")
    return found.done()


def _refusal(member: tarfile.TarInfo, end: int, size: int) -> str:
    name = member.name.replace("\\", "/")
    if name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:", name):
        return f"the member {member.name!r} points outside of the folder"
    if not member.isreg() or member.issparse():
        return f"the member {member.name!r} is a link or no ordinary file"
    return f"the file ends within the member {member.name!r}" if end > size else ""


def sample_key(name: str) -> str:
    """Returns a member's name up to the first dot of its last part."""
    folder, _, last = name.rpartition("/")
    return f"{folder}/{last.split('.')[0]}" if folder else last.split(".")[0]


def index_tfrecord(file: io.BufferedReader) -> Index:
    """Finds the records of a TFRecord file. Checksums of lengths are tested here, those of contents in reading.

    Raises:
        UserError: a compressed file.
    """
    _refuse_compressed(file)
    found, size = _Builder(), _size(file)
    at = 0
    while at < size:
        head = file.read(12)
        length, checksum = struct.unpack("<QI", head) if len(head) == 12 else (0, 0)
        if len(head) < 12 or masked_crc32c(head[:8]) != checksum or at + 16 + length > size:
            found.leave_out(f"(the rest): damaged or truncated after {at} of {size} bytes")
            break
        found.add(at + 12, length)
        at += 16 + length
        file.seek(at)
    return found.done()


def masked_crc32c(data: bytes) -> int:
    """Returns TFRecord's checksum: CRC-32C, rotated by 15 bits plus a constant."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def is_whole(record: bytes) -> bool:
    """Whether the content of a TFRecord's record is that of the checksum behind it, both together `record`."""
    content, checksum = record[:-CHECKSUM_BYTES], record[-CHECKSUM_BYTES:]
    return masked_crc32c(content) == int.from_bytes(checksum, "little")


def _behind_line(file: io.BufferedReader, line: bytes) -> int:
    """Reads on to the end of a line, and returns where the next begins."""
    while line and not line.endswith(b"\n"):
        line = file.readline(1 << 20)
    return file.tell()


def index_lines(file: io.BufferedReader, check: Callable[[bytes], str | None]) -> Index:
    """Finds the lines of a text file that are not blank. `check` says what is wrong with one; None passes it over."""
    found, at = _Builder(), 0
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
        if len(line) > MAX_LINE_BYTES:
            found.leave_out(f"line {number}: more than {MAX_LINE_BYTES} bytes")
            at = _behind_line(file, line)
            continue
        if line.strip():
            wrong = check(line)
            if wrong:
                found.leave_out(f"line {number}: {wrong}")
            elif wrong is not None:
                found.add(at, len(line))
        at += len(line)
    return found.done()
