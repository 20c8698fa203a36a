"""Batches that fit a model: of images and texts that are in memory. Reads no data set."""

from collections.abc import Mapping, Sequence

from vadapter.base.batch import Batch
from vadapter.data.rows import memory
from vadapter.data.rows.memory import Media, Texts
from vadapter.data.rows.sizes import Sizes
from vadapter.data.rows.text_vocabulary import TextVocabulary
from vadapter.models.configuration import ModelConfig


def for_model(model: ModelConfig) -> Sizes:
    """Returns what a model takes: resolution, frames, visual tokens."""
    return Sizes(**model.data_sizes())


def make_batch(
    model: ModelConfig,
    images: Sequence[Media] | None,
    texts: Texts | None,
    *,
    vocabulary: TextVocabulary,
    questions: Texts | None = None,
    prompt: Texts | None = None,
    lengths: Mapping[str, int] | None = None,
    resize: str | None = None,
) -> Batch:
    """Makes a batch of images or videos with texts.

    Args:
        model: configuration of the model that is to read it.
        images: one a row: PIL images, uint8 arrays [h, w, 3] or paths; or videos, as lists of these, arrays
            [F, h, w, 3] or paths. None makes rows of text only.
        texts: what is to be said, a caption or an answer a row; None makes rows for decoding.
        vocabulary: the decoder's (`vadapter.load_vocabulary`).
        questions: for all rows, or one a row; None for captions.
        prompt: a name in data/prompts or a template with `<media>`; default `caption`, or `image_question` where there
            are questions.
        lengths: `inputs` and `targets`, slots of text; default 64 each.
        resize: how pictures become square, see `resizing.parse`; default the encoder's way.

    Returns:
        A batch of numpy arrays, a row an image.

    Raises:
        UserError: an image that cannot be read, named by its place; a text that does not fit; numbers of texts and
            images that differ; or a prompt that is not a template.
    """
    sizes = for_model(model)
    return memory.batch(
        images,
        prompt or ("caption" if questions is None else "image_question"),
        texts,
        questions,
        vocabulary=vocabulary,
        lengths=lengths or {"inputs": 64, "targets": 64},
        sizes=sizes,
        resize=resize or sizes.resize,
    )
