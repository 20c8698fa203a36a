"""Images or videos with captions, at scale: WebDataset tar, TFRecord, ArrayRecord, Parquet and JSONL files.

Every format is read at random (see `shards`), so the order of the data, its share among hosts and resuming are those of
any other task. Parquet can only be read by row groups: there the order is shuffled in blocks.
"""

import functools
import logging
from collections.abc import Sequence

import numpy as np

from vadapter.base.errors import UserError
from vadapter.data.reading import contents, shards, storage, video
from vadapter.data.reading.media_folders import MediaFolders
from vadapter.data.reading.pair_formats import Fields
from vadapter.data.reading.pair_readers import Reader, open_files
from vadapter.data.reading.records import Record, RecordSource


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
        reader = open_files(train, format, fields, cache_dir)
        files = [file for given in (train, validation) if given for file in shards.expand(given)]
        self.folders = MediaFolders.of(files, media_folders, "pairs_task.media_folders")
        first = train if isinstance(train, str) else train[0]
        self._files = {"train": shards.expand(train)}
        self._name = first
        self.threads = threads or storage.default_threads(first)
        held = 0 if validation or holdout <= 0 else min(max(round(holdout * len(reader)), 1), len(reader) - 1)
        self._parts: dict[str, tuple[Reader, int, int]] = {"train": (reader, 0, len(reader) - held)}
        if held:
            self._parts["validation"] = (reader, len(reader) - held, len(reader))
        if validation:
            other = open_files(validation, format, fields, cache_dir)
            self._parts["validation"] = (other, 0, len(other))
            self._files["validation"] = shards.expand(validation)
        for each in {id(r): r for r, _, _ in self._parts.values()}.values():
            self._check_share(each, max_bad_share)
            self.left_out += each.left_out
        self.splits = tuple(self._parts)

    def _check_share(self, reader: Reader, max_bad_share: float) -> None:
        total = reader.left_out + len(reader)
        if reader.left_out:
            logging.warning("%s: left out %d of %d records", self._name, reader.left_out, total)
        if reader.left_out > max_bad_share * total:
            raise UserError(
                f"Expected at most {max_bad_share:.1%} of the records of {self._name} to be unusable; found "
                f"{reader.left_out} of {total} (named in the log). Repair the files, or raise max_bad_share."
            )

    def __str__(self) -> str:
        return f"PairsSource({self._name})"

    def num_examples(self, split: str) -> int:
        _, start, stop = self._parts[split]
        return stop - start

    def read(self, split: str, indices: np.ndarray) -> list[Record]:
        reader, start, _ = self._parts[split]
        return reader.read(np.asarray(indices) + start)

    def fingerprint(self, split: str) -> str:
        """See `contents.of_files`."""
        _, start, stop = self._parts[split]
        return contents.of_values([contents.of_files(self._files.get(split) or self._files["train"]), start, stop])

    @functools.cache  # noqa: B019 sources live as long as the process
    def blocks(self, split: str) -> np.ndarray | None:
        reader, start, stop = self._parts[split]
        sizes = reader.blocks()
        if sizes is None:
            return None
        ends = np.clip(np.cumsum(sizes), start, stop)
        inside = np.diff(ends, prepend=start)
        return inside[inside > 0]
