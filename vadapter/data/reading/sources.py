"""Sources: records that can be read at random.

A source reads records by index (`read`), in a form of its own, and gives of each what the rest needs: its texts as
plain Python values (`features`), its decoded media (`read_media`), and what tells its medium from others (`medium`).
Every record is handed on with `id`, `choice` and `error` (see `preprocessors.Preprocessor`), so an unreadable one
becomes a row without weight.
"""

import abc
import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Self

import numpy as np

from vadapter.base.errors import UserError
from vadapter.data.reading import storage
from vadapter.data.rows.sizes import Shape

_SHOWN = 300  # characters of what is wrong with a record


@dataclasses.dataclass(frozen=True)
class Medium:
    """Names a record's image or video.

    Attributes:
        digest: the first 16 bytes of the sha256 of its encoded bytes; None if they cannot be read or the source does
            not give them.
        path: of its file, or "" where it lies in the record.
    """

    digest: bytes | None = None
    path: str = ""

    @classmethod
    def of_bytes(cls, parts: Iterable[bytes]) -> "Medium":
        """Returns that of an encoded file, or of the encoded frames of a clip."""
        return cls(_digest(parts))

    @classmethod
    def of_file(cls, path: str) -> "Medium":
        """Returns that of a file, local or remote."""
        try:
            with storage.open_file(path) as file:
                return cls(_digest(iter(lambda: file.read(1 << 20), b"")), path)
        except Exception:  # a missing or unreadable file, here or in a bucket: decoding it says what is wrong
            return cls(None, path)


def _digest(parts: Iterable[bytes]) -> bytes | None:
    found, size = hashlib.sha256(), 0
    for part in parts:
        found.update(part)
        size += len(part)
    return found.digest()[:16] if size else None


class RandomAccessSource(abc.ABC):
    """Records by index. `vadapter.data.tasks.add_task` makes a seqio task of one.

    Attributes:
        splits: their names.
        media: what the records show: none, image or video.
        threads: how many records are read and decoded at once. Small images are faster with 1.
        resize: how pictures become square, see `resizing.parse`; None is the encoder's way, which `resized` puts in
            its place before media are read.
        frame_sampling: which frames of a video are taken, see `video.decode`.
        left_out: records that were found to be unusable before any was read, for the log.
        max_media: most media of a record; where it is more than 1, a record may have fewer.
        max_tiles: most tiles that follow an image, as media of their own; see `vadapter.data.reading.tiles`.
        description: what its files were taken for, for people; "" where there is nothing to say.
    """

    splits: Sequence[str] = ()
    media: str = "none"
    threads: int = 1
    resize: str | None = None
    frame_sampling: str = "uniform"
    left_out: int = 0
    max_media: int = 1
    max_tiles: int = 0
    description: str = ""

    def resized(self, otherwise: str) -> Self:
        """Returns the source with this way to make pictures square, where it has none of its own."""
        if self.resize is not None:
            return self
        found = copy.copy(self)
        found.resize = otherwise
        return found

    @abc.abstractmethod
    def num_examples(self, split: str) -> int:
        """Returns the number of records in the split."""

    @abc.abstractmethod
    def read(self, split: str, indices: np.ndarray) -> list[Any]:
        """Returns the records in a form of the source's own. Raises any exception if one cannot be read.

        Threads call it at the same time.
        """

    @abc.abstractmethod
    def features(self, record: Any) -> dict[str, Any]:
        """Returns what preprocessors need of a record: `id`, which names it, and texts, lists of texts or arrays.

        All records of a source have the same keys.
        """

    def read_media(self, record: Any, shape: Shape, choice: int = 0) -> np.ndarray:
        """Returns the decoded media of a record. Raises `MediaError` if they cannot be.

        Args:
            record: from `read`.
            shape: M, F, h, w, 3 of the result.
            choice: the record's random number.
        """
        return np.zeros(shape, np.uint8)

    def contents(self, record: Any) -> list[bytes]:
        """Returns the encoded images of a record, for sources of images. Raises `MediaError` as `read_media`."""
        raise NotImplementedError(f"{type(self).__name__} has no images")

    def medium(self, record: Any) -> Medium:
        """Returns what tells the medium of a record from others. A source that does not say finds no copies."""
        return Medium()

    def blocks(self, split: str) -> np.ndarray | None:
        """Returns sizes of runs of records that are cheap to read together only; None where any order is cheap."""
        return None

    def fingerprint(self, split: str) -> str:
        """Returns what tells the contents of a split from others, wherever they lie; "" where that is not known.

        It is asked for when a run starts, so it has to be cheap.
        """
        return ""

    def read_some(self, split: str, indices: np.ndarray) -> tuple[list[Any], list[str]]:
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
                    errors.append(f"cannot be read ({e})")
        good = next((r for r in found if r is not None), None) or self._any_record(split)
        return [good if r is None else r for r in found], errors

    def _any_record(self, split: str) -> Any:
        why = "there are none"
        for i in range(self.num_examples(split)):
            try:
                return self.read(split, np.asarray([i]))[0]
            except Exception as e:
                why = f"the last one {e}"[:_SHOWN]
        raise UserError(
            f"Expected records in split {split!r} of {self}; not one can be read: {why}. Correct them, or write the "
            "data set again."
        )
