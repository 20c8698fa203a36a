"""seqio data sources with random access. Here: what they share, and ArrayRecord data sets of TFDS.

A source reads records by index (`read`), decodes their media in Python (`read_media`), and turns the rest (`text_of`)
into features inside tf.data (`parse`). Beside its own features every record carries:

    media   uint8 [M, F, h, w, 3], decoded at the shape that `sequence_length["media"]` asks for. Of `get_dataset` only:
            the `Loader` joins media and text at the end, because tf.data would copy the pixels at each step
    id      tf.string, names the record in logs and results
    choice  tf.int64, the random number that preprocessors use to choose, say, one reference of several, and sources to
            choose frames: a function of (seed, place in the order of data) in training, in evaluation the record's
            index
    error   tf.string, why the record cannot be used, or empty. Later steps may set it; they must not raise

So preprocessors keep one example per record, and an unreadable record becomes a row without weight.
"""

import abc
import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from vadapter.base.errors import UserError
from vadapter.data.reading import images, logs, video

Chunk = tuple[np.ndarray, np.ndarray]  # record indices, choices
Shape = tuple[int, ...]  # of a record's media: M, F, h, w, 3
_CHUNK = 32
MEDIA_KINDS = ("none", "image", "video")


def media_shape(kind: str, size: int, num_frames: int) -> Shape:
    """Returns (M, F, h, w, 3): what a record's media are for an encoder of `size` pixels. A still image has F = 1."""
    return int(kind != "none"), num_frames if kind == "video" else 1, size, size, 3


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Records as they were read, n of them.

    Attributes:
        texts: what `parse` needs of each.
        choices: their random numbers, int64 [n].
        errors: why each cannot be used, or empty.
        media: uint8 [n, M, F, h, w, 3]; zeros where there is an error.
    """

    texts: Sequence[bytes]
    choices: np.ndarray
    errors: Sequence[str]
    media: np.ndarray


class RandomAccessSource(seqio.DataSource):
    """A seqio source that can start anywhere. `get_dataset` makes it an ordinary one.

    Attributes:
        media: what the records show: none, image or video.
        threads: how many records are read and decoded at once. Small images are faster with 1.
        resize: how pictures become square, see `images.resize`.
        frame_sampling: which frames of a video are taken, see `video.decode`.
        left_out: records that were found to be unusable before any was read, for the log.
    """

    media: str = "none"
    threads: int = 1
    resize: str = "stretch"
    frame_sampling: str = "uniform"
    left_out: int = 0

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [split]

    @abc.abstractmethod
    def num_examples(self, split: str) -> int:
        """Returns the number of records in the split."""

    @abc.abstractmethod
    def read(self, split: str, indices: np.ndarray) -> list[Any]:
        """Returns the records, as bytes or in a form of the source's own. Raises any exception if one cannot be read.

        Threads call it at the same time.
        """

    @abc.abstractmethod
    def parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turns what `text_of` gives (scalar string tensor) into features with `id`. Graph code."""

    def text_of(self, record: Any) -> bytes:
        """Returns what `parse` needs of a record: here the record itself."""
        return record

    def read_media(self, record: Any, shape: Shape, choice: int = 0) -> np.ndarray:
        """Returns the decoded media of a record. Raises `MediaError` if they cannot be.

        Args:
            record: from `read`.
            shape: M, F, h, w, 3 of the result.
            choice: the record's random number.
        """
        return np.zeros(shape, np.uint8)

    def blocks(self, split: str) -> np.ndarray | None:
        """Returns sizes of runs of records that are cheap to read together only; None where any order is cheap."""
        return None

    def num_input_examples(self, split: str) -> int:
        return self.num_examples(split)

    def _read_some(self, split: str, indices: np.ndarray) -> tuple[list[Any], list[str]]:
        """Reads records; of those that cannot be read, the error and in their place a copy of a good one."""
        try:
            return self.read(split, indices), [""] * len(indices)
        except Exception:  # find which
            found: list[Any] = []
            errors = []
            for i in indices:
                try:
                    found.append(self.read(split, np.asarray([i]))[0])
                    errors.append("")
                except Exception as e:
                    found.append(None)
                    errors.append(f"{split} record {i} cannot be read ({e})")
        good = next((r for r in found if r is not None), None) or self._any_record(split)
        return [good if r is None else r for r in found], errors

    def _any_record(self, split: str) -> Any:
        for i in range(self.num_examples(split)):
            try:
                return self.read(split, np.asarray([i]))[0]
            except Exception:
                continue
        raise UserError(
            f"Expected records in split {split!r} of {self}; not one can be read. Write the data set again."
        )

    def _load(
        self, split: str, indices: np.ndarray, choices: np.ndarray, media: np.ndarray
    ) -> tuple[list[bytes], list[str]]:
        """Returns texts and errors of some records, and writes their media into zeros [n, M, F, h, w, 3]."""
        records, errors = self._read_some(split, indices)
        for i, record in enumerate(records):
            if not errors[i]:
                try:
                    media[i] = self.read_media(record, media.shape[1:], int(choices[i]))
                except (images.MediaError, OSError) as e:
                    errors[i] = str(e)
        return [self.text_of(record) for record in records], errors

    def load(self, split: str, chunks: Iterable[Chunk], shape: Shape) -> Iterator[Loaded]:
        """Yields the records of each chunk in order, with media of the given shape; threads work ahead."""
        pool = futures.ThreadPoolExecutor(self.threads) if self.threads > 1 else None
        ahead: collections.deque[tuple[np.ndarray, np.ndarray, list[futures.Future]]] = collections.deque()

        def finish() -> Loaded:
            choices, media, parts = ahead.popleft()
            texts, errors = zip(*(part.result() for part in parts), strict=True)
            return Loaded(list(itertools.chain(*texts)), choices, list(itertools.chain(*errors)), media)

        try:
            for indices, choices in chunks:
                media = np.zeros((len(indices), *shape), np.uint8)
                if pool is None:
                    texts, errors = self._load(split, indices, choices, media)
                    yield Loaded(texts, choices, errors, media)
                    continue
                count = min(self.threads, len(indices))
                parts = zip(*(np.array_split(x, count) for x in (indices, choices, media)), strict=True)
                ahead.append((choices, media, [pool.submit(self._load, split, *part) for part in parts]))
                # A chunk is worked on while another is handed over, and every thread has something to do.
                if len(ahead) > 1 and sum(len(parts) for *_, parts in ahead) > 2 * self.threads:
                    yield finish()
            while ahead:
                yield finish()
        finally:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def features(self, loaded: Callable[[], Iterable[Loaded]], media_shape: Shape | None = None) -> tf.data.Dataset:
        """Returns what `load` gave as examples, with media if their shape is given."""
        shape = media_shape or (0,)
        pixels = shape[0] > 0  # tf.data cannot unbatch arrays of no elements

        def generate() -> Iterator[tuple]:
            for found in loaded():
                row = (np.asarray(found.texts, object), found.choices, np.asarray(found.errors, object))
                yield (*row, found.media) if pixels else row

        def parse(record: tf.Tensor, choice: tf.Tensor, error: tf.Tensor, *media: tf.Tensor) -> dict[str, tf.Tensor]:
            example = {**self.parse(record), "choice": choice, "error": error}
            if media_shape is None:
                return example
            return {**example, "media": media[0] if media else tf.zeros(shape, tf.uint8)}

        signature = tuple(tf.TensorSpec([None], t) for t in (tf.string, tf.int64, tf.string))
        if pixels:
            signature = (*signature, tf.TensorSpec([None, *shape], tf.uint8))
        return tf.data.Dataset.from_generator(generate, output_signature=signature).unbatch().map(parse)

    def dataset(self, split: str, chunks: Callable[[], Iterable[Chunk]], shape: Shape) -> tf.data.Dataset:
        """Returns the records of `chunks()` in their order, with media of the given shape."""
        return self.features(lambda: self.load(split, chunks(), shape), shape)

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
        """Returns the split as an ordinary seqio source does: one pass, in order or shuffled."""
        del use_cached, num_epochs
        shape = tuple((sequence_length or {}).get("media") or media_shape(self.media, 224, 8))
        order = np.arange(self.num_examples(split))
        if shuffle:
            order = np.random.default_rng(seed).permutation(order)
        if shard_info is not None:
            order = order[shard_info.index :: shard_info.num_shards]

        def chunks() -> Iterator[Chunk]:
            for start in range(0, len(order), _CHUNK):
                indices = order[start : start + _CHUNK]
                yield indices, indices.astype(np.int64)

        return self.dataset(split, chunks, shape)


class ArrayRecordSource(RandomAccessSource):
    """Splits of a TFDS builder that was written as ArrayRecord.

    The media are its feature `image`, or `frames` (a list of images: a clip), where it has one.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, id_feature: str = "scene", resize: str = "stretch"):
        """Args:
        builder: prepared with `file_format="array_record"`.
        id_feature: the text feature that names a record.
        resize: stretch, crop or pad (see `images.resize`).

        Raises:
            UserError: the data set is not there or in another file format.
        """
        if builder.info.splits.total_num_examples == 0:
            raise UserError(
                f"Expected a prepared data set in {builder.data_path}; found none. Prepare it: for scenes, "
                "vadapter.data.scenes.builder.prepare(data_dir, config)."
            )
        if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
            raise UserError(
                f"Expected ArrayRecord files in {builder.data_path}, which can be read at random; found "
                f"{builder.info.file_format}. Prepare the data set with file_format='array_record'."
            )
        self._builder, self._id, self.resize = builder, id_feature, resize
        features = builder.info.features
        assert isinstance(features, tfds.features.FeaturesDict)
        self._media_key = next((k for k in ("image", "frames") if k in features), None)
        self.media = {"image": "image", "frames": "video", None: "none"}[self._media_key]
        rest = tfds.decode.PartialDecoding({k: True for k in features if k != self._media_key})
        with logs.quiet():
            self._features = rest.extract_features(features)
        super().__init__(splits=tuple(builder.info.splits), caching_permitted=False)

    def __str__(self) -> str:
        return f"ArrayRecordSource({self._builder.data_path})"

    def num_examples(self, split: str) -> int:
        return self._builder.info.splits[split].num_examples

    @functools.cache  # noqa: B019 sources live as long as the process
    def _reader(self, split: str) -> Any:
        from array_record.python import array_record_data_source

        files = [str(f) for f in self._builder.info.splits[split].filepaths]
        return array_record_data_source.ArrayRecordDataSource(files)

    def read(self, split: str, indices: np.ndarray) -> list[bytes]:
        return list(self._reader(split).__getitems__([int(i) for i in indices]))

    def read_media(self, record: bytes, shape: Shape, choice: int = 0) -> np.ndarray:
        if not shape[0] or self._media_key is None:
            return np.zeros(shape, np.uint8)
        encoded = tf.train.Example.FromString(record).features.feature[self._media_key].bytes_list.value
        return video.from_images(encoded, shape[1], shape[2], self.resize, self.frame_sampling, choice)[None]

    def parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        with logs.quiet():
            features = dict(self._features.deserialize_example(record))
        return {**features, "id": features[self._id]}
