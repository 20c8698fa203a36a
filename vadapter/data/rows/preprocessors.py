"""seqio preprocessors: texts of a record to `inputs` and `targets`. Its media are decoded by the source.

`inputs` holds the prompt's ids with `MEDIA_ID` in the place of a medium, which the feature converter widens to the
visual tokens. They keep one example per record, choose by the record's `choice` and report trouble in its `error` (see
`sources`), so that the order of data stays a function of (seed, step).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import seqio
import tensorflow as tf

from vadapter.base.errors import UserError
from vadapter.data.reading.sources import media_shape
from vadapter.data.rows import prompts
from vadapter.data.rows.few_shot import Examples
from vadapter.data.rows.vocabulary import TextVocabulary

MEDIA_ID = -1
Example = dict[str, tf.Tensor]
Features = Mapping[str, seqio.Feature]
Preprocessor = Callable[..., tf.data.Dataset]


@dataclasses.dataclass(frozen=True)
class MediaFeature(seqio.ContinuousFeature):
    """The output feature `media` of a task, uint8 [M, F, h, w, 3].

    Its entry in `sequence_length` is its shape (M, F, h, w, 3): the sizes belong to the model, not to the task.

    Attributes:
        kind: `image` (F = 1), `video` (F as the loader says) or `none` (M = 0, text only).
    """

    dtype: tf.DType = tf.uint8
    rank: int = 5
    kind: str = "image"

    def shape(self, size: int, num_frames: int) -> tuple[int, ...]:
        """Returns (M, F, h, w, 3). See `sources.media_shape`."""
        return media_shape(self.kind, size, num_frames)


def _map(function: Callable[..., Example]) -> Callable[..., Preprocessor]:
    """Makes `function(example, features, **settings)` a factory of preprocessors: call it with the settings."""

    def factory(**settings) -> Preprocessor:
        def preprocess(dataset: tf.data.Dataset, output_features: Features) -> tf.data.Dataset:
            return dataset.map(lambda ex: function(dict(ex), output_features, **settings))

        # For the record of a trained model (`description`).
        preprocess.__name__, preprocess.settings = factory.__name__, settings  # type: ignore[attr-defined]
        return preprocess

    factory.__name__ = factory.__qualname__ = function.__name__.strip("_")
    factory.__doc__ = function.__doc__
    return factory


def _pick(example: Example, values: tf.Tensor) -> tf.Tensor:
    """Chooses one of the values by the record's `choice`; the empty text of none."""
    count = tf.maximum(tf.shape(values, out_type=tf.int64)[0], 1)
    return tf.concat([values, [""]], 0)[tf.math.floormod(example["choice"], count)]


def _prompted(
    example: Example,
    template: str,
    question: tf.Tensor | None,
    target: tf.Tensor,
    vocabulary: TextVocabulary,
    examples: tf.Tensor | None = None,
) -> Example:
    """Adds `inputs`, `targets`, and the prompt as text. `examples` is the text of `<examples>`."""
    before, after = prompts.split(template if examples is not None else prompts.without_examples(template))
    if examples is None:
        head, opening = tf.constant(vocabulary.head(before), tf.int32), tf.constant(before)
    else:
        start, end = before.split(prompts.EXAMPLES)
        opening = tf.strings.join([start, examples, end])
        head = vocabulary.head_tf(opening)
    if question is None:
        prompt, tail = tf.constant(template), tf.constant(vocabulary.tail(after), tf.int32)
    else:
        start, end = after.split(prompts.QUESTION)
        text = tf.strings.join([start, question, end])
        prompt, tail = tf.strings.join([opening, " ", prompts.MEDIA, text]), vocabulary.tail_tf(text)
    inputs = tf.concat([head, [MEDIA_ID], tail], 0)
    return {**example, "prompt": prompt, "inputs": inputs, "targets": target_ids(vocabulary, target)}


def _vocabulary(features: Features) -> TextVocabulary:
    found: Any = features["targets"].vocabulary
    return found


def _eos(vocabulary: TextVocabulary) -> tf.Tensor:
    if vocabulary.eos_id is None:
        raise UserError(f"Expected a vocabulary with an end-of-text id; {vocabulary} has none. Choose another one.")
    return tf.constant([vocabulary.eos_id], tf.int32)


def target_ids(vocabulary: TextVocabulary, text: tf.Tensor) -> tf.Tensor:
    """Returns the ids of the text as it follows a prompt, with the token that ends it."""
    return tf.concat([vocabulary.answer_tf(tf.strings.strip(text)), _eos(vocabulary)], 0)


@_map
def caption(example: Example, features: Features, *, prompt: str = "caption", first: int | None = None) -> Example:
    """Prompt and one of the `captions`; all of them stay as `references`.

    `prompt`: a name in data/prompts, or a template with `<media>`. `first`: chooses among the first so many only.
    """
    template = prompts.resolve(prompt, question=False)
    references = example.pop("captions")
    empty = {"question": tf.constant(""), "answers": tf.zeros([0], tf.string)}
    example = {**example, **empty, "references": references}
    return _prompted(example, template, None, _pick(example, references[:first]), _vocabulary(features))


@_map
def question(
    example: Example, features: Features, *, prompt: str = "image_question", examples: Examples | None = None
) -> Example:
    """Prompt with a question, and one of its answers; all of them stay as `references` and `answers`.

    Records hold either one `question` with its `answers`, or `questions` with one answer each in `answers`, of which
    one is chosen. `prompt`: a name in data/prompts, or a template with `<media>` and `<question>`. `examples`: what
    goes to its `<examples>`; nothing where there are none.
    """
    template = prompts.resolve(prompt, question=True)
    if "questions" in example:
        text = _pick(example, example.pop("questions"))
        answers = _pick(example, example["answers"])[None]
    else:
        text, answers = example["question"], example["answers"]
    if "question_types" in example:
        example["question_type"] = _pick(example, example.pop("question_types"))
    bare = tf.strings.regex_replace(tf.strings.strip(text), r"\s*\?*\s*$", "")
    example = {**example, "question": bare, "answers": answers, "references": answers}
    shown = None
    if examples is not None and prompts.EXAMPLES in template:
        shown = examples.text_tf(example["id"], example.get("image", tf.constant("")), text)
    return _prompted(example, template, bare, _pick(example, answers), _vocabulary(features), shown)


@_map
def document(example: Example, features: Features, *, key: str = "text") -> Example:
    """A text document, all of it to be predicted: no prompt and no media."""
    text = example.pop(key)
    vocabulary = _vocabulary(features)
    ids = vocabulary.encode_tf(text)
    return {
        **example,
        "inputs": tf.zeros([0], tf.int32),
        "targets": tf.concat([ids, _eos(vocabulary)], 0),
        "prompt": tf.constant(""),
        "references": text[None],
        "question": tf.constant(""),
        "answers": tf.zeros([0], tf.string),
    }


@_map
def labels(example: Example, features: Features) -> Example:
    """Keeps `labels`, int32 [G], beside the image."""
    return {**example, "labels": tf.cast(example["labels"], tf.int32)}
