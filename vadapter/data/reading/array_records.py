"""Data sets that TFDS wrote as ArrayRecord files, read at random."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from vadapter.base.errors import UserError
from vadapter.data.reading import contents, video
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.rows.sizes import Shape


class ArrayRecordSource(RandomAccessSource):
    """Splits of a TFDS builder that was written as ArrayRecord.

    The media are its feature `image`, or `frames` (a list of images: a clip), where it has one.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, id_feature: str = "scene", resize: str | None = None):
        """Args:
        builder: prepared with `file_format="array_record"`.
        id_feature: the text feature that names a record.
        resize: see `RandomAccessSource`.

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
        self._readers: dict[str, Any] = {}  # of each split; shared with what `resized` returns, pass for pass
        features = builder.info.features
        assert isinstance(features, tfds.features.FeaturesDict)
        self._media_key = next((k for k in ("image", "frames") if k in features), None)
        self.media = {"image": "image", "frames": "video", None: "none"}[self._media_key]
        self._features: Mapping[str, Any] = {k: features[k] for k in features if k != self._media_key}
        self.splits = tuple(builder.info.splits)

    def __str__(self) -> str:
        return f"ArrayRecordSource({self._builder.data_path})"

    def num_examples(self, split: str) -> int:
        return self._builder.info.splits[split].num_examples

    def fingerprint(self, split: str) -> str:
        """Of what the builder wrote down: its configuration, and numbers and bytes of its records."""
        return contents.of_split(self._builder, split)

    def _reader(self, split: str) -> Any:
        from array_record.python import array_record_data_source

        if split not in self._readers:
            files = [str(f) for f in self._builder.info.splits[split].filepaths]
            self._readers[split] = array_record_data_source.ArrayRecordDataSource(files)
        return self._readers[split]

    def read(self, split: str, indices: np.ndarray) -> list[Any]:
        """Returns messages tf.train.Example."""
        return [tf.train.Example.FromString(r) for r in self._reader(split).__getitems__([int(i) for i in indices])]

    def features(self, record: Any) -> dict[str, Any]:
        values = record.features.feature
        found = {key: _value(feature, values[key]) for key, feature in self._features.items()}
        return {**found, "id": found[self._id]}

    def read_media(self, record: Any, shape: Shape, choice: int = 0) -> np.ndarray:
        encoded = self.contents(record)
        return video.from_images(encoded, shape[1], shape[2], self.resize, self.frame_sampling, choice)[None]

    def contents(self, record: Any) -> list[bytes]:
        """The encoded image, or encoded frames."""
        return list(record.features.feature[self._media_key].bytes_list.value)

    def medium(self, record: Any) -> Medium:
        return Medium.of_bytes(self.contents(record))


def _value(feature: Any, stored: Any) -> Any:
    """A text, bytes, a list of them, or an array of numbers."""
    inner = getattr(feature, "feature", feature)  # of a Sequence
    if isinstance(inner, tfds.features.Text):
        texts = [value.decode(errors="replace") for value in stored.bytes_list.value]
        return texts if inner is not feature else texts[0]
    if inner.np_dtype == np.object_ or inner.np_dtype == np.bytes_:
        return stored.bytes_list.value[0] if inner is feature else list(stored.bytes_list.value)
    numbers = stored.int64_list.value or stored.float_list.value
    return np.asarray(numbers, inner.np_dtype).reshape([-1 if n is None else n for n in feature.shape])
