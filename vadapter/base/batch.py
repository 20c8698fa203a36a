"""The batch: what the data side hands to the model side."""

import dataclasses

import flax.struct
import numpy as np

from vadapter.base.array_types import Array, Float, Int, UInt8


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a batch holds on this host: examples with a loss, and text and visual tokens without padding."""

    examples: int
    tokens: int


@flax.struct.dataclass
class Features:
    """What frozen parts made of a batch's media, in place of the pixels: see `vadapter.runs.feature_cache`.

    Attributes:
        tokens: patch tokens of the vision encoder, of each frame that it saw; int8 where there is a `scale`.
        scale: f32, what an int8 token is multiplied with; None where tokens are floats.
        words: ids that a frozen tiny LM wrote; None where the adapter writes none, or writes them itself.
    """

    tokens: Array
    scale: Float[Array, "B M F P 1"] | None = None
    words: Int[Array, "B M W"] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the tokens: B, M, F, P, E."""
        return self.tokens.shape


@flax.struct.dataclass
class Text:
    """Rows of text with places for visual tokens. Every leaf has the batch as its first axis.

    A row is text of one or more segments. Slots that a visual token fills have `media_index >= 0`; the row's visual
    tokens are numbered through its media: medium m, token r is `m * R + r`. The loss is taken at `target_positions`
    only, so the vocabulary head never runs over a whole row.

    Attributes:
        tokens: input ids; 0 in slots of visual tokens and of padding.
        segment_ids: 1, 2, ... for the row's segments, 0 for padding. A slot attends within its segment only.
        positions: position of the slot in its segment, from 0.
        media_index: which of the row's visual tokens fills the slot, or -1 where the slot holds text.
        target_positions: slot whose hidden state predicts the target.
        target_ids: the id to predict there.
        target_weights: weight of the target in the loss; 0 for padding and for rows that were skipped.
    """

    tokens: Int[Array, "B T"]
    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    media_index: Int[Array, "B T"]
    target_positions: Int[Array, "B L"]
    target_ids: Int[Array, "B L"]
    target_weights: Float[Array, "B L"]


@flax.struct.dataclass
class Batch(Text):
    """Text rows with media, ready for a device.

    Text-only batches have M = 0. A still image has F = 1 whatever the adapter's number of frames: the model encodes
    it once and broadcasts its tokens over the frames.

    Attributes:
        media: RGB pixels 0..255, at the encoder's resolution; or what the encoder made of them.
        tiny: the same text in the ids of the tiny LM in the adapter, for its own loss in training
            (`ObjectiveConfig.tiny_loss`): the row's prompt and targets, and in the place of a medium as many slots as
            the adapter's front makes tokens of it, as in stage 1. None where it was not asked for.
    """

    media: UInt8[Array, "B M F h w C"] | Features
    tiny: Text | None = None

    @property
    def pixels(self) -> UInt8[Array, "B M F h w C"]:
        """The media of a batch that was not read from a feature cache."""
        assert not isinstance(self.media, Features)
        return self.media

    def counts(self) -> Counts:
        """Counts segments with a loss and their tokens."""
        lengths = self.segment_lengths()
        return Counts(len(lengths), int(lengths.sum()))

    def segment_lengths(self) -> np.ndarray:
        """Returns the slots of each segment with a loss, int64; a row that is not packed has one segment."""
        segments = np.asarray(self.segment_ids).astype(np.int64)
        keys = segments + np.arange(len(segments))[:, None] * (segments.max(initial=0) + 1)
        of_targets = np.take_along_axis(keys, np.asarray(self.target_positions), axis=1)
        learnt = np.unique(of_targets[np.asarray(self.target_weights) > 0])
        found, lengths = np.unique(keys[segments > 0], return_counts=True)
        return lengths[np.isin(found, learnt)]


@flax.struct.dataclass
class LabelledImages:
    """Images with categorical labels, for pretraining a vision encoder.

    Attributes:
        media: RGB pixels 0..255, one image a row.
        labels: class of the image in each of G label groups; -1 is "no label" and carries no loss.
        weights: weight of the row in the loss; 0 for rows that were skipped.
    """

    media: UInt8[Array, "B h w C"]
    labels: Int[Array, "B G"]
    weights: Float[Array, " B"]

    def counts(self) -> Counts:
        """Counts images with a loss."""
        return Counts(int((np.asarray(self.weights) > 0).sum()), 0)
