"""The tasks of a mixture, grouped by the shape of their media: a batch is made of one group."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from vadapter.base.errors import UserError
from vadapter.data.reading.features import Store
from vadapter.data.reading.loading import Share, load
from vadapter.data.reading.sources import Medium, RandomAccessSource
from vadapter.data.reading.views_source import ViewsSource
from vadapter.data.rows.converters import Arrays, Example, Rows, TextRows, stacked
from vadapter.data.rows.preprocessors import Chat
from vadapter.data.rows.sizes import WHOLE, Layout, Shape, Sizes, layout_of
from vadapter.data.seqio_tasks import Task, provider, tasks_of


@dataclasses.dataclass(frozen=True)
class RowBatch:
    """Rows before they become a batch.

    Attributes:
        examples: of each row, with `id`, `error` and texts.
        arrays: of all rows, the batch as first axis.
        media: uint8 [B, M, F, h, w, 3], or [B, M] of a feature cache.
        mediums: what tells the media of each row from others', where that was asked for.
    """

    examples: list[Example]
    arrays: Arrays
    media: np.ndarray
    mediums: list[Medium | None]


@dataclasses.dataclass(frozen=True)
class Group:
    """Tasks whose examples have one shape, their rates, and how a model sees pictures where a task does not say it.

    Raises:
        UserError: rows are to be written for a tiny LM too, and those of a task cannot be.
    """

    media_shape: Shape
    tasks: tuple[Task, ...]
    rates: tuple[float, ...]
    sizes: Sizes

    def __post_init__(self) -> None:
        for task in self.tasks if self.sizes.tiny else ():
            _check_tiny(task)

    @property
    def rows(self) -> Rows:
        """How their examples become a batch."""
        return self.tasks[0].rows

    def read(
        self,
        split: str,
        plans: Iterable[Sequence[Share]],
        layout: Layout,
        *,
        threads: int = 0,
        with_medium: bool = False,
        features: Store | None = None,
    ) -> Iterator[RowBatch]:
        """Yields the rows of the batches that `plans` describe, in order.

        Args:
            split: of the tasks.
            plans: the shares of each batch; `which` is the index of a task.
            layout: of the rows.
            threads, with_medium: see `loading.load`.
            features: a cache that is read in place of the media.
        """
        lengths = {**layout.lengths, "media": self.media_shape}
        prepare = [task.examples_of(lengths) for task in self.tasks]
        tiny = None if layout.for_decoding else self.sizes.tiny
        rewrite = [task.examples_of(lengths, tiny.vocabulary) for task in self.tasks] if tiny else []
        sources: list[Any] = [records_of(task, self.sizes).resized(self.sizes.resize) for task in self.tasks]
        shape, dtype = self.media_shape, np.dtype(np.uint8)
        if features is not None:
            names = [task.name for task in self.tasks]
            sources = [features.source(name, source) for name, source in zip(names, sources, strict=True)]
            shape, dtype = shape[:1], features.dtype(names[0])
        read = load(sources, split, plans, shape, dtype=dtype, threads=threads, with_medium=with_medium)
        for loaded in read:
            examples = [prepare[which](x) for which, x in zip(loaded.which, loaded.records, strict=True)]
            rows = [self.tasks[i].rows.row(x, layout) for i, x in zip(loaded.which, examples, strict=True)]
            if tiny:
                for i, record, row in zip(loaded.which, loaded.records, rows, strict=True):
                    kind: Any = self.tasks[i].rows  # see `_check_tiny`
                    row |= tiny.row(kind, rewrite[i](record), layout, self.media_shape[1])
            yield RowBatch(examples, stacked(rows), loaded.media, loaded.mediums)


def records_of(task: Task, sizes: Sizes) -> RandomAccessSource:
    """Returns a task's records as a model sees them: see `Views`. Those of a `chat_task` say it themselves."""
    if sizes.views == WHOLE or task.records.media != "image" or any(isinstance(step, Chat) for step in task.ours):
        return task.records
    templates = [template for step in task.ours for template in step.templates("image").values()]
    views = sizes.views.of(templates[0]) if templates else sizes.views
    return task.records if views == WHOLE else ViewsSource(task.records, views)


def media_shape_of(task: Task, sizes: Sizes) -> Shape:
    """Returns (M, F, h, w, 3) of a task's records."""
    records = records_of(task, sizes)
    return sizes.media_shape(records.media, records.max_media)


def tasks_with_records(mixture: str, split: str) -> list[Task]:
    """Returns the tasks of a mixture that have records in a split.

    Raises:
        UserError: no task has, or as `tasks_of`.
    """
    every = tasks_of(mixture)
    found = [task for task in every if task.num_examples(split)]
    if not found:
        splits = sorted({s for task in every for s in task.records.splits})
        raise UserError(f"Expected a split of {mixture}, one of {', '.join(splits)}; found {split!r}. Choose one.")
    return found


def grouped(mixture: str, tasks: Sequence[Task], lengths: Mapping[str, int], sizes: Sizes) -> list[Group]:
    """Groups tasks by the shape of their media and the kind of their batches, in the order of the tasks' names.

    Raises:
        UserError: lengths without room, media that the model was not made for, or rows that cannot be written for a
            tiny LM too, where that is asked for.
    """
    found: dict[tuple, list[Task]] = {}
    for task in tasks:
        shape = media_shape_of(task, sizes)
        if shape[0]:
            sizes.check_frames(shape[1])
        task.rows.check(layout_of(lengths, sizes, shape))
        found.setdefault((task.rows.batch_type, shape), []).append(task)
    whole = provider(mixture)
    rates = {t.name: float(whole.get_rate(t)) if isinstance(whole, seqio.Mixture) else 1.0 for t in tasks}
    return [Group(shape, tuple(some), tuple(rates[t.name] for t in some), sizes) for (_, shape), some in found.items()]


def _check_tiny(task: Task) -> None:
    """Refuses rows that cannot be written in the ids of a second vocabulary."""
    if not isinstance(task.rows, TextRows) or len(task.ours) != len(task.preprocessors):
        raise UserError(
            f"The tiny LM's own loss (ObjectiveConfig.tiny_loss) needs rows that can be written in its ids too: "
            f"TextRows, by preprocessors of vadapter's kind. Task {task.name} has {type(task.rows).__name__}, and "
            f"{len(task.preprocessors) - len(task.ours)} preprocessors of another kind. Write them as Preprocessor "
            "(vadapter/data/rows/preprocessors.py), or set tiny_loss to 0."
        )
