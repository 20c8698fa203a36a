"""`ConversationSource`: chats with any number of images and videos, for `tasks.chat_task`."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vadapter.base import resizing
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.data.reading import conversations, images, storage, tiles, video
from vadapter.data.reading.conversation_files import Reader, open_files
from vadapter.data.reading.conversations import Conversation, File
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.media_folders import MediaFolders
from vadapter.data.reading.records import MAX_REMOTE_BYTES
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.reading.splits import TRAIN, Splits
from vadapter.data.rows.sizes import MEDIA_KINDS, Shape

SETTING = "chat_task.media_folders"
MOST_FOUND = 8  # media a row, where nobody says how many
_LOOKED_AT = 1000  # first records, for what a file has
Augment = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Found:
    """A record as `ConversationSource` reads it, and whether it is to be augmented."""

    conversation: Conversation
    train: bool


class ConversationSource(RandomAccessSource):
    """Chats from any number of files. See `tasks.chat_task` for the arguments."""

    def __init__(
        self,
        train: str | Sequence[str],
        validation: str | Sequence[str] = "",
        *,
        media: str = "",
        max_media: int = 0,
        max_tiles: int = 0,
        augment: Augment | None = None,
        holdout: float = 0.0,
        resize: str | None = None,
        frame_sampling: str = "uniform",
        cache_dir: str = "",
        threads: int = 0,
        max_bad_share: float = 0.01,
        media_folders: str | Sequence[str] = (),
    ):
        video.check_sampling(frame_sampling)
        resizing.parse(resize)
        _check_numbers(media, max_media, max_tiles)
        self.resize, self.frame_sampling, self._augment = resize, frame_sampling, augment
        self.max_tiles = max_tiles
        self._parts = Splits(train, validation, lambda given: open_files(given, cache_dir), holdout)
        self.folders = MediaFolders.of(sum(self._parts.files.values(), []), media_folders, SETTING)
        self._name = self._parts.files[TRAIN][0]
        self.threads = threads or storage.default_threads(self._name)
        self._parts.check_share(max_bad_share, "chat_task.max_bad_share")
        self.left_out, self.splits = self._parts.left_out, self._parts.names
        self._look(self._parts.train, media, max_media)

    def _look(self, reader: Reader, media: str, max_media: int) -> None:
        """Finds by the first records what the files have, and says it."""
        good, layout, wrong = [], "", ""
        for i in range(min(len(reader), _LOOKED_AT)):
            fields, found = reader.read(i)
            layout = layout or ("" if found.error else conversations.layout_of(fields))
            good += [] if found.error else [self._tiled(found)]
            wrong = wrong or (f"{found.id} {found.error}" if found.error else "")
        if not good:
            raise UserError(
                f"Expected conversations in {self._name}; not one of the first records can be used: {wrong}. Correct "
                "them; docs/conversations.md has the layouts."
            )
        kinds = {file.kind for conversation in good for file in conversation.media}
        self.media = media or ("video" if "video" in kinds else "image" if kinds else "none")
        most = max(len(conversation.media) for conversation in good)
        self.max_media = 0 if self.media == "none" else max_media or min(max(most, 1), MOST_FOUND)
        some = f"{self.media}{'s' if self.max_media > 1 else ''}"
        self.description = f"{layout} in {reader.format}; at most {self.max_media} {some} a row"
        if self.max_tiles:
            self.description += f"; at most {self.max_tiles} tiles behind an image, by its shape, among them"
        if self.media == "none":
            self.description = f"{layout} in {reader.format}; text alone"
        if most > self.max_media:
            logging.warning(
                "%s: a record has %d images or videos, and a row holds %d: later turns are cut. Raise "
                "chat_task.max_media to keep them.",
                *(self._name, most, self.max_media),
            )

    def __str__(self) -> str:
        return f"ConversationSource({self._name})"

    def num_examples(self, split: str) -> int:
        return self._parts.count(split)

    def read(self, split: str, indices: np.ndarray) -> list[Found]:
        reader, places = self._parts.find(split, indices)
        found = [reader.read(int(i))[1] for i in places]
        for conversation in found if self.media == "none" else ():  # nobody asks for media, which would tell
            if conversation.error or conversation.media:
                raise MediaError(conversation.error or "has images or videos, and chat_task.media is 'none'")
        return [Found(self._tiled(c), split == TRAIN) for c in found]

    def _tiled(self, conversation: Conversation) -> Conversation:
        return tiles.with_tiles(conversation, self.max_tiles, self._content)

    def features(self, record: Found) -> dict[str, Any]:
        """`roles` and `texts` of the turns, with a `MARK` in the text for each medium."""
        conversation = record.conversation
        roles, texts = [role for role, _ in conversation.turns], [text for _, text in conversation.turns]
        return {"id": conversation.id, "roles": roles, "texts": texts}

    def read_media(self, record: Found, shape: Shape, choice: int = 0) -> np.ndarray:
        """The first M media; a still image fills the frames of a video where the rows have videos."""
        conversation = record.conversation
        if conversation.error:
            raise MediaError(conversation.error)
        if conversation.first_media() > shape[0]:
            raise MediaError(
                f"its first turn has {conversation.first_media()} images and videos, and a row holds {shape[0]} "
                "(chat_task.max_media)"
            )
        found, media = np.zeros(shape, np.uint8), conversation.media[: shape[0]]
        frames = tiles.decoded(
            media, lambda file: self._frames(file, shape[1], shape[2], choice), self._content, shape[2]
        )
        for i, file in enumerate(media):
            try:
                found[i] = next(frames)
            except (MediaError, OSError) as e:
                raise MediaError(f"{file.kind} {_number(media[: i + 1])} of {_number(conversation.media)}: {e}") from e
        if self._augment is not None and record.train:
            for i in range(min(len(conversation.media), shape[0])):
                found[i] = _augmented(self._augment, found[i], np.random.default_rng([choice, i]))
        return found

    def _content(self, file: File) -> bytes:
        """The encoded file; b"" of a local video, which is read in parts."""
        if not file.path:
            return file.content
        self.folders.check(file.path)
        if file.kind == "image" or is_remote(file.path):
            return storage.read_file(file.path, images.MAX_BYTES if file.kind == "image" else MAX_REMOTE_BYTES)
        return b""

    def _frames(self, file: File, frames: int, size: int, choice: int) -> np.ndarray:
        content = self._content(file)
        if file.kind == "image":
            return np.broadcast_to(images.decode(content, size, self.resize), (frames, size, size, 3))
        if self.media != "video":
            raise MediaError("rows of this file have images only: set chat_task.media = 'video'")
        return video.decode(content or file.path, frames, size, self.resize, self.frame_sampling, choice)

    def medium(self, record: Found) -> Medium:
        """All media of the record together; without media none."""
        digests = []
        for file in record.conversation.media:
            if file.grid is not None:
                continue  # a tile of the image before
            try:
                if file.path:
                    self.folders.check(file.path)
            except MediaError:
                return Medium(None, file.path)
            one = Medium.of_file(file.path) if file.path else Medium.of_bytes([file.content])
            if one.digest is None:
                return one
            digests.append(one)
        return digests[0] if len(digests) == 1 else Medium.of_bytes([d.digest for d in digests if d.digest])

    def fingerprint(self, split: str) -> str:
        """See `contents.of_files`."""
        return self._parts.fingerprint(split, self.media, self.max_media, self.max_tiles)

    @functools.cache  # noqa: B019 sources live as long as the process
    def blocks(self, split: str) -> np.ndarray | None:
        return self._parts.blocks(split)


def _number(media: Sequence[File]) -> int:
    """Images and videos without the tiles among them."""
    return sum(file.grid is None for file in media)


def _check_numbers(media: str, max_media: int, max_tiles: int) -> None:
    if media and media not in MEDIA_KINDS:
        raise UserError(f"Expected chat_task.media to be one of {', '.join(MEDIA_KINDS)}; found {media!r}. Choose one.")
    for name, value, most in (("max_media", max_media, 1024), ("max_tiles", max_tiles, tiles.MOST)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise UserError(f"Expected chat_task.{name} to be a number of 0 to {most}; found {value!r}. Change it.")


def _augmented(augment: Augment, frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """What a hook makes of one medium, checked."""
    made = np.asarray(augment(frames.copy(), generator))
    if made.shape != frames.shape or made.dtype != np.uint8:
        raise UserError(
            f"Expected chat_task.augment to return uint8 {list(frames.shape)}, as it was given; found {made.dtype} "
            f"{list(made.shape)}. Correct the function."
        )
    return made
