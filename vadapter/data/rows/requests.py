"""One file and one prompt to a batch for decoding: what `vadapter infer` asks of a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.data.order.config import LoaderConfig
from vadapter.data.reading import images, video
from vadapter.data.rows import prompts
from vadapter.data.rows.converters import VLMFeatureConverter
from vadapter.data.rows.preprocessors import MEDIA_ID
from vadapter.data.rows.vocabulary import TextVocabulary


def load_media(path: str, image_size: int, num_frames: int, resize: str = "stretch") -> np.ndarray:
    """Reads an image (F = 1) or a video (F = num_frames) as uint8 [F, h, w, 3].

    Raises:
        UserError: the file is missing or cannot be decoded.
    """
    if Path(path).suffix.lower() in video.SUFFIXES:
        return video.load(path, num_frames, image_size, resize)
    return images.load(path, image_size, resize)[None]


def prompt_ids(vocabulary: TextVocabulary, prompt: str, question: str | None) -> list[int]:
    """Returns the ids of a prompt with one `MEDIA_ID`, in the vocabulary's format.

    Args:
        vocabulary: the model's.
        prompt: a name in data/prompts, or a template.
        question: fills the template's `<question>`; None for a template without one.

    Raises:
        UserError: as `prompts.resolve`.
    """
    before, after = prompts.split(prompts.without_examples(prompts.resolve(prompt, question is not None)))
    after = after.replace(prompts.QUESTION, prompts.bare_question(question or ""))
    return [*vocabulary.head(before), MEDIA_ID, *vocabulary.tail(after)]


def request(
    path: str,
    config: LoaderConfig,
    vocabulary: TextVocabulary,
    prompt: str,
    question: str | None,
    rows: int,
    resize: str = "stretch",
) -> Batch:
    """Makes a batch that asks the same of one file in each row.

    Args:
        path: an image or a video.
        config: lengths and sizes of the model's data.
        vocabulary: the model's.
        prompt: see `prompt_ids`.
        question: see `prompt_ids`.
        rows: copies, for meshes that split the batch.
        resize: how the picture becomes square, see `images.resize`; as in the model's training.

    Raises:
        UserError: the file is bad, or the prompt is longer than the model's `inputs`.
    """
    media = load_media(path, config.image_size, config.num_frames, resize)
    tokens = config.num_visual_tokens
    visual = tokens[len(media)] if isinstance(tokens, Mapping) else tokens
    converter = VLMFeatureConverter(visual, vocabulary.bos_id, for_decoding=True, closing=len(vocabulary.tail("")))
    ids = prompt_ids(vocabulary, prompt, question)
    example = {
        "inputs": tf.constant(ids, tf.int32),
        "targets": tf.constant([0], tf.int32),  # a row for decoding ends before them
        "media": tf.constant(media[None]),
    }
    row = converter.convert_example(example, {**config.lengths, "media": (1, *media.shape)})
    if cut := int(row.pop("truncated")):
        raise UserError(
            f"The prompt has {len(ids)} tokens with the start token; the model reads {config.lengths['inputs']}, so "
            f"{cut} do not fit. Shorten the prompt or question, or train with longer 'inputs' (TASK_FEATURE_LENGTHS)."
        )
    arrays: dict[str, Any] = {k: np.repeat(v.numpy()[None], rows, axis=0) for k, v in row.items()}
    return Batch(**arrays)
