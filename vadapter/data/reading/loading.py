"""Reading batches of records with threads that work ahead."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any, TypeVar

import numpy as np

from vadapter.data.reading.features import CachedSource
from vadapter.data.reading.images import MediaError
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.rows.sizes import Shape

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_END: Any = object()
_MESSAGE = 1000  # characters of what is wrong with a record


@dataclasses.dataclass(frozen=True)
class Share:
    """Records of one source in a batch.

    Attributes:
        which: index of the source.
        rows: of the batch, where the records go.
        records: their indices in the source.
        choices: their random numbers, int64.
    """

    which: int
    rows: np.ndarray
    records: np.ndarray
    choices: np.ndarray

    def split(self, count: int) -> list["Share"]:
        """Returns it in `count` parts, at most one a record."""
        count = min(count, len(self.rows))
        parts = (np.array_split(values, count) for values in (self.rows, self.records, self.choices))
        return [Share(self.which, *part) for part in zip(*parts, strict=True)]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A batch of n records as they were read.

    Attributes:
        records: features of each, with `choice` and `error`.
        which: index of the source of each, int64 [n].
        media: uint8 [n, M, F, h, w, 3], or [n, M] of a feature cache; zeros where there is an error.
        mediums: what tells the media of each from others', where that was asked for and the record could be read.
    """

    records: list[dict[str, Any]]
    which: np.ndarray
    media: np.ndarray
    mediums: list[Medium | None]


def load(
    sources: Sequence[RandomAccessSource | CachedSource],
    split: str,
    plans: Iterable[Sequence[Share]],
    shape: Shape,
    *,
    dtype: np.dtype | type = np.uint8,
    threads: int = 0,
    with_medium: bool = False,
) -> Iterator[Loaded]:
    """Yields the batches that `plans` describe, in order, while threads work ahead.

    Args:
        sources: which the plans are of.
        split: of the sources.
        plans: the shares of each batch; together they have each of its rows once.
        shape: of a record's media.
        dtype: of these.
        threads: records that are read at once; 0 is the largest number that a source asks for.
        with_medium: whether `mediums` are asked for.
    """
    threads = threads or max(source.threads for source in sources)

    def pieces() -> Iterator[tuple[Loaded, Share, bool]]:
        for plan in plans:
            n = sum(len(share.rows) for share in plan)
            batch = Loaded([{}] * n, np.zeros(n, np.int64), np.zeros((n, *shape), dtype), [None] * n)
            parts = [part for share in plan for part in share.split(threads)]
            yield from ((batch, part, k == len(parts)) for k, part in enumerate(parts, 1))

    def read(piece: tuple[Loaded, Share, bool]) -> Loaded | None:
        batch, share, last = piece
        _fill(batch, share, sources[share.which], split, with_medium)
        return batch if last else None

    # In order, so the other pieces of a batch are done when its last one is.
    yield from (batch for batch in ordered_map(read, pieces(), threads) if batch is not None)


def _fill(
    batch: Loaded, share: Share, source: RandomAccessSource | CachedSource, split: str, with_medium: bool
) -> None:
    """Reads a share into the rows of its batch."""
    records, errors = source.read_some(split, share.records)
    for row, index, choice, record, error in zip(
        share.rows, share.records, share.choices, records, errors, strict=True
    ):
        found = {**source.features(record), "choice": int(choice), "error": error}
        if error:
            found["id"] = f"{split} record {index}"
        elif source.media != "none":
            if with_medium:
                batch.mediums[row] = source.medium(record)
            try:
                batch.media[row] = source.read_media(record, batch.media.shape[1:], int(choice))
            except (MediaError, OSError) as e:
                found["error"] = str(e)[:_MESSAGE]
        batch.records[row], batch.which[row] = found, share.which


def ordered_map(function: Callable[[_In], _Out], items: Iterable[_In], threads: int) -> Iterator[_Out]:
    """Yields `function(item)` of each item in order. More than one thread works on up to twice as many items ahead."""
    if threads <= 1:
        yield from map(function, items)
        return
    pool = futures.ThreadPoolExecutor(threads)
    ahead: collections.deque[futures.Future[_Out]] = collections.deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_ahead(items: Iterator[_In], count: int) -> Iterator[_In]:
    """Yields `items`, of which a thread makes `count` ahead. Closing it ends the thread; 0 makes none ahead."""
    if count < 1:
        yield from items
        return
    pool = futures.ThreadPoolExecutor(1)
    ahead = collections.deque(pool.submit(next, items, _END) for _ in range(count))
    try:
        while (item := ahead.popleft().result()) is not _END:
            ahead.append(pool.submit(next, items, _END))
            yield item
    finally:
        for waiting in ahead:
            waiting.cancel()
        if close := getattr(items, "close", None):
            pool.submit(close)  # there, since a generator cannot be closed while it runs
        pool.shutdown(wait=False)
