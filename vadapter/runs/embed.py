"""What the adapter makes of pictures and videos, for programs that take embeddings in place of text."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from vadapter.base.errors import UserError
from vadapter.data.rows import memory
from vadapter.models.vlm import VLMConfig
from vadapter.partitioning.gather import local_rows
from vadapter.runs.many import Item, is_of_a_file
from vadapter.runs.model import TrainedModel

ROWS = 8  # records that the device reads at once


@dataclasses.dataclass(frozen=True)
class Embedded:
    """What came of a record.

    Attributes:
        values: [R, D], soft tokens, those of a picture's tiles last, or [T, D], a whole prompt; in the dtype of the
            computation, as the layers of the language model read them. None where there is an error.
        error: why there are none.
    """

    values: np.ndarray | None = None
    error: str | None = None


def embed(trained: TrainedModel, items: Iterable[Item], *, whole: bool = False) -> Iterator[Embedded]:
    """Makes embeddings of pictures and videos.

    Args:
        trained: the model.
        items: what is seen, and with `whole` what is asked; read as they are needed, a few ahead.
        whole: embeddings of the whole prompt, text and soft tokens, as `infer` reads it; else the soft tokens alone.

    Yields:
        What came of each item, in their order.

    Raises:
        UserError: a mistake that is not of one item, such as a prompt without `<media>`; or the model does not read
            images and write text.
    """
    model = trained.description.model
    if not isinstance(model, VLMConfig) or model.adapter is None or trained.vocabulary is None:
        raise UserError(f"{trained.folder} holds a model that does not read images. Give a run of stage 1 or 2.")
    ways = trained.partitioner.batch_ways // trained.partitioner.host_share[1]
    rows = -(-ROWS // ways) * ways
    make = _maker(trained, whole)
    prepared = ((item, *_prepared(trained, item, whole)) for item in items)

    def kind(found: Any) -> Any:
        _, batch, _, _ = found
        return None if batch is None else jax.tree.map(np.shape, batch)

    for shape, group in itertools.groupby(prepared, kind):  # pictures beside pictures, clips beside clips
        if shape is None:
            yield from (Embedded(error=error) for _, _, _, error in group)
            continue
        batches = ((batch, slots) for _, batch, slots, _ in group)
        while chunk := list(itertools.islice(batches, rows)):
            # The last is repeated, so that one program serves all.
            full = chunk + chunk[-1:] * (rows - len(chunk))
            joined = jax.tree.map(lambda *parts: np.concatenate(parts), *(batch for batch, _ in full))
            found = local_rows(make(trained.params, trained.partitioner.put_batch(joined)))
            for (_, slots), values in zip(chunk, found, strict=False):
                yield Embedded(np.asarray(values[:slots]))


def _maker(trained: TrainedModel, whole: bool) -> Callable[..., Any]:
    def make(params: Any, batch: Any) -> Any:
        if whole:
            return trained.model.apply({"params": params}, batch, method="embed")
        return trained.model.apply({"params": params}, batch, method="soft_tokens")

    compiled = jax.jit(make, out_shardings=trained.partitioner.batch_sharding)

    def run(params: Any, batch: Any) -> Any:
        with trained.partitioner.activate():
            return compiled(params, batch)

    return run


def _prepared(trained: TrainedModel, item: Item, whole: bool) -> tuple[Any, int, str | None]:
    """One row on the host, a `Batch` or the media alone, and how many of its slots are used; or why there is none."""
    if item.error is not None:
        return None, 0, item.error
    if item.chat is not None:
        return None, 0, "Conversations have no embeddings here. Give their pictures as records of their own."
    # Pictures have room for all the tiles that one may have, so that one program serves them together.
    room = 1 if memory.is_video(item.media) else 1 + trained.description.views.max_tiles
    try:
        seen = trained.seen(item.media, item.question, prompt=item.prompt)
    except UserError as e:
        if not item.own and not is_of_a_file(e):
            raise
        return None, 0, str(e)
    if not whole:
        rest = np.zeros((room - len(seen.frames), *seen.frames.shape[1:]), np.uint8)
        return np.concatenate([seen.frames, rest])[None], trained.soft_tokens(seen), None
    try:
        row = trained.request(seen, item.question, prompt=item.prompt, num_media=room)
        return row, int((row.segment_ids > 0).sum()), None
    except UserError as e:
        if not item.own:
            raise
        return None, 0, str(e)
