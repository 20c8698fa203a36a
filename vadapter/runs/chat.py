"""A conversation that is in memory as a batch, for a model to go on with."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.data.reading import conversations, images, storage, tiles, video
from vadapter.data.reading.conversations import Conversation, File
from vadapter.data.reading.images import MediaError
from vadapter.data.rows.converters import TextRows, stacked
from vadapter.data.rows.preprocessors import Chat
from vadapter.data.rows.sizes import Sizes, TooLong, layout_of
from vadapter.data.rows.text_vocabulary import TextVocabulary

Read = Callable[[File, int, int], np.ndarray]
_ANSWER = {"role": "assistant", "content": "."}  # in the place of the one to come


def batch(
    messages: Sequence[Mapping[str, Any]] | Conversation,
    vocabulary: TextVocabulary,
    lengths: Mapping[str, int],
    sizes: Sizes,
    resize: str,
    rows: int = 1,
    *,
    max_tiles: int = 0,
    clips: bool = False,
) -> Batch:
    """Makes rows for decoding of a conversation, all of them the same.

    Args:
        messages: `role` and `content` of each turn, as OpenAI has them; the last is the user's. An image is a path, a
            data: URL, the bytes of a file, a PIL image or a uint8 array [h, w, 3]. Or what `parse` made of them.
        vocabulary: the model's.
        lengths: `inputs` for the questions, `targets` for the answers so far.
        sizes: what the model takes.
        resize: see `resizing.parse`.
        rows: B.
        max_tiles: most tiles behind an image, as of `chat_task`.
        clips: whether images are clips that stand still, even where there is no video.

    Returns:
        A batch of numpy arrays, with as many media a row as the conversation has, tiles included.

    Raises:
        UserError: turns that make no sense, media that cannot be read, or a conversation that is too long.
    """
    found = messages if isinstance(messages, Conversation) else parse(messages)
    found = tiled(found, max_tiles)
    return lay_out(found.turns, read_media(found, sizes, resize), vocabulary, lengths, sizes, rows, clips)


def parse(
    messages: Sequence[Mapping[str, Any]], media: Mapping[str, Any] | None = None, folder: str | None = None
) -> Conversation:
    """Reads the turns of a conversation, as of `batch`. Its media are not read; its last turn is the answer's place.

    Args:
        messages: see `batch`.
        media: `images` and `videos`, lists of what stands at the marks `<image>` and `<video>` of the texts.
        folder: that paths are relative to; default the working directory.

    Raises:
        UserError: turns that make no sense.
    """
    fields = {**(media or {}), "messages": [*map(_encoded, messages), _ANSWER]}
    found = conversations.parse(fields, "it", os.getcwd() if folder is None else folder)
    if found.error:
        said = f"it {found.error}" if found.error.startswith("has ") else found.error
        raise UserError(f"Expected a conversation that ends with the user's turn; {said}. Correct it.")
    return found


def tiled(found: Conversation, max_tiles: int) -> Conversation:
    """Puts the tiles of each image behind it, as a model was trained on them: see `tiles.with_tiles`."""
    return tiles.with_tiles(found, max_tiles, _content)


def read_media(found: Conversation, sizes: Sizes, resize: str, read: Read | None = None) -> list[np.ndarray]:
    """Reads the media of a conversation, at a model's size: see `lay_out`.

    Args:
        found: as `tiled` gives it.
        sizes: what the model takes.
        resize: see `resizing.parse`.
        read: decodes the image or video of a file, given which of the conversation it is, from 1, and of how many; by
            default local and remote files are read. It may raise what it likes.

    Raises:
        UserError: one cannot be read.
    """
    whole = [file for file in found.media if file.grid is None]
    places = iter(range(1, len(whole) + 1))
    read = read or (lambda file, place, count: _frames(file, place, sizes, resize))
    decoded = tiles.decoded(found.media, lambda file: read(file, next(places), len(whole)), _content, sizes.image_size)
    try:
        return list(decoded)
    except (MediaError, OSError) as e:
        raise UserError(f"Reading the tiles of an image of the conversation: {e}. Replace it or leave it out.") from e


def lay_out(
    turns: Sequence[tuple[str, str]],
    media: Sequence[np.ndarray],
    vocabulary: TextVocabulary,
    lengths: Mapping[str, int],
    sizes: Sizes,
    rows: int = 1,
    clips: bool = False,
) -> Batch:
    """Makes rows for decoding, as `batch` does, of turns as `parse` gives them.

    Args:
        turns: of the conversation.
        media: of its marks, in order, of the model's size: images [h, w, 3] and videos [F, h, w, 3], uint8. Where
            there is a video, images are clips that stand still.
        vocabulary, lengths, sizes, rows, clips: as of `batch`.

    Raises:
        UserError: the model takes no media of so many frames.
        TooLong: there are more tokens than the model reads.
    """
    kind = "none" if not len(media) else "video" if clips or any(x.ndim == 4 for x in media) else "image"
    shape = sizes.media_shape(kind, len(media))
    if shape[0]:
        sizes.check_frames(shape[1])
    pixels = np.zeros((rows, *shape), np.uint8)
    for i, found in enumerate(media):
        pixels[:, i] = found
    roles, texts = zip(*turns, strict=True)
    example = Chat().example({"roles": roles, "texts": texts}, vocabulary)
    row = TextRows(vocabulary).row(example, layout_of(lengths, sizes, shape, for_decoding=True))
    if row["truncated"]:
        room = sum(lengths.values())
        raise TooLong(
            f"The conversation has {row['truncated']} tokens more than the model reads ({dict(lengths)}). Leave its "
            "first turns out, or train with longer TASK_FEATURE_LENGTHS.",
            room + int(row["truncated"]),
            room,
        )
    return TextRows(vocabulary).batch(stacked([row] * rows), pixels, np.ones(rows, bool))


def _content(file: File) -> bytes:
    return file.content or storage.read_file(file.path, images.MAX_BYTES)


def _frames(file: File, place: int, sizes: Sizes, resize: str) -> np.ndarray:
    try:
        if file.kind == "video":
            return video.decode(file.content or file.path, sizes.num_frames, sizes.image_size, resize)
        if file.content:
            return images.decode(file.content, sizes.image_size, resize)
        return images.load(file.path, sizes.image_size, resize)
    except (MediaError, OSError) as e:
        raise UserError(f"Reading {file.kind} {place} of the conversation: {e}. Replace it or leave it out.") from e


def _encoded(message: Any) -> Any:
    """A turn whose pictures in memory are files."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return message
    return {**message, "content": [_part(part) for part in content]}


def _part(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    return {key: _file(value) for key, value in part.items()}


def _file(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        return value
    buffer = io.BytesIO()
    try:
        images.rgb(value).save(buffer, "PNG")
    except MediaError as e:
        raise UserError(f"Reading an image of the conversation: {e}. Replace it or leave it out.") from e
    return buffer.getvalue()
