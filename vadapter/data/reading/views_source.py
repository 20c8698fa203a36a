"""Records of images as a model sees them that was trained on conversations with tiles, or on clips that stand still."""

import copy
from typing import Any, Self

import numpy as np

from vadapter.data.reading import images, tiles
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.rows.sizes import Shape, Views


class ViewsSource(RandomAccessSource):
    """The records of another source, each image of which is shown in several views.

    `num_media` of `features` says how many a record has.

    Args:
        records: a source of images.
        views: how they are seen.
    """

    def __init__(self, records: RandomAccessSource, views: Views):
        self._records, self._views = records, views
        self.splits, self.threads, self.resize = records.splits, records.threads, records.resize
        self.left_out, self.description = records.left_out, records.description
        self.media = "video" if views.clips else "image"
        self.max_tiles = views.max_tiles
        self.max_media = records.max_media * (1 + views.max_tiles)

    def __str__(self) -> str:
        return str(self._records)

    def resized(self, otherwise: str) -> Self:
        found = copy.copy(self)
        found._records = self._records.resized(otherwise)
        found.resize = found._records.resize
        return found

    def num_examples(self, split: str) -> int:
        return self._records.num_examples(split)

    def read(self, split: str, indices: np.ndarray) -> list[Any]:
        return self._records.read(split, indices)

    def blocks(self, split: str) -> np.ndarray | None:
        return self._records.blocks(split)

    def fingerprint(self, split: str) -> str:
        return self._records.fingerprint(split)

    def medium(self, record: Any) -> Medium:
        return self._records.medium(record)

    def contents(self, record: Any) -> list[bytes]:
        return self._records.contents(record)

    def features(self, record: Any) -> dict[str, Any]:
        found = self._records.features(record)
        try:
            shown = sum(map(self._count, self.contents(record)))
        except (MediaError, OSError):  # `read_media` says it
            shown = found.get("num_media", 1)
        return {**found, "num_media": shown}

    def read_media(self, record: Any, shape: Shape, choice: int = 0) -> np.ndarray:
        files, found = self.contents(record), np.zeros(shape, np.uint8)
        at = 0
        for i, file in enumerate(files, 1):
            try:
                for view in self._shown(file, shape[2]):
                    found[at] = view
                    at += 1
            except MediaError as e:
                raise MediaError(f"image {i} of {len(files)}: {e}" if len(files) > 1 else str(e)) from e
        return found

    def _count(self, file: bytes) -> int:
        """Views of an image; 1 of one that cannot be read."""
        try:
            columns, rows = tiles.grid_for(*images.size_of(file), self._views.max_tiles or 1)
        except MediaError:
            return 1
        return 1 + columns * rows if columns * rows > 1 else 1

    def _shown(self, file: bytes, size: int) -> list[np.ndarray]:
        return [images.decode(file, size, self.resize), *tiles.tiles_of(file, self._views.max_tiles, size)]
