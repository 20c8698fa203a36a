"""The splits of sources that read any number of files: what is trained on, and what is held out of it."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from vadapter.base.errors import UserError
from vadapter.data.reading import contents, shards

TRAIN, VALIDATION = "train", "validation"


class Records(Protocol):
    """Records of files, numbered through."""

    left_out: int

    def __len__(self) -> int: ...

    def blocks(self) -> np.ndarray | None:
        """Returns the numbers of records that are read together, in their order; None where each is read alone."""
        ...


R = TypeVar("R", bound=Records)


class Splits(Generic[R]):
    """The records of training files and of validation files, or of a share of the training files.

    What is held out is drawn, one record of each of as many equal stretches: so it has some of every file, however the
    files are sorted. The draw is the same in every run on the same files.

    Args:
        train: patterns of the files to train on.
        validation: of those to evaluate on; empty holds out `holdout`.
        open_files: opens files.
        holdout: share of the records, at least one; 0 is none.

    Attributes:
        train: the reader of the training files.
        files: names of the files of each split.
        left_out: records that cannot be used, of all files.
    """

    def __init__(
        self,
        train: str | Sequence[str],
        validation: str | Sequence[str],
        open_files: Callable[[str | Sequence[str]], R],
        holdout: float,
    ):
        self.train = open_files(train)
        self.files = {TRAIN: shards.expand(train)}
        self._held = np.zeros(0, np.int64)
        self._other: R | None = None
        if validation:
            self._other, self.files[VALIDATION] = open_files(validation), shards.expand(validation)
        elif holdout > 0:
            total = len(self.train)
            self._held = _drawn(total, min(max(round(holdout * total), 1), total - 1))
        self.left_out = self.train.left_out + (0 if self._other is None else self._other.left_out)

    @property
    def names(self) -> tuple[str, ...]:
        """The splits that there are."""
        return (TRAIN, VALIDATION) if self._other is not None or len(self._held) else (TRAIN,)

    def check_share(self, most: float, setting: str) -> None:
        """Raises `UserError` if too many records cannot be used.

        Args:
            most: share of the records of the training or of the validation files.
            setting: the argument that says so.
        """
        for reader, files in ((self.train, self.files[TRAIN]), (self._other, self.files.get(VALIDATION, [""]))):
            total = 0 if reader is None else reader.left_out + len(reader)
            if reader is not None and reader.left_out > most * total:
                raise UserError(
                    f"Expected at most {most:.1%} of the records of {files[0]} to be unusable; found "
                    f"{reader.left_out} of {total} (named in the log). Repair the files, or raise {setting}."
                )

    def count(self, split: str) -> int:
        """Returns the number of records of a split."""
        if split == VALIDATION:
            return len(self._held) if self._other is None else len(self._other)
        return len(self.train) - len(self._held)

    def find(self, split: str, indices: Any) -> tuple[R, np.ndarray]:
        """Returns the reader that has a split's records, and their numbers in it."""
        indices = np.asarray(indices, np.int64)
        if split == VALIDATION:
            return (self.train, self._held[indices]) if self._other is None else (self._other, indices)
        # The record i of training stands behind all that is held out with fewer than i + 1 kept before it.
        kept_before = self._held - np.arange(len(self._held))
        return self.train, indices + np.searchsorted(kept_before, indices, side="right")

    def fingerprint(self, split: str, *more: Any) -> str:
        """Returns the sha256 of a split's content; see `contents.of_files`."""
        files = self.files.get(split) or self.files[TRAIN]
        held = split == VALIDATION and self._other is None
        return contents.of_values([contents.of_files(files), held, self._held.tolist(), *more])

    def blocks(self, split: str) -> np.ndarray | None:
        """Returns the sizes of the blocks of a split; see `Records.blocks`."""
        reader = self._other if split == VALIDATION and self._other is not None else self.train
        sizes = reader.blocks()
        if sizes is None or reader is self._other:
            return sizes
        ends = np.cumsum(sizes)
        held = np.diff(np.searchsorted(self._held, ends), prepend=0)
        inside = held if split == VALIDATION else sizes - held
        return inside[inside > 0]


def _drawn(total: int, count: int) -> np.ndarray:
    """Returns `count` of the numbers below `total`, rising: one of each of `count` equal stretches."""
    starts = np.arange(count + 1, dtype=np.int64) * total // max(count, 1)
    # RandomState, whose numbers numpy promises not to change.
    return starts[:-1] + (np.random.RandomState(0).random_sample(count) * np.diff(starts)).astype(np.int64)
