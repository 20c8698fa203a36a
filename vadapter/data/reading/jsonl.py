"""A user's own JSONL files of images and videos with captions or questions."""

import dataclasses
import functools
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vadapter.base import json_text, trees
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote, relative, resolve
from vadapter.data.reading import contents, media_folders, storage
from vadapter.data.reading.media_folders import MediaFolders
from vadapter.data.reading.records import Record, RecordSource, clean, id_of, text_of, without_nulls
from vadapter.data.reading.shard_index import MAX_LINE_BYTES

MEDIA_KEYS = ("image", "video")
_TALK = {"conversations", "messages"}
_KNOWN = {*MEDIA_KEYS, "caption", "question", "answers", "type", "id"}
_SHOWN = 500  # characters of what is wrong with a line
_FIELDS_SHOWN = 10
_FOLDERS_SHOWN = 5
_BAD_NAMED = 20  # lines of a file in the log
SETTING = "jsonl_task.media_folders"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a JSONL file: a record, and its kind.

    Attributes:
        record: with the whole path of its medium.
        media: image or video.
        asks: whether it is a question.
    """

    record: Record
    media: str
    asks: bool


class JsonlSource(RecordSource):
    """Records of one kind in JSONL files: (image or video) x (caption or question)."""

    def __init__(
        self,
        lines: Mapping[str, Sequence[Line]],
        *,
        media: str,
        question: bool,
        name: str = "",
        threads: int = 1,
        resize: str | None = None,
        frame_sampling: str = "uniform",
        folders: MediaFolders | None = None,
    ):
        """Args:
        lines: of each split, from `read_splits`: those of the kind are taken.
        media: image or video.
        question: whether the records ask something.
        name: of the file, for messages.
        threads, resize, frame_sampling: see `RandomAccessSource`.
        folders: that media may lie in; None is any.
        """
        self.folders = folders
        self.media, self.threads, self.resize, self.frame_sampling = media, threads, resize, frame_sampling
        found = {s: [x.record for x in some if (x.media, x.asks) == (media, question)] for s, some in lines.items()}
        self._records = {split: records for split, records in found.items() if records}
        self._name = f"{name}, {media} {'question' if question else 'caption'}"
        self._folder = os.path.dirname(name if is_remote(name) else os.path.abspath(os.path.expanduser(name)))
        self.splits = tuple(self._records)

    def __str__(self) -> str:
        return f"JsonlSource({self._name})"

    def num_examples(self, split: str) -> int:
        return len(self._records[split])

    def read(self, split: str, indices: np.ndarray) -> list[Record]:
        return [self._records[split][int(i)] for i in indices]

    def fingerprint(self, split: str) -> str:
        """Covers texts and the names of media, relative to the file; pictures are not read."""
        return contents.of_values(
            (relative(r.path, self._folder), r.captions, r.question, r.answers) for r in self._records[split]
        )


def folders_of(files: Sequence[str | None], others: Sequence[str] | str = ()) -> MediaFolders:
    """Returns the folders that media of JSONL files may lie in: those of the files, and `others`."""
    return MediaFolders.of([_place(file) for file in files if file], others, SETTING)


def _place(file: str) -> str:
    return file if is_remote(file) else str(Path(file).expanduser().resolve())


def read_splits(
    train: str,
    validation: str | None = None,
    *,
    holdout: float = 0.05,
    max_bad_share: float = 0.01,
    folders: MediaFolders | None = None,
) -> dict[str, Sequence[Line]]:
    """Reads a user's JSONL files.

    Args:
        train: the file to train on.
        validation: the file to evaluate on. Without, the share `holdout` of the media of `train`, chosen by a hash of
            the file's name, is held out, so that no image is in both splits.
        holdout: see `validation`.
        max_bad_share: share of the lines that may be bad, see `read_jsonl`.
        folders: that media may lie in; default those of the two files.

    Raises:
        UserError: as `read_jsonl`.
    """
    folders = folders or folders_of([train, validation])
    lines = read_jsonl(train, max_bad_share, folders)
    if validation:
        return {"train": lines, "validation": read_jsonl(validation, max_bad_share, folders)}
    kept, held = _hold_out(lines, holdout)
    return {"train": kept, "validation": held}


def _hold_out(lines: Sequence[Line], share: float) -> tuple[list[Line], list[Line]]:
    """Splits by a hash of the medium. Both parts have an image where there are two, and so with videos."""
    held: set[tuple[str, str]] = set()
    for kind in MEDIA_KEYS:
        media = sorted(
            {line.record.path for line in lines if line.media == kind},
            key=lambda path: zlib.crc32(Path(path).name.encode(errors="surrogatepass")),
        )
        count = min(max(round(share * len(media)), 1), len(media) - 1) if share > 0 and media else 0
        held |= {(kind, path) for path in media[:count]}
    parts: tuple[list[Line], list[Line]] = ([], [])
    for line in lines:
        parts[(line.media, line.record.path) in held].append(line)
    return parts


def read_jsonl(path: str, max_bad_share: float = 0.01, folders: MediaFolders | None = None) -> Sequence[Line]:
    """Reads and checks a JSONL file of media with captions or questions.

    A line is `{"image" or "video": path relative to the file, "caption": text or list of texts}` or
    `{"image" or "video": path, "question": text, "answers": list of texts}`, with an optional `"id"`, and an optional
    `"type"` of a question, by which its answers are scored too. A field that is null is absent, and a number is its
    text. Files and media may lie at an address such as gs://bucket/photos. Lines of another form, of more than
    `MAX_LINE_BYTES`, or with media outside of `folders` are left out and named in the log, once a process however often
    the file is asked for.

    Args:
        path: the file.
        max_bad_share: share of the lines that may be left out.
        folders: that media may lie in; default the file's own.

    Raises:
        UserError: no such file, nothing in it, or more than `max_bad_share` of its lines are bad.
    """
    file = _place(path)
    try:
        good, bad, outside = _read(file, storage.version(file), folders or folders_of([path]))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Expected a JSONL file in UTF-8 at {file}; {e}. Correct the path or the file.") from e
    if good and len(bad) <= max_bad_share * (len(good) + len(bad)):
        return good
    if outside and 2 * len(outside) > len(bad):
        allowed = media_folders.holding(outside)[:_FOLDERS_SHOWN]
        raise UserError(
            f"Expected the media of {file} in its folder, {os.path.dirname(file)}; {len(outside)} of "
            f"{len(good) + len(bad)} lines name others, such as {outside[0]}. If you trust the file, allow their "
            f'folders with the setting {SETTING} = {allowed}, as a flag --gin.{SETTING}="{allowed}"; otherwise '
            "correct the paths."
        )
    raise UserError(
        f"Expected in {file} lines of the form {{'image' or 'video': path, 'caption': text}} or {{'image' or "
        f"'video': path, 'question': text, 'answers': [texts]}}; found {len(good)} such lines and {len(bad)} others"
        + (f", first {'; '.join(bad[:3])}" if bad else "")
        + f". Correct them, or allow a larger share than {max_bad_share:.1%} (max_bad_share)."
    )


@functools.lru_cache(maxsize=16)  # files; the tasks of a run open the same ones again and again
def _read(
    file: str, version: tuple[int, int], folders: MediaFolders
) -> tuple[Sequence[Line], Sequence[str], Sequence[str]]:
    """Returns the good lines, what is wrong with the bad ones, and the media of those that lie outside of `folders`."""
    del version
    folder, name = os.path.split(file)
    good, bad, outside, unknown = [], [], [], set()
    for number, text in _lines(file):
        try:
            fields = json_text.loads(text)
            line = _line(fields, f"{name}:{number}", folder)
            if refusal := folders.refusal(line.record.path):
                outside.append(line.record.path)
                raise ValueError(refusal)
        except UnicodeDecodeError:
            raise
        except (ValueError, RecursionError) as e:
            bad.append(f"{name}:{number}: {e}"[:_SHOWN])
            if len(bad) <= _BAD_NAMED:
                logging.warning("left out %s/%s", folder, bad[-1])
            continue
        good.append(line)
        if len(unknown) < _FIELDS_SHOWN:
            unknown |= set(fields) - _KNOWN if line.asks else set(fields) - _KNOWN | {"type"} & set(fields)
    if len(bad) > _BAD_NAMED:
        logging.warning("left out %d more lines of %s", len(bad) - _BAD_NAMED, file)
    if unknown:
        logging.warning(
            "%s: fields that are not used: %s", file, ", ".join(sorted(name[:80] for name in unknown)[:_FIELDS_SHOWN])
        )
    return tuple(good), tuple(bad), tuple(outside)


def _lines(file: str) -> Iterator[tuple[int, str]]:
    """Yields the lines that are not blank with their numbers. One that is too long is cut, and so no JSON."""
    with storage.open_file(file) as content:
        number = 0
        while line := content.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES and b"\0" in line:
                raise OSError(f"line {number} has NUL bytes, so it is no text")
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = content.readline(1 << 20)
                yield number, f"(more than {MAX_LINE_BYTES} bytes)"
            elif line.strip():
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")


def _texts(line: dict, key: str) -> tuple[str, ...]:
    values = line[key] if isinstance(line[key], list) else [line[key]]
    texts = tuple(map(text_of, values))
    if not texts or not all(texts):
        raise ValueError(f"{key!r} is empty or not text")
    return texts


def _line(fields: Any, place: str, folder: str) -> Line:
    """Checks a line. Raises ValueError saying what is wrong."""
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    line = without_nulls(fields)
    media = [k for k in MEDIA_KEYS if k in line]
    if len(media) != 1 or not isinstance(line[media[0]], str) or not line[media[0]]:
        raise ValueError(f"needs one of 'image' and 'video' with a path{_hint(line)}")
    if ("caption" in line) == ("question" in line):
        raise ValueError(f"needs either 'caption' or 'question' with 'answers'{_hint(line)}")
    record = Record(id_of(line.get("id", place)), path=resolve(line[media[0]], folder))
    if "caption" in line:
        return Line(dataclasses.replace(record, captions=_texts(line, "caption")), media[0], asks=False)
    if "answers" not in line:
        raise ValueError(f"has 'question' but no 'answers'{_hint(line)}")
    if not isinstance(line["question"], str) or not line["question"].strip():
        raise ValueError("'question' is empty or not text")
    asked = {"question": clean(line["question"]), "answers": _texts(line, "answers"), "question_type": _type(line)}
    return Line(dataclasses.replace(record, **asked), media[0], asks=True)


def _type(line: dict) -> str:
    found = text_of(line.get("type", ""))
    if not found and line.get("type", "") != "":
        raise ValueError("'type' is not text")
    return found


def _hint(line: dict) -> str:
    if talk := sorted(_TALK & line.keys()):
        return f" (found {talk[0]!r}: a conversation, which chat_task reads, with data/chat.gin for data/jsonl.gin)"
    unknown = sorted(name[:80] for name in set(line) - _KNOWN)[:_FIELDS_SHOWN]
    return (
        f" (found {', '.join(f'{k!r}, near {trees.nearest(k, _KNOWN, 1)[0]!r}' for k in unknown)})" if unknown else ""
    )
