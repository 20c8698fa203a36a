"""Conversations: the turns of a chat with the media that stand among them, in the layouts that people publish.

- `messages`: a list of `role` and `content`, which is a text or parts of the types text, image_url, image, video and
  video_url (OpenAI, TRL);
- the same with `images` and `videos`, whose places `<image>` and `<video>` in the text are (LLaMA-Factory);
- `conversations`: a list of `from` and `value`, and `image`, `images`, `video` or `videos` (LLaVA);
- `texts`: a list of `user` and `assistant`, and `images` (the_cauldron, FineVision).

All become one form: a `Conversation`.
"""

import base64
import binascii
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vadapter.base.paths import is_remote, resolve
from vadapter.data.reading.records import clean, id_of
from vadapter.data.rows.prompts import OBJECT

MARK = OBJECT  # stands in a turn's text where a medium goes
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
COLUMNS = ("id", "messages", "conversations", "texts", "image", "images", "video", "videos")
_ROLES = {SYSTEM: SYSTEM, "developer": SYSTEM, USER: USER, "human": USER, ASSISTANT: ASSISTANT, "gpt": ASSISTANT}
_ROLES |= {"model": ASSISTANT, "chatgpt": ASSISTANT, "bot": ASSISTANT}
_MARKS = re.compile("<(image|video)>")
_TEXT_PARTS = ("text", "input_text", "output_text")
_KINDS = {"image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video"}
_SHOWN = 80  # characters of a value in a message


@dataclasses.dataclass(frozen=True)
class File:
    """An image or a video.

    Attributes:
        kind: image or video.
        path: where it lies; "" where its content is here.
        content: the encoded file.
        grid: columns and rows of the tiles that an image stands for, which follow it; None is the whole.
    """

    kind: str
    path: str = ""
    content: bytes = b""
    grid: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The turns of a chat.

    Attributes:
        id: names it.
        turns: (role, text): at first maybe `system`, then `user` and `assistant` in turn. A `MARK` is a medium's place.
        media: in the order of their marks.
        error: why it cannot be used; "" for a good one.
    """

    id: str
    turns: tuple[tuple[str, str], ...] = ()
    media: tuple[File, ...] = ()
    error: str = ""

    def first_media(self) -> int:
        """Returns the number of media in the first question: a row cannot do with less."""
        return sum(text.count(MARK) for role, text in self.turns[:2] if role == USER) if self.turns else 0


def layout_of(fields: Mapping[str, Any]) -> str:
    """Returns the layout of a record, for people; "" where it is none of those above."""
    if fields.get("messages") is not None:
        media = [name for name in ("images", "videos") if fields.get(name) is not None]
        return " + ".join(["messages", *media]) + (" (OpenAI)" if not media else " (LLaMA-Factory, TRL)")
    if fields.get("conversations") is not None:
        return "conversations (LLaVA)"
    return "images + texts (the_cauldron, FineVision)" if fields.get("texts") is not None else ""


def parse(fields: Any, place: str, folder: str, members: Mapping[str, bytes] | None = None) -> Conversation:
    """Makes a conversation of a record as it is published.

    Args:
        fields: the record, as JSON or Parquet have it.
        place: names it where it has no id.
        folder: that paths are relative to.
        members: media that lie beside the record in its tar file, by name. Where the record names none of its own,
            they are its media, in their order.

    Returns:
        The conversation. One that cannot be used says why in `error`.
    """
    try:
        if not isinstance(fields, Mapping):
            raise ValueError("is not an object with fields")
        found = _Parser(fields, folder, dict(members or {}))
        turns = found.turns()
        if found.given and not found.marks:  # media without any mark come first, as the_cauldron has them
            turns, found.placed = _in_front(turns, len(found.given)), found.given
        elif not found.marks == found.count == len(found.placed):
            raise ValueError(
                f"has {found.marks} places for images and videos in its turns, and {found.count} images and videos"
            )
        _check_order(turns)
        name = fields.get("id")
        name = id_of(name) if isinstance(name, str | int) and str(name) else place
        return Conversation(name if name == place else f"{place} ({name})", tuple(turns), tuple(found.placed))
    except ValueError as e:
        return Conversation(place, error=str(e))


def _in_front(turns: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """Puts the marks of media that stand nowhere before the first question, each in a line of its own."""
    for i, (role, text) in enumerate(turns):
        if role == USER:
            return [*turns[:i], (role, f"{MARK}\n" * count + text if text else MARK * count), *turns[i + 1 :]]
    return turns


def _check_order(turns: Sequence[tuple[str, str]]) -> None:
    """Raises ValueError unless questions and answers take turns, and none is empty."""
    asked = turns[1:] if turns and turns[0][0] == SYSTEM else turns
    if not asked:
        raise ValueError("has no turns of a user and an assistant")
    for i, (role, text) in enumerate(asked):
        expected = (USER, ASSISTANT)[i % 2]
        if role != expected:
            raise ValueError(f"turn {i + 1} is the {role}'s, and the {expected}'s was expected")
        if not text.strip():
            raise ValueError(f"turn {i + 1}, the {role}'s, is empty")
        if role == ASSISTANT and MARK in text:
            raise ValueError(f"turn {i + 1}, the assistant's, has an image or a video: answers are text")
    if len(asked) % 2:
        raise ValueError(f"turn {len(asked)}, the user's, has no answer")
    if turns[0][0] == SYSTEM and MARK in turns[0][1]:
        raise ValueError("the system's turn has an image or a video; put it into a user's turn")


class _Parser:
    """One record. `placed` are the media whose place is known, in order; `given` are those of the record's lists."""

    def __init__(self, fields: Mapping[str, Any], folder: str, members: dict[str, bytes]):
        self._fields, self._folder, self._members = fields, folder, members
        self.given = [
            self._file(kind, value)
            for kind in ("image", "video")
            for name in (kind, f"{kind}s")
            for value in _listed(fields.get(name))
        ]
        if not self.given and members:
            self.given = [File(_kind_of(name), content=content) for name, content in members.items()]
        self._next = {"image": 0, "video": 0}
        self.placed: list[File] = []
        self.marks, self._own = 0, 0

    @property
    def count(self) -> int:
        """Media of the record, in lists and in turns."""
        return len(self.given) + self._own

    def turns(self) -> list[tuple[str, str]]:
        """Returns the turns in whichever layout they are."""
        fields = self._fields
        for name in ("messages", "conversations"):
            if fields.get(name) is not None:
                return [self._turn(turn) for turn in _objects(fields[name], name)]
        if fields.get("texts") is None:
            raise ValueError("has none of messages, conversations and texts")
        pairs = _objects(fields["texts"], "texts")
        return [(role, self._text(role, pair.get(role))) for pair in pairs for role in (USER, ASSISTANT)]

    def _turn(self, turn: Mapping[str, Any]) -> tuple[str, str]:
        named = turn.get("role", turn.get("from"))
        role = _ROLES.get(named.strip().lower()) if isinstance(named, str) else None
        if role is None:
            known = f"{SYSTEM}, {USER} and {ASSISTANT}"
            raise ValueError(f"has a turn of the role {str(named)[:_SHOWN]!r}; known are {known}")
        content = turn.get("content", turn.get("value"))
        if isinstance(content, list | tuple):
            return role, "".join(self._part(role, part) for part in content).strip()
        return role, self._text(role, content)

    def _text(self, role: str, text: Any) -> str:
        """A text whose marks are places of the record's media, in their order. An answer's marks are text."""
        if text is None:
            return ""
        if not isinstance(text, str):
            raise ValueError(f"has a turn that is not text: {str(text)[:_SHOWN]!r}")
        text = clean(text).replace(MARK, "").strip()
        return _MARKS.sub(lambda mark: self._take(mark.group(1)), text) if role == USER else text

    def _take(self, kind: str) -> str:
        """Places the next medium of the lists."""
        self.marks += 1
        of_kind = [file for file in self.given if file.kind == kind]
        if self._next[kind] < len(of_kind):
            self.placed.append(of_kind[self._next[kind]])
        self._next[kind] += 1
        return MARK

    def _part(self, role: str, part: Any) -> str:
        """A part of a turn, as OpenAI and the chat templates of transformers have them."""
        if isinstance(part, str):
            return self._text(role, part)
        if not isinstance(part, Mapping):
            raise ValueError(f"has a part of a turn that is not an object: {str(part)[:_SHOWN]!r}")
        part = {key: value for key, value in part.items() if value is not None}
        type_ = part.get("type") or next(
            (t for t in ("image_url", "image", "video", "video_url", "text") if t in part), ""
        )
        if type_ in _TEXT_PARTS:
            # In a record with lists of media its parts may have marks (LLaMA-Factory); else they are the user's words.
            text = part.get("text", "")
            if not isinstance(text, str):
                raise ValueError(f"has a text that is none: {str(text)[:_SHOWN]!r}")
            return self._text(role, text) if self.given and _MARKS.search(text) else clean(text).replace(MARK, "")
        kind = _KINDS.get(type_, "") if isinstance(type_, str) else ""
        if not kind:
            raise ValueError(
                f"has a part of the type {str(type_)[:_SHOWN]!r}; known are text, image_url, image and video"
            )
        value = next(
            (part[key] for key in (type_, f"{kind}_url", kind, "url", "path", "bytes", "base64") if key in part), None
        )
        if value is None:
            return self._take(kind)
        self.marks, self._own = self.marks + 1, self._own + 1
        self.placed.append(self._file(kind, value))
        return MARK

    def _file(self, kind: str, value: Any) -> File:
        """A medium as it is written: bytes, a struct of bytes and path, a path, or a data: URL."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("url") or value.get("path")
        if isinstance(value, bytes) and value:
            return File(kind, content=value)
        if not isinstance(value, str) or not value:
            raise ValueError(f"has one {kind} that is neither a path nor the bytes of a file")
        if value.startswith("data:"):
            return File(kind, content=data_url(value))
        if re.match("https?://", value, re.IGNORECASE):
            raise ValueError(f"has the address {value[:_SHOWN]} instead of a file: download it first")
        value = value.removeprefix("file://")
        for name in (value, value.rpartition("/")[2]):
            if name in self._members:
                return File(kind, content=self._members[name])
        return File(kind, path=value if is_remote(value) else resolve(value, self._folder))


def data_url(url: str) -> bytes:
    """Returns the content of a data: URL of base64. Raises ValueError, whose text goes on a sentence, for any other."""
    head, _, body = url.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("has a data: URL that is not of base64")
    try:
        content = base64.b64decode(re.sub(r"\s", "", body), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("has a data: URL whose base64 is damaged") from None
    if not content:
        raise ValueError("has a data: URL without content")
    return content


def _kind_of(name: str) -> str:
    from vadapter.data.reading.pair_formats import IMAGE_ENDINGS

    return "image" if name.lower().endswith(IMAGE_ENDINGS) else "video"


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _objects(value: Any, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(v, Mapping) for v in value):
        raise ValueError(f"{name!r} is not a list of turns")
    return list(value)
