"""The training batches of an experiment as a data set of big_vision, in the order of `vadapter train`."""

import os
import re
from collections.abc import Iterator
from typing import Any

import big_vision.datasets.core as core
import jax
import numpy as np
import tensorflow as tf

from vadapter.base.errors import UserError
from vadapter.contrib import launch
from vadapter.contrib.big_vision.vlm import VISUAL
from vadapter.contrib.big_vision.weights import workdir
from vadapter.data.order.loader import Loader
from vadapter.runs.batches import for_model

_SAVED = re.compile(r"(\d{9})(-tmp)?")


class DataSource(core.DataSource):
    """Rows for the trainer of PaliGemma: `image` (bytes), `text`, `mask_ar` and `mask_loss`.

    Rows come batch by batch, so leave `shuffle_buffer_size` out. A launch that goes on from a checkpoint of its workdir
    begins with the batch after it.

    Args:
        experiment: as `launch.experiment_of` takes it.

    Raises:
        UserError: as `vadapter train` of the same data, or rows are packed.
    """

    def __init__(self, experiment: str):
        self._experiment = launch.experiment_of(experiment, workdir())
        data = self._experiment.data
        if data.packing:
            raise UserError(
                "Expected rows of one sample; big_vision does not tell a model their segments. Do not pack."
            )
        sizes = for_model(self._experiment.model)
        self._loader = Loader(data, sizes, jax.process_index(), jax.process_count())

    def get_tfdata(self, ordered: bool = False, *, process_split: bool = True, allow_cache: bool = True) -> Any:
        """Returns the rows as a tf.data.Dataset, without end."""
        del process_split, allow_cache
        if ordered:
            raise UserError(
                "bv:vadapter is for training. To evaluate, use the evaluator `vadapter`, which reads its data."
            )
        first = next(self._rows(0))
        signature = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in first.items()}
        start = _saved_step(workdir())
        return tf.data.Dataset.from_generator(lambda: self._rows(start), output_signature=signature)

    @property
    def total_examples(self) -> int:
        """Records of the split."""
        return self._loader.num_examples()

    def num_examples_per_process(self) -> list[int]:
        """Records of each process: an equal share."""
        return [self.total_examples // jax.process_count()] * jax.process_count()

    def _rows(self, step: int) -> Iterator[dict[str, Any]]:
        for batch in self._loader.batches(step):
            text = np.where(batch.media_index >= 0, VISUAL, batch.tokens).astype(np.int32)
            loss = np.zeros(text.shape, np.float32)
            # The weight stands at the token that is predicted. Padding of the targets has none, and adds nothing.
            rows = np.arange(len(text))[:, None]
            after = np.minimum(batch.target_positions + 1, text.shape[1] - 1)
            np.add.at(loss, (rows, after), batch.target_weights)
            for i in range(len(text)):
                ar = np.ones_like(text[i])
                yield {"image": batch.pixels[i], "text": text[i], "mask_ar": ar, "mask_loss": loss[i]}


def _saved_step(folder: str) -> int:
    """The step of the checkpoint that big_vision goes on from; 0 without one."""
    file = os.path.join(folder, "checkpoint.bv-LAST")
    if not os.path.exists(file):
        return 0
    with open(file) as content:
        match = _SAVED.fullmatch(content.read().strip())
    if match is None:
        raise UserError(f"{file} does not name a step, as big_vision writes it. Remove it, or use another workdir.")
    return int(match.group(1))
