"""JSONL for `vadapter infer`: records to ask about, and an output that an interrupted command goes on with."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from vadapter.base import json_text, local_files
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.runs.many import Item

_LONGEST = 1 << 26  # bytes of a line, which may have pictures as data: URLs
_MEDIA = ("image", "video")
# Those of training, such as answers, may stand in the same file.
_KNOWN = {*_MEDIA, "id", "question", "prompt", "messages", "images", "videos", "caption", "answers", "type"}
_NAMES_SHOWN = 10


def read(path: str) -> list[tuple[dict[str, Any], Item]]:
    """Reads records, one JSON object a line: `image` or `video`, and if wanted `question`, `prompt` and `id`; or a
    conversation, `messages` that end with the user's, and if wanted `images`, `videos` and `id`.

    Paths of media are relative to the file, those of stdin to the working directory.

    Args:
        path: of the file; `-` is stdin.

    Returns:
        Of each line that is not empty what names it in the output, and what is asked.

    Raises:
        UserError: the file cannot be read, or has no records.
    """
    try:
        lines = sys.stdin.buffer.read() if path == "-" else local_files.read_bytes(path)
    except OSError as e:
        raise UserError(f"Expected a JSONL file in --jsonl; {e}. Correct it.") from e
    folder = "" if path == "-" else os.path.dirname(path)
    unknown: set[str] = set()
    found = [_record(line, i, folder, unknown) for i, line in enumerate(lines.split(b"\n"), 1) if line.strip()]
    if not found:
        raise UserError(f"{'stdin' if path == '-' else path} of --jsonl has no records. Write one JSON object a line.")
    if unknown:
        names = ", ".join(name[:80] for name in sorted(unknown)[:_NAMES_SHOWN])
        logging.warning("%s: fields that are not used: %s", "stdin" if path == "-" else path, names)
    return found


def _record(line: bytes, number: int, folder: str, unknown: set[str]) -> tuple[dict[str, Any], Item]:
    names: dict[str, Any] = {"line": number}
    try:
        if len(line) > _LONGEST:
            raise ValueError(f"it has {len(line)} bytes, and {_LONGEST} are allowed")
        record = json.loads(line.decode())
        if not isinstance(record, dict):
            raise ValueError(f"expected an object, found {type(record).__name__}")
        record = {key: value for key, value in record.items() if value is not None}
        names |= {k: record[k] for k in ("id", *_MEDIA, "question") if isinstance(record.get(k), str | int)}
        if "conversations" in record and not record.keys() & {"messages", "question"}:
            raise ValueError('"conversations" is a layout of training data; write "messages" that end with a question')
        if len(unknown) < _NAMES_SHOWN:
            unknown |= record.keys() - _KNOWN
        if "messages" in record:
            return names, Item(chat=_chat(record), folder=folder, own=True)
        media = [record[key] for key in _MEDIA if key in record]
        if len(media) != 1 or not isinstance(media[0], str):
            raise ValueError('expected one path in "image" or "video"')
        for key in ("question", "prompt"):
            if key in record and (not isinstance(record[key], str) or not record[key].strip()):
                raise ValueError(f"{key} is {record[key]!r:.80}; expected a text")
    except (ValueError, RecursionError) as e:  # a decoding error is a ValueError
        return names, Item(error=f"Line {number} is no record ({str(e)[:200]}). Correct it.", own=True)
    path = media[0] if is_remote(media[0]) else os.path.join(folder, media[0])
    return names, Item(path, record.get("question"), record.get("prompt"), own=True)


def _chat(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that is a conversation."""
    if others := sorted(record.keys() & {*_MEDIA, "question", "prompt"}):
        raise ValueError(f'"messages" and "{others[0]}" do not go together: put it into a turn')
    if not isinstance(record["messages"], list) or not record["messages"]:
        raise ValueError("messages is no list of turns")
    return {key: record[key] for key in ("messages", "images", "videos") if key in record}


class Output:
    """A JSONL file that grows by one object a record. What a former command wrote to it stands.

    Attributes:
        done: records that it has.
        failed: places of those among them that have an error.
    """

    def __init__(self, path: str, names: list[dict[str, Any]]):
        """Opens it; a last line that was cut is dropped.

        Args:
            path: of the file.
            names: of all records, in order.

        Raises:
            UserError: it cannot be written, or holds the results of other records.
        """
        self._path, self._names = path, names
        self.failed: list[int] = []
        try:
            before = local_files.read_bytes(path) if os.path.lexists(path) else b""
            whole = before[: before.rfind(b"\n") + 1]
            self.done = self._count(whole)
            self._file: TextIO = open(path, "r+" if before else "w", encoding="utf-8")  # noqa: SIM115
            self._file.truncate(len(whole))
            self._file.seek(0, os.SEEK_END)
        except OSError as e:
            raise UserError(f"The file {path} of --out cannot be written ({e}). Give another.") from e

    def _count(self, written: bytes) -> int:
        lines = written.split(b"\n")[:-1]
        for i, line in enumerate(lines):
            found = None
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(line.decode())
            expected = self._names[i] if i < len(self._names) else None
            if not isinstance(found, dict) or expected is None or any(found.get(k) != v for k, v in expected.items()):
                raise UserError(
                    f"Line {i + 1} of {self._path} is no result of "
                    f"{'record ' + str(i + 1) if expected else 'these records, of which there are fewer'}. Give --out "
                    "another file, or remove this one to begin anew."
                )
            if "error" in found:
                self.failed.append(i)
        return len(lines)

    def write(self, result: dict[str, Any]) -> None:
        """Adds a line, at once on disk."""
        self._file.write(json_text.line(result))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def shown(results: Iterable[Any], total: int, done: int) -> Iterator[Any]:
    """Passes results on, with a progress bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import track

    yield from track(results, "infer", total=total, completed=done, console=Console(stderr=True))
