"""One record of a user's own files, and the sources of such records."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vadapter.base import terminal
from vadapter.base.paths import is_remote
from vadapter.data.reading import images, storage, video
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.media_folders import MediaFolders
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.rows.sizes import Shape

MAX_REMOTE_BYTES = 1 << 30  # of a video, which is read whole
_SEVERAL = "has {} images or videos, and a record of pairs has one; chat_task reads rows of several"


@dataclasses.dataclass(frozen=True)
class Record:
    """One record.

    Attributes:
        id: names it: file and key, number, line or row.
        media: an encoded file, or encoded frames.
        path: of the medium, where it lies outside of the record.
        captions: at least one where it is no question and there is no error.
        question: what is asked.
        answers: to the question.
        question_type: what results are told apart by, or empty.
        error: why it cannot be used.
    """

    id: str
    media: tuple[bytes, ...] = ()
    path: str = ""
    captions: tuple[str, ...] = ()
    question: str = ""
    answers: tuple[str, ...] = ()
    question_type: str = ""
    error: str = ""


class RecordSource(RandomAccessSource):
    """A source of `Record`s. What remains is `num_examples` and `read`.

    Attributes:
        folders: that files named by records may lie in; None is any.
    """

    folders: MediaFolders | None = None

    def features(self, record: Record) -> dict[str, Any]:
        lists = {"captions": list(record.captions), "answers": list(record.answers)}
        texts = {"question": record.question, "question_type": record.question_type}
        return {"id": record.id, "path": record.path, **texts, **lists}

    def read_media(self, record: Record, shape: Shape, choice: int = 0) -> np.ndarray:
        media = self.contents(record)
        if self.media == "image":
            if len(media) != 1:
                raise MediaError(_SEVERAL.format(len(media)))
            (picture,) = media
            return images.decode(picture, shape[2], self.resize)[None, None]
        if len(media) > 1:
            return video.from_images(media, shape[1], shape[2], self.resize, self.frame_sampling, choice)[None]
        source = media[0] if media else record.path
        return video.decode(source, shape[1], shape[2], self.resize, self.frame_sampling, choice)[None]

    def contents(self, record: Record) -> list[bytes]:
        """The encoded file, or encoded frames; none of a local video, which is read in parts."""
        if record.error:
            raise MediaError(record.error)
        if record.path and self.folders is not None:
            self.folders.check(record.path)
        if record.path and (self.media == "image" or is_remote(record.path)):
            return [storage.read_file(record.path, images.MAX_BYTES if self.media == "image" else MAX_REMOTE_BYTES)]
        return list(record.media)

    def medium(self, record: Record) -> Medium:
        if record.path and not record.media:
            try:
                if self.folders is not None:
                    self.folders.check(record.path)
            except MediaError:
                return Medium(None, record.path)
            return Medium.of_file(record.path)
        return Medium.of_bytes(record.media)


def clean(text: str) -> str:
    """Returns text that can be encoded: U+FFFD for halves of surrogate pairs, which JSON can name."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def id_of(value: Any) -> str:
    """Returns a record's id as a line that can be printed: without control characters, see `terminal.line`."""
    return terminal.line(clean(str(value)))


def text_of(value: Any) -> str:
    """Returns the text of a field, without outer spaces: a number is its text. "" of what is none."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    return clean(value).strip() if isinstance(value, str) else ""


def without_nulls(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object without the fields that are null: tables write absent values so."""
    return {key: value for key, value in line.items() if value is not None}


def make_record(id_: str, media: Any, captions: Any, folder: str) -> Record:
    """Makes a record of values as they come: one or several, bytes or text."""
    values = captions if isinstance(captions, list | tuple) else [captions]
    texts = tuple(text for text in map(text_of, values) if text)
    parts = [_content(part) for part in (media if isinstance(media, list | tuple) else [media])]
    parts = [part for part in parts if part]
    id_ = id_of(id_)
    if not parts:
        return Record(id_, captions=texts, error="has no image or video")
    if not texts:
        return Record(id_, error="has no caption")
    if isinstance(parts[0], str):
        if len(parts) > 1:
            return Record(id_, captions=texts, error=_SEVERAL.format(len(parts)))
        if "://" in parts[0] and parts[0].startswith("http"):
            return Record(
                id_, captions=texts, error=f"has the address {parts[0][:200]} instead of a file: download it first"
            )
        return Record(id_, path=os.path.join(folder, parts[0]), captions=texts)
    return Record(id_, tuple(parts), captions=texts)


def _content(part: Any) -> Any:
    """Bytes or a path; of a struct of both, as Hugging Face datasets keep images, what it has."""
    return part.get("bytes") or part.get("path") if isinstance(part, Mapping) else part
