"""Which record is in which row of which batch: a pure function of (seed, step), whatever the number of hosts.

Everything is closed-form. Slots of a stream are numbered from 0; blocks of `BLOCK` slots are shared among the stream's
components by their rates and permuted by a hash of (seed, block). So the component of any slot, and how many slots the
component had before, need one block's permutation and no replay. Component ordinal o of a data set of n records is
record `shuffle(o mod n)` of epoch `o div n`, each epoch being shuffled on its own.
"""

import functools
from collections.abc import Sequence

import numpy as np

BLOCK = 1024
WINDOW = 4096  # records that are shuffled among one another where blocks are read as a whole
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(*values: int | np.ndarray) -> np.ndarray:
    """Hashes integers, elementwise, to uint64 (splitmix64 of each in turn). Stable for ever: data order rests on it."""
    with np.errstate(over="ignore"):
        state = np.uint64(0)
        for value in values:
            z = (state ^ np.asarray(value, np.int64).astype(np.uint64)) + _GOLDEN
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = z ^ (z >> np.uint64(31))
    return np.asarray(state)


def apportion(rates: Sequence[float], seats: int) -> list[int]:
    """Shares `seats` by largest remainder; every component with a rate above 0 has at least one."""
    total = float(sum(rates))
    exact = [r / total * seats for r in rates]
    counts = [max(int(x), 1 if x > 0 else 0) for x in exact]
    order = sorted(range(len(rates)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: max(seats - sum(counts), 0)]:
        counts[i] += 1
    while sum(counts) > seats:  # many tiny rates: the largest pays
        counts[counts.index(max(counts))] -= 1
    return counts


class Schedule:
    """Shares the slots 0, 1, 2, ... of a stream among components."""

    def __init__(self, rates: Sequence[float], seed: int):
        """`rates`: relative, all above 0, at most `BLOCK` of them."""
        if not rates or min(rates) <= 0 or len(rates) > BLOCK:
            raise ValueError(f"expected 1..{BLOCK} rates above 0, found {rates}")
        self._counts = np.asarray(apportion(rates, BLOCK), np.int64)
        self._seed = seed
        self._block = functools.lru_cache(maxsize=4)(self._make_block)

    def _make_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (component, how many of the same component came before in the block) for the block's slots."""
        shares = np.repeat(np.arange(len(self._counts)), self._counts)
        component = shares[np.argsort(mix(self._seed, block, np.arange(BLOCK)), kind="stable")]
        rank = np.empty(BLOCK, np.int64)
        for c, count in enumerate(self._counts):
            rank[component == c] = np.arange(count)
        return component, rank

    def at(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns (component, ordinal in the component) of each slot; both int64 with the shape of `slots`."""
        slots = np.asarray(slots, np.int64)
        component, ordinal = np.empty_like(slots), np.empty_like(slots)
        for block in np.unique(slots // BLOCK):
            here = slots // BLOCK == block
            parts, ranks = self._block(int(block))
            component[here] = parts[slots[here] % BLOCK]
            ordinal[here] = ranks[slots[here] % BLOCK] + block * self._counts[component[here]]
        return component, ordinal

    def before(self, slot: int, component: int) -> int:
        """Returns how many of the slots 0..slot-1 are the component's."""
        block, rest = divmod(slot, BLOCK)
        inside = int(np.count_nonzero(self._block(block)[0][:rest] == component)) if rest else 0
        return block * int(self._counts[component]) + inside


def shuffled(ordinals: np.ndarray, size: int, seed: int, blocks: np.ndarray | None = None) -> np.ndarray:
    """Returns the record indices (int64) of ordinals: in every epoch of `size` ordinals, each record once.

    Args:
        ordinals: any number of them, int64.
        size: number of records.
        seed: of the order.
        blocks: sizes of runs of records, in their order, that must be read as a whole. Then runs are shuffled, and
            records within windows of so many runs as have `WINDOW` records.
    """
    ordinals = np.asarray(ordinals, np.int64)
    epochs, indices = ordinals // size, np.empty_like(ordinals)
    for epoch in np.unique(epochs):  # one or two: an index_shuffle takes one seed
        here = epochs == epoch
        if blocks is None:
            indices[here] = _permuted(ordinals[here] % size, size, seed, epoch)
        else:
            indices[here] = _in_windows(ordinals[here] % size, blocks, seed, epoch)
    return indices


def _permuted(places: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Returns where a permutation of 0..size-1, given by the key, takes the places."""
    import tensorflow as tf

    seeds = tf.constant([int(mix(*key, k) >> np.uint64(33)) for k in range(2)], tf.int32)
    last = tf.constant(size - 1, tf.int64)
    return tf.random.experimental.index_shuffle(tf.constant(places), seeds, last).numpy()


def _in_windows(places: np.ndarray, blocks: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """`shuffled` within one epoch, of whole blocks."""
    order = np.argsort(mix(seed, epoch, 7, np.arange(len(blocks))), kind="stable")
    first = np.cumsum(blocks) - blocks  # record
    ends = np.cumsum(blocks[order])  # place
    starts = ends - blocks[order]
    edges = starts[np.flatnonzero(np.diff(starts // WINDOW, prepend=-1))]
    edges = np.append(edges, ends[-1])
    windows = np.searchsorted(edges, places, "right") - 1
    for window in np.unique(windows):
        here = windows == window
        start = edges[window]
        places[here] = start + _permuted(places[here] - start, int(edges[window + 1] - start), seed, epoch, window)
    block = np.searchsorted(ends, places, "right")
    return first[order[block]] + places - starts[block]
