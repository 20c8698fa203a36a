"""Batches of vadapter's loader as a data set of t5x.

They are those of `vadapter train`, in its order, and the position is a number in t5x's checkpoint: a run that was
stopped goes on with the very next batch. t5x's own `utils.get_dataset` reads vadapter's tasks too, in seqio's order.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from clu.data import dataset_iterator
from etils import epath

from vadapter.base import files, json_text
from vadapter.base.errors import UserError
from vadapter.contrib.t5x.model import FIELDS
from vadapter.data.order.groups import tasks_with_records
from vadapter.data.order.loader import Loader
from vadapter.recipes import experiments
from vadapter.runs.batches import for_model
from vadapter.runs.experiment import Experiment, Parts

Arrays = dict[str, np.ndarray]


class Batches(dataset_iterator.DatasetIterator):
    """The training batches from step 0 on, each a dict of the fields of a `Batch`.

    Args:
        loader: of this process's rows.

    Raises:
        UserError: batches differ in shape, as those of images and videos do: t5x compiles one.
    """

    def __init__(self, loader: Loader):
        self._loader, self._step = loader, 0
        self._running: Iterator[Any] | None = None
        self._spec = _spec(_arrays(next(iter(loader.batches(0)))))

    @property
    def element_spec(self) -> dict[str, Any]:
        return self._spec

    def __next__(self) -> Arrays:
        if self._running is None:
            self._running = iter(self._loader.batches(self._step))
        found = _arrays(next(self._running))
        _check_shapes(found, self._spec, self._loader.config.mixture)
        self._step += 1
        return found

    def reset(self) -> None:
        self._step, self._running = 0, None

    def save(self, filename: Any) -> None:
        files.write_json(epath.Path(filename), {"step": self._step})

    def restore(self, filename: Any) -> None:
        self.reset()
        try:
            self._step = int(json_text.read(str(filename))["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{filename} does not say the step of the data ({error}). Use another checkpoint."
            ) from error

    load = restore


class _Pass:
    """Batches of one pass over a split, as t5x evaluates them."""

    def __init__(self, loader: Loader, most: int | None):
        self._loader, self._most = loader, most
        self.element_spec = _spec(next(iter(self)))

    def __iter__(self) -> Iterator[Arrays]:
        pairs = itertools.islice(self._loader.eval_batches(), self._most)
        return (_arrays(batch) for batch, *_ in pairs)


def get_dataset(
    cfg: Any, shard_id: int, num_shards: int, feature_converter_cls: Any = None, **rest: Any
) -> dataset_iterator.DatasetIterator:
    """Returns the training batches of the experiment that the gin files describe: a `get_dataset_fn` of t5x.

    Args:
        cfg: t5x's `DatasetConfig`; its batch size is checked, and the experiment says the rest.
        shard_id: which rows of a batch this process makes.
        num_shards: of how many.
        feature_converter_cls: not used.
        **rest: not used.

    Raises:
        UserError: t5x is told another batch size than the experiment.
    """
    del feature_converter_cls, rest
    experiment = experiments.made()
    if cfg.batch_size != experiment.data.batch_size:
        raise UserError(
            f"t5x is told a batch size of {cfg.batch_size}, and the experiment has {experiment.data.batch_size}. Set "
            "BATCH_SIZE alone, which is both."
        )
    return Batches(Loader(experiment.data, for_model(experiment.model), shard_id, num_shards))


def get_training_eval_datasets(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    eval_steps: int | None = None,
    feature_converter_cls: Any = None,
    **rest: Any,
) -> Mapping[str, Any]:
    """Returns the data of the experiment's evaluations of the loss, by name: a `train_eval_get_dataset_fn` of t5x.

    Args:
        cfg: not used.
        shard_id, num_shards: as `get_dataset`.
        eval_steps: most batches of each; None is all.
        feature_converter_cls: not used.
        **rest: not used.
    """
    del cfg, feature_converter_cls, rest
    experiment: Experiment = experiments.made()
    sizes = Parts(experiment).eval_sizes
    return {
        each.name: _Pass(Loader(each.data, sizes, shard_id, num_shards), eval_steps)
        for each in experiment.evaluations
        if each.kind == "loss"
    }


def _arrays(batch: Any) -> Arrays:
    return {name: np.asarray(getattr(batch, name)) for name in FIELDS}


def _spec(arrays: Arrays) -> dict[str, Any]:
    return {name: dataset_iterator.ArraySpec(x.dtype, x.shape) for name, x in arrays.items()}


def _check_shapes(found: Arrays, spec: Mapping[str, Any], mixture: str) -> None:
    for name, x in found.items():
        if x.shape != spec[name].shape:
            raise UserError(
                f"Expected batches of one shape, which t5x compiles its step for; {name} of {mixture} has {x.shape} "
                f"after {spec[name].shape}. Train on images or on videos alone."
            )


def task_feature_lengths(split: str = "validation") -> dict[str, Any]:
    """Returns the `task_feature_lengths` of t5x for the experiment's own task: text and media as the model takes them.

    Args:
        split: of the task.

    Raises:
        UserError: the experiment's mixture has several tasks with media of different shapes.
    """
    experiment = experiments.made()
    sizes = for_model(experiment.model)
    tasks = tasks_with_records(experiment.data.mixture, split)
    shapes = {sizes.media_shape(task.records.media, task.records.max_media) for task in tasks}
    if len(shapes) > 1:
        raise UserError(
            f"Expected media of one shape, which t5x compiles for; {experiment.data.mixture} has {sorted(shapes)}. "
            "Name one of its tasks."
        )
    return {**experiment.data.lengths, "media": shapes.pop()}
