"""A user's own JSONL files of images and videos with captions or questions."""

import dataclasses
import functools
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote, relative, resolve
from vadapter.data.reading import contents, storage
from vadapter.data.reading.records import Record, RecordSource, clean, text_of, without_nulls

MEDIA_KEYS = ("image", "video")
_KNOWN = {*MEDIA_KEYS, "caption", "question", "answers", "id"}


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
    ):
        """Args:
        lines: of each split, from `read_splits`: those of the kind are taken.
        media: image or video.
        question: whether the records ask something.
        name: of the file, for messages.
        threads, resize, frame_sampling: see `RandomAccessSource`.
        """
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


def read_splits(
    train: str, validation: str | None = None, *, holdout: float = 0.05, max_bad_share: float = 0.01
) -> dict[str, Sequence[Line]]:
    """Reads a user's JSONL files.

    Args:
        train: the file to train on.
        validation: the file to evaluate on. Without, the share `holdout` of the media of `train`, chosen by a hash of
            the file's name, is held out, so that no image is in both splits.
        holdout: see `validation`.
        max_bad_share: share of the lines that may be bad, see `read_jsonl`.

    Raises:
        UserError: as `read_jsonl`.
    """
    lines = read_jsonl(train, max_bad_share)
    if validation:
        return {"train": lines, "validation": read_jsonl(validation, max_bad_share)}
    kept, held = _hold_out(lines, holdout)
    return {"train": kept, "validation": held}


def _hold_out(lines: Sequence[Line], share: float) -> tuple[list[Line], list[Line]]:
    """Splits by a hash of the medium. Both parts have an image where there are two, and so with videos."""
    held: set[tuple[str, str]] = set()
    for kind in MEDIA_KEYS:
        media = sorted(
            {line.record.path for line in lines if line.media == kind},
            key=lambda path: zlib.crc32(Path(path).name.encode()),
        )
        count = min(max(round(share * len(media)), 1), len(media) - 1) if share > 0 and media else 0
        held |= {(kind, path) for path in media[:count]}
    parts: tuple[list[Line], list[Line]] = ([], [])
    for line in lines:
        parts[(line.media, line.record.path) in held].append(line)
    return parts


def read_jsonl(path: str, max_bad_share: float = 0.01) -> Sequence[Line]:
    """Reads and checks a JSONL file of media with captions or questions.

    A line is `{"image" or "video": path relative to the file, "caption": text or list of texts}` or
    `{"image" or "video": path, "question": text, "answers": list of texts}`, with an optional `"id"`. A field that is
    null is absent, and a number is its text. Files and media may lie at an address such as gs://bucket/photos. Lines of
    another form are left out and named in the log, once a process however often the file is asked for.

    Raises:
        UserError: no such file, nothing in it, or more than `max_bad_share` of its lines are bad.
    """
    file = path if is_remote(path) else str(Path(path).expanduser().resolve())
    try:
        good, bad = _read(file, storage.version(file))
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Expected a JSONL file in UTF-8 at {file}; {e}. Correct the path or the file.") from e
    if not good or len(bad) > max_bad_share * (len(good) + len(bad)):
        raise UserError(
            f"Expected in {file} lines of the form {{'image' or 'video': path, 'caption': text}} or {{'image' or "
            f"'video': path, 'question': text, 'answers': [texts]}}; found {len(good)} such lines and {len(bad)} others"
            + (f", first {'; '.join(bad[:3])}" if bad else "")
            + f". Correct them, or allow a larger share than {max_bad_share:.1%} (max_bad_share)."
        )
    return good


@functools.lru_cache(maxsize=16)  # files; the tasks of a run open the same ones again and again
def _read(file: str, version: tuple[int, int]) -> tuple[Sequence[Line], Sequence[str]]:
    """Returns the good lines, and what is wrong with the bad ones. `version` is that of the file."""
    del version
    folder, name = os.path.split(file)
    good, bad, unknown = [], [], set()
    for number, text in enumerate(storage.read_file(file).decode("utf-8-sig").split("\n"), 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
            good.append(_line(fields, f"{name}:{number}", folder))
        except ValueError as e:
            bad.append(f"{name}:{number}: {e}")
            logging.warning("left out %s/%s", folder, bad[-1])
            continue
        unknown |= set(fields) - _KNOWN
    if unknown:
        logging.warning("%s: fields that are not used: %s", file, ", ".join(sorted(unknown)))
    return tuple(good), tuple(bad)


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
    record = Record(clean(str(line.get("id", place))), path=resolve(line[media[0]], folder))
    if "caption" in line:
        return Line(dataclasses.replace(record, captions=_texts(line, "caption")), media[0], asks=False)
    if "answers" not in line:
        raise ValueError(f"has 'question' but no 'answers'{_hint(line)}")
    if not isinstance(line["question"], str) or not line["question"].strip():
        raise ValueError("'question' is empty or not text")
    question, answers = clean(line["question"]), _texts(line, "answers")
    return Line(dataclasses.replace(record, question=question, answers=answers), media[0], asks=True)


def _hint(line: dict) -> str:
    unknown = sorted(set(line) - _KNOWN)
    return (
        f" (found {', '.join(f'{k!r}, near {trees.nearest(k, _KNOWN, 1)[0]!r}' for k in unknown)})" if unknown else ""
    )
