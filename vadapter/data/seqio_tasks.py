"""seqio's form of vadapter's tasks: the one place where the text path, plain Python, meets tf.data.

A `Task` is a seqio task like any other: its source, vocabulary, preprocessors and features are seqio's, so t5x and
seqio's own tools can read it, and `VLMFeatureConverter` lays its examples out. `Loader` needs none of that: it takes
the task's records, and runs its preprocessors in Python. Those of others, functions of a tf.data.Dataset, are run there
a record at a time.
"""

import collections
import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.data.reading.loading import Share, load
from vadapter.data.reading.sources import RandomAccessSource
from vadapter.data.rows.converters import SIZES, Example, Rows, TextRows, lay_out
from vadapter.data.rows.preprocessors import Preprocessor
from vadapter.data.rows.sizes import Layout, Sizes, check_lengths
from vadapter.data.rows.text_vocabulary import TextVocabulary

_CHUNK = 32
_DEFAULT_SIZES = Sizes(image_size=224, num_frames=8)  # of `get_dataset` where nobody says others
_Spec = seqio.FeatureConverter.FeatureSpec


class SeqioVocabulary(seqio.Vocabulary):
    """A `TextVocabulary` as seqio's."""

    def __init__(self, words: TextVocabulary):
        super().__init__()
        self.words = words

    @property
    def bos_id(self) -> int | None:
        return self.words.bos_id

    @property
    def eos_id(self) -> int | None:
        return self.words.eos_id

    @property
    def unk_id(self) -> int | None:
        return self.words.unk_id

    @property
    def _base_vocab_size(self) -> int:
        return self.words.vocab_size

    def _encode(self, s: Any) -> Sequence[int]:
        return self.words.encode(s)

    def _decode(self, ids: Any) -> str:
        return self.words.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        text = tf.convert_to_tensor(s)
        if text.shape.rank:
            return tf.map_fn(self._encode_tf, text, fn_output_signature=tf.RaggedTensorSpec([None], tf.int32))

        def call(x: Any) -> np.ndarray:
            return np.asarray(self.words.encode(np.asarray(x).item().decode()), np.int32)

        ids = tf.numpy_function(call, [text], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(lambda x: self.words.decode(x).encode(), [ids], tf.string, stateful=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SeqioVocabulary) and self.words == other.words

    def __hash__(self) -> int:
        return hash(self.words)


@dataclasses.dataclass(frozen=True)
class MediaFeature(seqio.ContinuousFeature):
    """The output feature `media` of a task, uint8 [M, F, h, w, 3].

    Its entry in `sequence_length` is its shape (M, F, h, w, 3): the sizes belong to the model, not to the task.

    Attributes:
        kind: `image` (F = 1), `video` (F as the model says) or `none` (M = 0, text only).
    """

    dtype: tf.DType = tf.uint8
    rank: int = 5
    kind: str = "image"


class SeqioSource(seqio.DataSource):
    """A `RandomAccessSource` as seqio's, which gives one pass, in order or shuffled, media included.

    Args:
        records: the records.
        shape: of a record's media, (M, F, h, w, 3); None is that of a model of 224 pixels and 8 frames.
    """

    def __init__(self, records: RandomAccessSource, shape: Sequence[int] | None = None):
        super().__init__(splits=tuple(records.splits), caching_permitted=False)
        self.records = records
        self._shape = tuple(shape or _DEFAULT_SIZES.media_shape(records.media, records.max_media))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [split]

    def num_input_examples(self, split: str) -> int:
        return self.records.num_examples(split)

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, Any] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        del use_cached, num_epochs
        shape = tuple((sequence_length or {}).get("media") or self._shape)
        order = np.arange(self.records.num_examples(split))
        if shuffle:
            order = np.random.default_rng(seed).permutation(order)
        if shard_info is not None:
            order = order[shard_info.index :: shard_info.num_shards]

        def examples() -> Iterator[Example]:
            plans = ([share(order[i : i + _CHUNK])] for i in range(0, len(order), _CHUNK))
            for loaded in load([self.records.resized(_DEFAULT_SIZES.resize)], split, plans, shape):
                yield from ({**x, "media": media} for x, media in zip(loaded.records, loaded.media, strict=True))

        return dataset_of(examples)


def share(records: np.ndarray) -> Share:
    """Returns a batch of these records in their order; each one's random number is its index."""
    return Share(0, np.arange(len(records)), records, records.astype(np.int64))


class Task(seqio.Task):
    """A seqio task whose records can be read at random."""

    def __init__(self, name: str, source: SeqioSource, output_features: Mapping[str, Any], *, rows: Rows, **settings):
        """Args:
        name: letters, digits and underscores.
        source: where the records are.
        output_features: see `features`.
        rows: how its examples become a batch.
        settings: see `seqio.Task`.
        """
        super().__init__(name, source=source, output_features=output_features, **settings)
        self.records, self.rows = source.records, rows

    def get_dataset(
        self, sequence_length: Mapping[str, Any] | None = None, *args: Any, **settings: Any
    ) -> tf.data.Dataset:
        """As seqio's, with media read at the shape of `sequence_length["media"]`, and texts of any length.

        seqio tells sizes to no source: it would cut larger media down to the first rows and columns. Of a prompt it
        would cut markers of media and what closes a turn: `VLMFeatureConverter` cuts what is too long. A record that
        cannot be read has no targets, since a mixture keeps nothing else that says so.
        """
        sized = copy.copy(self)
        sized._source = SeqioSource(self.records, (sequence_length or {}).get("media"))
        settings["trim_output_features"] = False
        found = super(Task, sized).get_dataset(sequence_length, *args, **settings)
        if SIZES in self.output_features and SIZES not in found.element_spec:
            found = found.map(_without_turns)
        return found.map(_without_targets) if {"error", "targets"} <= set(found.element_spec) else found

    def num_examples(self, split: str) -> int:
        """Returns the number of records in a split; 0 where there is no such split."""
        return self.records.num_examples(split) if split in self.records.splits else 0

    @property
    def ours(self) -> list[Preprocessor]:
        """Those of its preprocessors that are vadapter's."""
        return [step.step for step in self.preprocessors if isinstance(step, SeqioPreprocessor)]

    def examples_of(
        self, sequence_length: Mapping[str, Any], vocabulary: TextVocabulary | None = None
    ) -> Callable[[Example], Example]:
        """Returns a function that makes an example of a record: all the task's preprocessors, in Python.

        Args:
            sequence_length: for seqio's own preprocessors, which may ask for it.
            vocabulary: in place of the task's, for vadapter's preprocessors.
        """
        words: Any = vocabulary or self.rows.vocabulary
        steps = [
            (lambda x, step=step.step: step.example(x, words))
            if isinstance(step, SeqioPreprocessor)
            else _Foreign(step, self, sequence_length)
            for step in self.preprocessors
        ]

        def example(record: Example) -> Example:
            for step in steps:
                record = step(record)
            return record

        return example


def _without_turns(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """An example that is no conversation, as a mixture has it beside those that are."""
    return {**example, SIZES: tf.zeros([0], tf.int32)}


def _without_targets(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """A record that cannot be read has nothing to learn."""
    count = tf.where(example["error"] == "", tf.shape(example["targets"])[0], 0)
    return {**example, "targets": example["targets"][:count]}


def features(rows: Rows, media: str) -> dict[str, Any]:
    """Returns the output features of a task: what its rows are made of, and its media."""
    words: Any = seqio.PassThroughVocabulary(1) if rows.vocabulary is None else SeqioVocabulary(rows.vocabulary)
    ids = {name: seqio.Feature(words, add_eos=name == "targets", dtype=tf.int32) for name in rows.outputs}
    if isinstance(rows, TextRows):  # all of them have it, so that conversations mix with what is none
        counts: Any = seqio.PassThroughVocabulary(1)
        ids[SIZES] = seqio.Feature(counts, add_eos=False, dtype=tf.int32, required=False)
    return {**ids, "media": MediaFeature(kind=media)}


def remove(name: str) -> None:
    """Forgets a task or mixture, if there is one of the name."""
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        if name in registry.names():
            registry.remove(name)


def provider(name: str) -> seqio.Task | seqio.Mixture:
    """Returns the task or mixture of a name. A `UserError` with the nearest names where there is none."""
    with contextlib.suppress(RuntimeError):  # TensorFlow is running already
        tf.config.set_visible_devices([], "GPU")  # or it takes the memory of the GPU that jax needs
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise UserError(
            f"Expected the name of a registered task or mixture; found {name!r}. The nearest of the {len(known)} known "
            f"are {', '.join(trees.nearest(name, known)) or '(none)'}: correct the name, or register it "
            "(register_scenes, jsonl_task)."
        )
    return seqio.get_mixture_or_task(name)


def tasks_of(name: str) -> list[Task]:
    """Returns the tasks of a registered mixture, or the task itself, in the order of their names.

    Raises:
        UserError: there is no such mixture, or one of its tasks was not registered by `add_task`.
    """
    found: list[Any] = sorted(seqio.get_subtasks(provider(name)), key=lambda task: task.name)
    for task in found:
        if not isinstance(task, Task):
            raise UserError(
                f"Expected tasks with a source that is a RandomAccessSource, registered by vadapter.data.tasks."
                f"add_task; task {task.name} is not: its source is a {type(task.source).__name__}. Register it so."
            )
    return found


# From Python to tf.data and back


def _to_numpy(value: Any) -> Any:
    """A value of an example, as tf.data takes it."""
    if isinstance(value, str):
        return value.encode(errors="replace")
    if isinstance(value, list) and not any(isinstance(v, int | float) for v in value):
        return np.asarray([_to_numpy(v) for v in value], object)
    return value if isinstance(value, bytes) else np.asarray(value)


def _from_numpy(value: Any) -> Any:
    """A value that came out of tf.data, as it is in an example: text is `str`."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray) and value.dtype == np.object_:
        return [v.decode(errors="replace") for v in value]
    return value.item() if isinstance(value, np.generic) or getattr(value, "ndim", 1) == 0 else value


def _spec(value: Any, exact: bool) -> tf.TensorSpec:
    value = _to_numpy(value)
    if isinstance(value, bytes):
        return tf.TensorSpec([], tf.string)
    dtype = tf.string if value.dtype == np.object_ else value.dtype
    return tf.TensorSpec([None] if value.ndim == 1 and not exact else value.shape, dtype)


def dataset_of(examples: Callable[[], Iterable[Example]], exact: Sequence[str] = ()) -> tf.data.Dataset:
    """Returns examples as a tf.data.Dataset. The first one tells the types.

    Args:
        examples: called for each pass.
        exact: keys of one-dimensional arrays whose length is that of all.
    """
    first = next(iter(examples()), None)
    if first is None:
        raise UserError("Expected at least one example in a data set; found none. Choose another split.")
    signature = {key: _spec(value, key in exact) for key, value in first.items()}
    return tf.data.Dataset.from_generator(
        lambda: ({key: _to_numpy(example[key]) for key in signature} for example in examples()),
        output_signature=signature,
    )


def examples_of(dataset: tf.data.Dataset) -> Iterator[Example]:
    """Yields the examples of a tf.data.Dataset as Python values."""
    for example in dataset.as_numpy_iterator():
        values: Any = example
        yield {key: _from_numpy(value) for key, value in values.items()}


class SeqioPreprocessor:
    """A `Preprocessor` as seqio's, a function of a tf.data.Dataset."""

    def __init__(self, step: Preprocessor):
        self.step = step

    def __call__(self, dataset: tf.data.Dataset, output_features: Mapping[str, Any]) -> tf.data.Dataset:
        targets = output_features.get("targets")
        words: Any = getattr(targets and targets.vocabulary, "words", None)
        return dataset_of(lambda: (self.step.example(example, words) for example in examples_of(dataset)))


class _Foreign:
    """A preprocessor of others, a function of a tf.data.Dataset, that is given a record at a time."""

    def __init__(self, step: Callable[..., tf.data.Dataset], task: Task, sequence_length: Mapping[str, Any]):
        given = {"sequence_length": sequence_length, "output_features": task.output_features}
        self._step, self._name = seqio.utils.add_kwargs_to_transform(step, **given), task.name
        self._fed: collections.deque[Example] = collections.deque()
        self._made: Iterator[Example] | None = None

    def __call__(self, record: Example) -> Example:
        self._fed.append(record)
        if self._made is None:
            self._made = examples_of(self._start(record))
        found = next(self._made, None)
        if found is None or found.get("choice") != record["choice"]:
            raise UserError(
                f"Expected preprocessors that make one example of each record, in their order; those of "
                f"{self._name} do not. Let them set `error` instead of leaving a record out."
            )
        return found

    def _start(self, first: Example) -> tf.data.Dataset:
        signature = {key: _spec(value, exact=False) for key, value in first.items()}

        def fed() -> Iterator[Example]:
            while self._fed:  # who asks for more than one record gets no more
                record = self._fed.popleft()
                yield {key: _to_numpy(record[key]) for key in signature}

        return self._step(tf.data.Dataset.from_generator(fed, output_signature=signature))


class VLMFeatureConverter(seqio.FeatureConverter):
    """`converters.lay_out` as a seqio feature converter, of questions with an answer and of conversations.

    `task_feature_lengths` has `inputs`, `targets` and `media`, the shape (M, F, h, w, 3).
    """

    TASK_FEATURES = {
        "inputs": _Spec(dtype=tf.int32),
        "targets": _Spec(dtype=tf.int32),
        "media": _Spec(dtype=tf.uint8, rank=5),
    }
    MODEL_FEATURES = {
        **{k: _Spec(dtype=tf.int32) for k in ("tokens", "segment_ids", "positions", "media_index")},
        "media": _Spec(dtype=tf.uint8, rank=5),
        "target_positions": _Spec(dtype=tf.int32),
        "target_ids": _Spec(dtype=tf.int32),
        "target_weights": _Spec(dtype=tf.float32),
        "truncated": _Spec(dtype=tf.int32, rank=0),
    }
    PACKING_FEATURE_DTYPES = {}

    def __init__(
        self,
        num_visual_tokens: int,
        bos_id: int | None = None,
        for_decoding: bool = False,
        passthrough: Mapping[str, tf.TensorSpec] | None = None,
        closing: int = 0,
        last_only: bool = False,
    ):
        """Args:
        num_visual_tokens: R.
        bos_id, closing, last_only: see `converters.lay_out`; a vocabulary has the first two, `bos_id` and
            `num_closing`.
        for_decoding: rows hold prompts only. Targets are kept, without weight.
        passthrough: specs of features to keep as they are.
        """
        specs = {k: _Spec(dtype=s.dtype, rank=s.shape.rank) for k, s in (passthrough or {}).items()}
        # seqio's own length check would count the marker of a medium as one token.
        super().__init__(pack=False, apply_length_check=False, bos_id=max(bos_id or 0, 0), passthrough_features=specs)
        self._num_visual_tokens, self._for_decoding, self._closing = num_visual_tokens, for_decoding, closing
        self._last_only = last_only

    def _layout(self, lengths: Mapping) -> Layout:
        return Layout(lengths, lengths["media"][0], self._num_visual_tokens, self._for_decoding)

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping) -> tf.data.Dataset:
        check_lengths(task_feature_lengths)
        layout = self._layout(task_feature_lengths)

        def row(example: Example) -> Example:
            turns = {"sizes": example.get(SIZES, ()), "last_only": self._last_only}
            arrays = lay_out(example["inputs"], example["targets"], layout, self.bos_id, self._closing, **turns)
            if example.get("error"):
                arrays["target_weights"] = np.zeros_like(arrays["target_weights"])
            kept = {key: example[key] for key in self._passthrough_features}
            return {**arrays, "media": example["media"], **kept}

        return dataset_of(lambda: map(row, examples_of(ds)), exact=tuple(self.MODEL_FEATURES))

    def get_model_feature_lengths(self, task_feature_lengths: Mapping) -> Mapping[str, Any]:
        total, room = self._layout(task_feature_lengths).row_length, task_feature_lengths["targets"]
        rows = dict.fromkeys(("tokens", "segment_ids", "positions", "media_index"), total)
        targets = dict.fromkeys(("target_positions", "target_ids", "target_weights"), room)
        rest = {k: task_feature_lengths[k] for k in self._passthrough_features}
        return {**rows, **targets, "media": task_feature_lengths["media"], "truncated": 1, **rest}
