"""The messages of a request become the prompt of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.data.reading.conversations import File
from vadapter.data.rows.sizes import TooLong
from vadapter.runs import chat
from vadapter.runs.model import TrainedModel
from vadapter.serving import media
from vadapter.serving.api_errors import wrong
from vadapter.serving.limits import Limits
from vadapter.serving.media import Fetch

_MOST_PARTS = 1000  # of a turn
_CHARACTERS = 100  # of a token, and few have as many: a longer text is not even cut into tokens


def make(
    trained: TrainedModel, messages: Sequence[Mapping[str, Any]], most_media: int, limits: Limits, fetch: Fetch | None
) -> Batch:
    """Makes the prompt of the next answer, one row on the host.

    Args:
        trained: the model.
        messages: turns with `role`, and `content` that is a text or parts of the types text, image_url and video_url.
        most_media: images and videos of a request.
        limits: of the server.
        fetch: gets a file from the web; None where that is not allowed.

    Raises:
        ApiError: the turns make no sense, an image or a video cannot be read, or it is all longer than the model
            reads.
    """
    text = trained.description.text
    assert text is not None
    room = sum(text.lengths.values())
    reader = _Reader(most_media, fetch)
    turns = [reader.turn(turn, i) for i, turn in enumerate(messages, 1)]

    def read(file: File, place: int, count: int) -> np.ndarray:
        name = f"{file.kind.capitalize()} {place} of {count}"
        return media.read(file, name, trained.sizes, trained.description.resize, limits)

    if reader.characters > _CHARACTERS * room:
        raise _too_long(f"The messages have {reader.characters} characters", room)
    try:
        return trained.conversation(chat.parse(turns), read)
    except TooLong as e:
        raise _too_long(f"The messages have {e.tokens} tokens", e.room) from None
    except UserError as e:
        raise wrong(str(e), "messages") from None


def _too_long(found: str, room: int) -> Exception:
    return wrong(
        f"{found}, and the model reads {room} tokens: shorten them, or leave the first turns out.",
        "messages",
        "context_length_exceeded",
    )


class _Reader:
    """Turns as `chat.parse` reads them: with the bytes of the media, and no part that it would look up on a disk."""

    def __init__(self, most_media: int, fetch: Fetch | None):
        self._most, self._fetch, self._count = most_media, fetch, 0
        self.characters = 0

    def turn(self, turn: Mapping[str, Any], place: int) -> dict[str, Any]:
        content = turn.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise wrong(f"Turn {place} has a content that is neither a text nor a list of parts.", "messages")
        if len(parts) > _MOST_PARTS:
            raise wrong(f"Turn {place} has {len(parts)} parts; at most {_MOST_PARTS} are read.", "messages")
        return {"role": turn.get("role"), "content": [self._part(part, place) for part in parts]}

    def _part(self, part: Any, place: int) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            self.characters += len(part["text"])
            return {"type": "text", "text": part["text"]}
        if not media.is_media(kind):
            raise wrong(
                f"Turn {place} has a part that is not one of the types text, image_url and video_url with what "
                "belongs to it.",
                "messages",
            )
        self._count += 1
        if self._count > self._most:
            raise wrong(
                f"The messages have more images and videos than the {self._most} that this model is given at most.",
                "messages",
                "too_many_images",
            )
        name = f"Image or video {self._count}"
        found, url = media.url_of(part, name)
        return {"type": found, found: media.content_of(url, name, self._fetch)}
