"""Images or videos with captions, at scale: WebDataset tar, TFRecord, ArrayRecord, Parquet and JSONL files.

Every format is read at random (see `shards`), so the order of the data, its share among hosts and resuming are those of
any other task. Parquet can only be read by row groups: there the order is shuffled in blocks.
"""

import functools
import logging
from collections.abc import Sequence

import numpy as np

from vadapter.data.reading import storage, video
from vadapter.data.reading.media_folders import MediaFolders
from vadapter.data.reading.pair_formats import Fields
from vadapter.data.reading.pair_readers import open_files
from vadapter.data.reading.records import Record, RecordSource
from vadapter.data.reading.splits import Splits


class PairsSource(RecordSource):
    """Images or videos with captions from any number of files. See `tasks.pairs_task` for the arguments."""

    def __init__(
        self,
        train: str | Sequence[str],
        validation: str | Sequence[str] = "",
        *,
        fields: Fields,
        format: str = "auto",  # noqa: A002 the name in gin
        holdout: float = 0.0,
        resize: str | None = None,
        frame_sampling: str = "uniform",
        cache_dir: str = "",
        threads: int = 0,
        max_bad_share: float = 0.01,
        media_folders: str | Sequence[str] = (),
    ):
        video.check_sampling(frame_sampling)
        self.media, self.resize, self.frame_sampling = fields.kind, resize, frame_sampling
        self._parts = Splits(train, validation, lambda given: open_files(given, format, fields, cache_dir), holdout)
        self.folders = MediaFolders.of(sum(self._parts.files.values(), []), media_folders, "pairs_task.media_folders")
        self._name = train if isinstance(train, str) else train[0]
        self.threads = threads or storage.default_threads(self._name)
        self._parts.check_share(max_bad_share, "pairs_task.max_bad_share")
        self.left_out = self._parts.left_out
        if self.left_out:
            logging.warning("%s: left out %d records", self._name, self.left_out)
        self.splits = self._parts.names

    def __str__(self) -> str:
        return f"PairsSource({self._name})"

    def num_examples(self, split: str) -> int:
        return self._parts.count(split)

    def read(self, split: str, indices: np.ndarray) -> list[Record]:
        reader, places = self._parts.find(split, indices)
        return reader.read(places)

    def fingerprint(self, split: str) -> str:
        """See `contents.of_files`."""
        return self._parts.fingerprint(split)

    @functools.cache  # noqa: B019 sources live as long as the process
    def blocks(self, split: str) -> np.ndarray | None:
        return self._parts.blocks(split)
