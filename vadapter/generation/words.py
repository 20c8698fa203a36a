"""What soft tokens say: the words of the decoder's table that are nearest to each."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from vadapter.base.array_types import PyTree
from vadapter.base.batch import Batch
from vadapter.models.vlm import VLM
from vadapter.partitioning import Partitioner
from vadapter.partitioning.gather import local_rows

Word = tuple[str, float]
Words = Callable[[PyTree, Batch], Sequence[Sequence[Sequence[Word]]]]


def make_words(
    model: VLM, partitioner: Partitioner, written: Callable[[int], str], count: int = 3, most: int | None = None
) -> Words:
    """Compiles the search of nearest words for a mesh, once for each shape of a batch.

    Args:
        model: the VLM.
        partitioner: places the activations.
        written: gives the text of an id, for people.
        count: words of each soft token.
        most: soft tokens of a row, the first ones; None takes all.

    Returns:
        A function of (parameters, device batch). It gives for each row of this process, for each of its soft tokens,
        (text, cosine similarity) of `count` words, the nearest first. All processes must call it together.
    """

    def search(params: PyTree, batch: Batch) -> Any:
        return model.apply({"params": params}, batch.media, count, most, method="nearest_words")

    run = jax.jit(search, out_shardings=partitioner.batch_sharding)

    def words(params: PyTree, batch: Batch) -> Sequence[Sequence[Sequence[Word]]]:
        with partitioner.activate():
            ids, similarities = (local_rows(x).tolist() for x in run(params, batch))
        return [
            [[(written(i), x) for i, x in zip(*token, strict=True)] for token in zip(*row, strict=True)]
            for row in zip(ids, similarities, strict=True)
        ]

    return words
