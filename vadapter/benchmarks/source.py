"""`BenchmarkSource`: the built splits of a benchmark as a seqio source."""

import functools
import itertools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vadapter.benchmarks.builder import Benchmarks
from vadapter.data.reading import images, video
from vadapter.data.reading.array_records import ArrayRecordSource
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.rows import few_shot
from vadapter.data.rows.sizes import Shape

_READ = 10_000
Record = tuple[Any, list[bytes]]  # a tf.train.Example, and the files of its media


class BenchmarkSource(RandomAccessSource):
    """Splits of one benchmark, each a built data set of `builder`.

    Features beside those of every source: `captions` or `question` and `answers`; `question_type`, `answer_type`,
    `domain` (empty where the benchmark has none), `options` to choose from, `image`, the names of the files without
    their endings, and `num_media`, how many there are.
    """

    def __init__(
        self,
        builders: Mapping[str, Benchmarks],
        media: str,
        resize: str | None = None,
        frame_sampling: str = "uniform",
    ):
        """Args:
        builders: a built builder for each split.
        media: image or video.
        resize, frame_sampling: see `RandomAccessSource`.
        """
        self.media, self.resize, self.frame_sampling = media, resize, frame_sampling
        self.threads = min(8, os.cpu_count() or 1)
        self._parts = {split: ArrayRecordSource(made, "id") for split, made in builders.items()}
        self.left_out = sum(len((made.info.metadata or {}).get("left_out", ())) for made in builders.values())
        self.max_media = max(1, *((made.info.metadata or {}).get("max_media", 1) for made in builders.values()))
        self.splits = tuple(builders)

    def __str__(self) -> str:
        return f"BenchmarkSource({', '.join(str(part) for part in self._parts.values())})"

    def num_examples(self, split: str) -> int:
        return self._parts[split].num_examples(split)

    def fingerprint(self, split: str) -> str:
        """That of the built data set."""
        return self._parts[split].fingerprint(split)

    def read(self, split: str, indices: np.ndarray) -> list[Record]:
        part = self._parts[split]
        found = part.read(split, indices)
        owners = [example.features.feature["at"].int64_list.value[0] for example in found]
        own = [int(i) == at for i, at in zip(indices, owners, strict=True)]
        others = sorted({at for at, mine in zip(owners, own, strict=True) if not mine})
        files = dict(zip(others, map(_files, part.read(split, np.asarray(others))), strict=True)) if others else {}
        return [
            (example, _files(example) if mine else files[at])
            for example, at, mine in zip(found, owners, own, strict=True)
        ]

    def features(self, record: Record) -> dict[str, Any]:
        features = next(iter(self._parts.values())).features(record[0])
        features["image"], features["num_media"] = features.pop("file_name"), len(record[1])
        return {key: value for key, value in features.items() if key not in ("file", "at")}

    def contents(self, record: Record) -> list[bytes]:
        return record[1]

    def medium(self, record: Record) -> Medium:
        return Medium.of_bytes(record[1])

    def read_media(self, record: Record, shape: Shape, choice: int = 0) -> np.ndarray:
        found = np.zeros(shape, np.uint8)
        for i, file in enumerate(record[1]):
            try:
                found[i] = self._frames(file, shape, choice)
            except MediaError as e:
                raise MediaError(f"image {i + 1} of {len(record[1])}: {e}" if len(record[1]) > 1 else str(e)) from e
        return found

    def _frames(self, file: bytes, shape: Shape, choice: int) -> np.ndarray:
        if self.media == "video":
            return video.decode(file, shape[1], shape[2], self.resize, self.frame_sampling, choice)
        return images.decode(file, shape[2], self.resize)[None]


def _files(record: Any) -> list[bytes]:
    return list(record.features.feature["file"].bytes_list.value)


class TrainingPairs:
    """Questions and answers of a built data set of text only: `few_shot.Pairs`.

    They are kept in memory from the first use on: 200 bytes a question, and a call that reads one record
    takes as long as one that reads hundreds.
    """

    def __init__(self, made: Benchmarks):
        self._split = next(iter(made.info.splits))
        self._source = ArrayRecordSource(made, "id")

    def __len__(self) -> int:
        return self._source.num_examples(self._split)

    @functools.cached_property
    def _records(self) -> list[Any]:
        starts = range(0, len(self), _READ)
        pieces = (self._source.read(self._split, np.arange(i, min(i + _READ, len(self)))) for i in starts)
        return list(itertools.chain.from_iterable(pieces))

    def __getitem__(self, index: int) -> tuple[str, str, str, str]:
        values = self._records[index].features.feature
        name, image, question = (values[k].bytes_list.value[0].decode() for k in ("id", "file_name", "question"))
        return name, image, question, few_shot.usual([a.decode() for a in values["answers"].bytes_list.value])
