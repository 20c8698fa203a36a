"""The tasks of a mixture, grouped by the shape of their media: a batch is made of one group."""

import dataclasses

import seqio

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.data.order.config import LoaderConfig
from vadapter.data.reading.sources import RandomAccessSource
from vadapter.data.rows.converters import check_lengths
from vadapter.data.rows.preprocessors import MediaFeature


@dataclasses.dataclass(frozen=True)
class Group:
    """Tasks whose examples have one shape, and their rates."""

    media_shape: tuple[int, ...]
    tasks: tuple[seqio.Task, ...]
    rates: tuple[float, ...]

    @property
    def labelled(self) -> bool:
        return "labels" in self.tasks[0].output_features


def provider(name: str) -> seqio.Task | seqio.Mixture:
    """Returns the task or mixture of a name. A `UserError` with the nearest names where there is none."""
    known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name not in known:
        raise UserError(
            f"Expected the name of a registered task or mixture; found {name!r}. The nearest of the {len(known)} known "
            f"are {', '.join(trees.nearest(name, known)) or '(none)'}: correct the name, or register it "
            "(register_scenes, jsonl_task)."
        )
    return seqio.get_mixture_or_task(name)


def tasks(provider: seqio.Task | seqio.Mixture, split: str) -> list[seqio.Task]:
    """Returns the tasks of a mixture that have records in a split.

    Raises:
        UserError: no task has, or one is not of a `RandomAccessSource`.
    """
    every = list(seqio.get_subtasks(provider))
    for task in every:
        if not isinstance(task.source, RandomAccessSource) or not isinstance(
            task.output_features.get("media"), MediaFeature
        ):
            raise UserError(
                "Expected tasks with a source that is a RandomAccessSource and with the output feature `media`; "
                f"task {task.name} has a {type(task.source).__name__} and {sorted(task.output_features)}. Register it "
                "with vadapter.data.tasks.add_task."
            )
    found = [t for t in every if split in t.source.splits and t.source.num_examples(split)]
    if not found:
        splits = sorted({s for t in every for s in t.source.splits})
        raise UserError(
            f"Expected a split of {provider.name}, one of {', '.join(splits)}; found {split!r}. Choose one."
        )
    return found


def grouped(provider: seqio.Task | seqio.Mixture, tasks: list[seqio.Task], config: LoaderConfig) -> list[Group]:
    """Groups tasks by the shape of their media, in the order of the tasks' names."""
    found: dict[tuple, list[seqio.Task]] = {}
    for task in sorted(tasks, key=lambda t: t.name):
        labelled = "labels" in task.output_features
        if not labelled:
            check_lengths(config.lengths)
        shape = task.output_features["media"].shape(config.image_size, config.num_frames)
        found.setdefault((labelled, shape), []).append(task)
    mixture = provider if isinstance(provider, seqio.Mixture) else None
    return [
        Group(shape, tuple(group), tuple(float(mixture.get_rate(t)) if mixture else 1.0 for t in group))
        for (_, shape), group in found.items()
    ]
