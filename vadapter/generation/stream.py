"""Texts of a data set by continuous batching: its batches in, their ids out."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np

from vadapter.base.array_types import PyTree
from vadapter.base.batch import Batch
from vadapter.generation.config import EMPTY, DecodingConfig
from vadapter.generation.continuous import ContinuousDecoder, unfit
from vadapter.models.vlm import VLM
from vadapter.partitioning import Partitioner

_T = TypeVar("_T")
Stream = Callable[[PyTree, Iterable[tuple[Batch, _T]]], Iterator[tuple[np.ndarray, _T]]]


def pays(partitioner: Partitioner, config: DecodingConfig) -> bool:
    """Returns whether a data set is decoded by `make_stream` and not batch by batch.

    That is so on one CPU device, where reading prompts one by one costs no more than together. An accelerator reads
    many at once in about the time of one; there it is chosen by hand.
    """
    return jax.default_backend() == "cpu" and unfit(partitioner, config) is None


def make_stream(
    model: VLM, partitioner: Partitioner, config: DecodingConfig | None = None, *, end_ids: Sequence[int]
) -> Stream:
    """Makes what decodes the batches of a data set, as `make_generate` decodes one, without waiting for long texts.

    Args:
        model: the VLM.
        partitioner: of one device.
        config: how texts are chosen; default greedy.
        end_ids: as of `ContinuousDecoder`.

    Returns:
        A function of (parameters, (batch on the host, anything) of a data set) that yields of each batch, in order, ids
        [B, max_new_tokens], `EMPTY` from an end token on, and what came with it. As many rows run as a batch has.

    Raises:
        UserError: as `ContinuousDecoder`.
    """
    settings = config or DecodingConfig()
    decoders: dict[tuple[int, ...], ContinuousDecoder] = {}

    def stream(params: PyTree, batches: Iterable[tuple[Batch, _T]]) -> Iterator[tuple[np.ndarray, _T]]:
        for shape, group in itertools.groupby(batches, lambda x: x[0].tokens.shape):
            if shape not in decoders:
                rows, slots = shape
                made = ContinuousDecoder(
                    model, params, settings, end_ids=end_ids, slots=slots, rows=rows, partitioner=partitioner
                )
                decoders[shape] = made
            decoders[shape].params = params
            yield from _in_order(decoders[shape], group, settings.max_new_tokens)

    return stream


def _in_order(
    decoder: ContinuousDecoder, batches: Iterable[tuple[Batch, _T]], width: int
) -> Iterator[tuple[np.ndarray, _T]]:
    """Puts the texts of rows, which end in any order, together again by batches."""
    found: dict[int, np.ndarray] = {}
    others: dict[int, _T] = {}
    missing: dict[int, int] = {}

    def rows() -> Iterator[tuple[Batch, tuple[int, int]]]:
        for i, (batch, other) in enumerate(batches):
            there = np.flatnonzero((np.asarray(batch.segment_ids) > 0).any(axis=1)).tolist()
            found[i], others[i] = np.full((len(batch.tokens), width), EMPTY, np.int32), other
            missing[i] = len(there)
            for row in there:
                yield jax.tree.map(lambda x, row=row: x[row : row + 1], batch), (i, row)

    at = 0

    def whole() -> Iterator[tuple[np.ndarray, _T]]:
        nonlocal at
        while missing.get(at) == 0:
            yield found.pop(at), others.pop(at)
            at += 1

    for (i, row), ids in decoder.texts(rows()):
        found[i][row, : len(ids)] = ids
        missing[i] -= 1
        yield from whole()
    yield from whole()
