"""seqio data sources with random access: ArrayRecord data sets of TFDS, and a user's own JSONL files.

A source reads serialised records by index (`read`), decodes their media in Python (`read_media`), and turns the rest
into features inside tf.data (`parse`). Beside its own features every record carries:

    media   uint8 [M, F, h, w, 3], decoded at the shape that `sequence_length["media"]` asks for
    id      tf.string, names the record in logs and results
    choice  tf.int64, the random number that preprocessors use to choose, say, one reference of several: a function of
            (seed, place in the order of data) in training, the record's index in evaluation
    error   tf.string, why the record cannot be used, or empty. Later steps may set it; they must not raise

So preprocessors keep one example per record, and an unreadable record becomes a row without weight.
"""

import abc
import contextlib
import functools
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from vadapter import trees
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
        threads: how many records are decoded at once. Small images are faster with 1.
    """

    media: str = "none"
    threads: int = 1

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    def list_shards(self, split: str) -> list[str]:
        return [split]

    @abc.abstractmethod
    def num_examples(self, split: str) -> int:
        """Returns the number of records in the split."""

    @abc.abstractmethod
    def read(self, split: str, indices: np.ndarray) -> list[bytes]:
        """Returns the serialised records. Raises any exception if one cannot be read."""

    @abc.abstractmethod
    def parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        """Turns one serialised record (scalar string tensor) into features with `id`. Graph code."""

    def read_media(self, record: bytes, shape: Shape) -> np.ndarray:
        """Returns the decoded media of one serialised record. Raises `MediaError` if they cannot be."""
        return np.zeros(shape, np.uint8)

    def num_input_examples(self, split: str) -> int:
        return self.num_examples(split)

    def _read_some(self, split: str, indices: np.ndarray) -> tuple[list[bytes], list[str]]:
        """Reads records; of those that cannot be read, the error and in their place a copy of a good one."""
        try:
            return self.read(split, indices), [""] * len(indices)
        except Exception:  # find which
            found: list[bytes | None] = []
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

    def _any_record(self, split: str) -> bytes:
        for i in range(self.num_examples(split)):
            try:
                return self.read(split, np.asarray([i]))[0]
            except Exception:
                continue
        raise UserError(
            f"Expected records in split {split!r} of {self}; not one can be read. Write the data set again."
        )

    def _decode(self, record: bytes, error: str, shape: Shape) -> tuple[np.ndarray, str]:
        """Returns (media, error); the media are zeros where there is an error."""
        if not error:
            try:
                return self.read_media(record, shape), ""
            except (images.MediaError, OSError) as e:
                error = str(e)
        return np.zeros(shape, np.uint8), error

    def dataset(self, split: str, chunks: Callable[[], Iterable[Chunk]], shape: Shape) -> tf.data.Dataset:
        """Returns the records of `chunks()` in their order, with media of the given shape."""

        # tf.data cannot unbatch arrays of no elements: text has a dummy pixel until `parse`.
        generated = shape if shape[0] else (1, 1, 1, 1, 3)

        def generate() -> Iterator[tuple]:
            with contextlib.ExitStack() as stack:
                run = map
                if self.threads > 1:
                    run = stack.enter_context(futures.ThreadPoolExecutor(self.threads)).map
                for indices, choices in chunks():
                    records, errors = self._read_some(split, indices)
                    decode = functools.partial(self._decode, shape=generated)
                    media, errors = zip(*run(decode, records, errors), strict=True)
                    yield np.asarray(records, object), choices, np.asarray(errors, object), np.stack(media)

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
        self._builder, self._id, self._resize = builder, id_feature, resize
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

    def read_media(self, record: bytes, shape: Shape) -> np.ndarray:
        if not shape[0] or self._media_key is None:
            return np.zeros(shape, np.uint8)
        encoded = tf.train.Example.FromString(record).features.feature[self._media_key].bytes_list.value
        if not encoded:
            raise images.MediaError("has no frames")
        chosen = video.sample_indices(len(encoded), shape[1])
        decoded = {i: images.decode(encoded[i], shape[2], self._resize) for i in set(chosen)}
        return np.stack([decoded[i] for i in chosen])[None]

    def parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        with logs.quiet():
            features = dict(self._features.deserialize_example(record))
        return {**features, "id": features[self._id]}


MEDIA_KEYS = ("image", "video")
_KNOWN = {*MEDIA_KEYS, "caption", "question", "answers", "id"}


class JsonlSource(RandomAccessSource):
    """Records of one kind in a user's JSONL files: (image or video) x (caption or question).

    A line is `{"image" or "video": path relative to the file, "caption": text or list of texts}` or
    `{"image" or "video": path, "question": text, "answers": list of texts}`, with an optional `"id"`. Lines that are
    not are left out, named in the log, and stop the run if they are more than `max_bad_share` of a file.

    Without a validation file, the share `holdout` of the media, chosen by a hash of the file's name, is held out of the
    training file, so that no image is in both splits.
    """

    def __init__(
        self,
        train: str,
        validation: str | None = None,
        *,
        media: str,
        question: bool,
        holdout: float = 0.05,
        max_bad_share: float = 0.01,
        resize: str = "stretch",
    ):
        self.media, self._resize, self.threads = media, resize, min(8, os.cpu_count() or 1)
        self._files = {"train": train} | ({"validation": validation} if validation else {})
        lines = {split: read_jsonl(path, max_bad_share) for split, path in self._files.items()}
        if not validation:
            lines["train"], lines["validation"] = _hold_out(lines["train"], holdout)
        wanted = [k for k in (media, "question" if question else "caption")]
        self._lines = {s: [line for line in found if all(k in line for k in wanted)] for s, found in lines.items()}
        self._kind = " ".join(wanted)
        super().__init__(splits=tuple(s for s, found in self._lines.items() if found), caching_permitted=False)

    def __str__(self) -> str:
        return f"JsonlSource({self._files['train']}, {self._kind})"

    def num_examples(self, split: str) -> int:
        return len(self._lines[split])

    def read(self, split: str, indices: np.ndarray) -> list[bytes]:
        return [_serialise(self._lines[split][int(i)]) for i in indices]

    def read_media(self, record: bytes, shape: Shape) -> np.ndarray:
        path = tf.train.Example.FromString(record).features.feature["path"].bytes_list.value[0].decode()
        if self.media == "video":
            return video.decode(path, shape[1], shape[2], self._resize)[None]
        return images.decode(Path(path).read_bytes(), shape[2], self._resize)[None, None]

    def parse(self, record: tf.Tensor) -> dict[str, tf.Tensor]:
        text = tf.io.FixedLenFeature([], tf.string)
        texts = tf.io.FixedLenSequenceFeature([], tf.string, allow_missing=True)
        return tf.io.parse_single_example(
            record, {"id": text, "path": text, "question": text, "captions": texts, "answers": texts}
        )


def _serialise(line: dict) -> bytes:
    """A line as a serialised tf.train.Example."""
    path = next(line[k] for k in MEDIA_KEYS if k in line)
    values = {"id": [line["id"]], "path": [path], "question": [line.get("question", "")]}
    values |= {"captions": line.get("caption", []), "answers": line.get("answers", [])}
    features = {
        k: tf.train.Feature(bytes_list=tf.train.BytesList(value=[t.encode() for t in v])) for k, v in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _hold_out(lines: list[dict], share: float) -> tuple[list[dict], list[dict]]:
    """Splits by a hash of the medium. Both parts have a medium where there are two."""
    media = sorted(
        {line[k] for line in lines for k in MEDIA_KEYS if k in line},
        key=lambda path: zlib.crc32(Path(path).name.encode()),
    )
    count = min(max(round(share * len(media)), 1), len(media) - 1) if share > 0 else 0
    held = set(media[:count])
    parts: tuple[list[dict], list[dict]] = ([], [])
    for line in lines:
        parts[any(line.get(k) in held for k in MEDIA_KEYS)].append(line)
    return parts


def read_jsonl(path: str, max_bad_share: float = 0.01) -> list[dict]:
    """Reads and checks a JSONL file of media with captions or questions.

    Returns:
        A dict a line: `id`, `image` or `video` (absolute path), `caption` (list) or `question` and `answers` (list).

    Raises:
        UserError: no such file, nothing in it, or more than `max_bad_share` of its lines are bad.
    """
    file = Path(path).expanduser().resolve()
    try:
        texts = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Expected a JSONL file in UTF-8 at {file}; {e}. Correct the path or the file.") from e
    good, bad, unknown = [], [], set()
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            line = _check_line(json.loads(text))
        except ValueError as e:
            bad.append(f"{file.name}:{number}: {e}")
            logging.warning("left out %s/%s", file.parent, bad[-1])
            continue
        unknown |= set(line) - _KNOWN
        media = next(k for k in MEDIA_KEYS if k in line)
        line["id"] = str(line.get("id", f"{file.name}:{number}"))
        good.append({**line, media: str(file.parent / line[media])})
    if unknown:
        logging.warning("%s: fields that are not used: %s", file, ", ".join(sorted(unknown)))
    if not good or len(bad) > max_bad_share * (len(good) + len(bad)):
        raise UserError(
            f"Expected in {file} lines of the form {{'image' or 'video': path, 'caption': text}} or {{'image' or "
            f"'video': path, 'question': text, 'answers': [texts]}}; found {len(good)} such lines and {len(bad)} others"
            + (f", first {'; '.join(bad[:3])}" if bad else "")
            + f". Correct them, or allow a larger share than {max_bad_share:.1%} (max_bad_share)."
        )
    return good


def _texts(line: dict, key: str) -> list[str]:
    value = line[key] if isinstance(line[key], list) else [line[key]]
    if not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError(f"{key!r} is empty or not text")
    return [v.strip() for v in value]


def _check_line(line: Any) -> dict:
    """Returns the line with texts as lists. Raises ValueError saying what is wrong."""
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    media = [k for k in MEDIA_KEYS if k in line]
    if len(media) != 1 or not isinstance(line[media[0]], str) or not line[media[0]]:
        raise ValueError(f"needs one of 'image' and 'video' with a path{_hint(line)}")
    if ("caption" in line) == ("question" in line):
        raise ValueError(f"needs either 'caption' or 'question' with 'answers'{_hint(line)}")
    if "caption" in line:
        return {**line, "caption": _texts(line, "caption")}
    if "answers" not in line:
        raise ValueError(f"has 'question' but no 'answers'{_hint(line)}")
    if not isinstance(line["question"], str) or not line["question"].strip():
        raise ValueError("'question' is empty or not text")
    return {**line, "answers": _texts(line, "answers")}


def _hint(line: dict) -> str:
    unknown = sorted(set(line) - _KNOWN)
    return (
        f" (found {', '.join(f'{k!r}, near {trees.nearest(k, _KNOWN, 1)[0]!r}' for k in unknown)})" if unknown else ""
    )
