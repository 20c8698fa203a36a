"""Sizes of a row's images and videos, which the model dictates."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from vadapter.base import resizing
from vadapter.base.errors import UserError

if TYPE_CHECKING:
    from vadapter.data.rows.tiny_text import TinyWriter

Shape = tuple[int, ...]  # of a record's media: M, F, h, w, 3
MEDIA_KINDS = ("none", "image", "video")


@dataclasses.dataclass(frozen=True)
class Views:
    """How a model that was trained on conversations sees a picture: `chat_task` says what it is.

    Attributes:
        max_tiles: most tiles that follow a picture, each a medium of its own.
        clips: whether pictures are clips that stand still.
        whole: prompts that it was trained on with whole pictures, by other tasks. They are asked so.
    """

    max_tiles: int = 0
    clips: bool = False
    whole: frozenset[str] = frozenset()

    def of(self, template: str) -> "Views":
        """Returns how a picture is seen where it is asked about by a prompt."""
        return WHOLE if template in self.whole else self


WHOLE = Views()
"""The picture alone."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a model takes. `vadapter.runs.batches.for_model` gives a model's.

    Attributes:
        image_size: width and height of the encoder's input in pixels.
        num_frames: frames that are sampled from a video. A still image has 1.
        num_visual_tokens: visual tokens a medium, R: what the model's adapter emits; `{frames: R}` where that depends
            on the number of frames.
        resize: how pictures become square where a task does not say it, see `resizing.parse`.
        views: how pictures are seen where a task that is no `chat_task` asks about them.
        tiny: writes each row for a tiny LM in the adapter too; None does not.
    """

    image_size: int = 1
    num_frames: int = 1
    num_visual_tokens: int | Mapping[int, int] = 0
    resize: str = resizing.DEFAULT
    views: Views = WHOLE
    tiny: "TinyWriter | None" = None

    def media_shape(self, kind: str, most: int = 1) -> Shape:
        """Returns (M, F, h, w, 3) of a record that shows `kind`: none (M = 0), image (F = 1) or video; M is `most`."""
        frames = self.num_frames if kind == "video" else 1
        return most if kind != "none" else 0, frames, self.image_size, self.image_size, 3

    def visual_tokens(self, frames: int) -> int:
        """Returns R for a medium of so many frames; 0 where the model was not made for them."""
        tokens = self.num_visual_tokens
        return tokens if isinstance(tokens, int) else tokens.get(frames, 0)

    def check_frames(self, frames: int) -> None:
        """Raises `UserError` where the model was not made for media of so many frames."""
        if not isinstance(self.num_visual_tokens, int) and frames not in self.num_visual_tokens:
            raise UserError(
                f"Expected media of {' or '.join(map(str, sorted(self.num_visual_tokens)))} frames, which the model's "
                f"adapter was made for; found {frames}. Change num_frames, or take another model."
            )


class TooLong(UserError):
    """A text has more tokens than the model reads.

    Attributes:
        tokens: it has, with the start token.
        room: how many the model reads.
    """

    def __init__(self, message: str, tokens: int, room: int):
        super().__init__(message)
        self.tokens, self.room = tokens, room


def check_lengths(lengths: Mapping[str, int]) -> None:
    """Raises `UserError` unless `inputs` and `targets` are there and at least 1."""
    for key, holds in (("inputs", "the bos slot"), ("targets", "one token to predict")):
        if not isinstance(lengths.get(key), int) or lengths[key] < 1:
            raise UserError(
                f"Expected lengths['{key}'] to be a whole number of at least 1, the room for {holds}; found "
                f"{lengths.get(key)!r} in {dict(lengths)}. Set it."
            )


@dataclasses.dataclass(frozen=True)
class Layout:
    """What all rows of a batch have in common.

    Attributes:
        lengths: `inputs` and `targets`, slots of text; see `LoaderConfig`.
        num_media: M, media a row.
        num_visual_tokens: R, visual tokens a medium.
        for_decoding: rows hold prompts only, to be continued.
    """

    lengths: Mapping[str, int]
    num_media: int = 0
    num_visual_tokens: int = 0
    for_decoding: bool = False

    @property
    def visual(self) -> int:
        """Slots of a row that hold visual tokens."""
        return self.num_media * self.num_visual_tokens

    @property
    def row_length(self) -> int:
        """T, slots of a row. A row for decoding ends where its targets would begin."""
        return self.lengths["inputs"] + self.visual + (0 if self.for_decoding else self.lengths["targets"])


def layout_of(lengths: Mapping[str, int], sizes: Sizes, media_shape: Shape, for_decoding: bool = False) -> Layout:
    """Returns the layout of rows with media of one shape (M, F, h, w, 3)."""
    return Layout(lengths, media_shape[0], sizes.visual_tokens(media_shape[1]), for_decoding)
