"""seqio data sources with random access. Here: what they share, and ArrayRecord data sets of TFDS.

A source reads records by index (`read`), decodes their media in Python (`read_media`), and turns the rest (`text_of`)
into features inside tf.data (`parse`). Beside its own features every record carries:

    media   uint8 [M, F, h, w, 3], decoded at the shape that `sequence_length["media"]` asks for
    id      tf.string, names the record in logs and results
    choice  tf.int64, the random number that preprocessors use to choose, say, one reference of several, and sources to
            choose frames: a function of (seed, place in the order of data) in training, in evaluation the record's
            index
    error   tf.string, why the record cannot be used, or empty. Later steps may set it; they must not raise

So preprocessors keep one example per record, and an unreadable record becomes a row without weight.
"""

import abc
import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from vadapter.data import images, logs, video
from vadapter.errors import UserError

Chunk = tuple[np.ndarray, np.ndarray]  # record indices, choices
Shape = tuple[int, ...]  # of a record's media: M, F, h, w, 3
_CHUNK = 32
MEDIA_KINDS = ("none", "image", "video")


def media_shape(kind: str, size: int, num_frames: int) -> Shape:
    """Returns (M, F, h, w, 3): what a record's media are for an encoder of `size` pixels. A still image has F = 1."""
    return int(kind != "none"), num_frames if kind == "video" else 1, size, size, 3


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

    def _load(self, split: str, indices: np.ndarray, choices: np.ndarray, shape: Shape) -> list[tuple]:
        """Returns (text, choice, error, media) of some records; the media are zeros where there is an error."""
        rows = []
        for record, error, choice in zip(*self._read_some(split, indices), choices, strict=True):
            media = None
            if not error:
                try:
                    media = self.read_media(record, shape, int(choice))
                except (images.MediaError, OSError) as e:
                    error = str(e)
            rows.append((self.text_of(record), choice, error, np.zeros(shape, np.uint8) if media is None else media))
        return rows

    def _loaded(self, split: str, chunks: Iterable[Chunk], shape: Shape) -> Iterator[list[tuple]]:
        """`_load` of each chunk in order, by threads that work ahead."""
        if self.threads == 1:
            yield from (self._load(split, *chunk, shape) for chunk in chunks)
            return
        pool = futures.ThreadPoolExecutor(self.threads)
        ahead: collections.deque[list[futures.Future]] = collections.deque()
        try:
            for chunk in chunks:
                parts = [np.array_split(x, min(self.threads, len(x))) for x in chunk]
                ahead.append([pool.submit(self._load, split, i, c, shape) for i, c in zip(*parts, strict=True)])
                # A chunk is worked on while another is handed over, and every thread has something to do.
                if len(ahead) > 1 and sum(map(len, ahead)) > 2 * self.threads:
                    yield _joined(ahead.popleft())
            while ahead:
                yield _joined(ahead.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def dataset(self, split: str, chunks: Callable[[], Iterable[Chunk]], shape: Shape) -> tf.data.Dataset:
        """Returns the records of `chunks()` in their order, with media of the given shape."""

        # tf.data cannot unbatch arrays of no elements: text has a dummy pixel until `parse`.
        generated = shape if shape[0] else (1, 1, 1, 1, 3)

        def generate() -> Iterator[tuple]:
            for rows in self._loaded(split, chunks(), generated):
                records, choices, errors, media = zip(*rows, strict=True)
                yield np.asarray(records, object), np.asarray(choices), np.asarray(errors, object), np.stack(media)

        signature = tuple(tf.TensorSpec([None], t) for t in (tf.string, tf.int64, tf.string))
        signature = (*signature, tf.TensorSpec([None, *generated], tf.uint8))
        ds = tf.data.Dataset.from_generator(generate, output_signature=signature).unbatch()

        def parse(record: tf.Tensor, choice: tf.Tensor, error: tf.Tensor, media: tf.Tensor) -> dict[str, tf.Tensor]:
            media = media if shape[0] else tf.zeros(shape, tf.uint8)
            return {**self.parse(record), "choice": choice, "error": error, "media": media}

        return ds.map(parse)

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


def _joined(pieces: list[futures.Future]) -> list[tuple]:
    return list(itertools.chain.from_iterable(piece.result() for piece in pieces))


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
