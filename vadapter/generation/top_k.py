"""The largest entries of a vocabulary that lies on several devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vadapter.base.array_types import Array
from vadapter.partitioning import Partitioner

TopK = Callable[[Array, int], Any]


def make_top_k(partitioner: Partitioner) -> TopK:
    """Makes `jax.lax.top_k` for logits [B, ..., V] on a mesh.

    XLA would gather the logits of the whole batch on every device. Here each device looks through its own rows and
    its own part of the vocabulary, and only what it found there is compared across the vocabulary.

    Args:
        partitioner: tells how rows and vocabulary are split.
    """
    rows = partitioner.batch_sharding.spec[0]
    words = dict(reversed(list(partitioner.rules))).get("activation_vocab")
    parts = partitioner.mesh.shape[words] if isinstance(words, str) else 1
    if partitioner.mesh.size == 1 or not (words is None or isinstance(words, str)):
        return jax.lax.top_k

    def top_k(x: Array, k: int) -> tuple[Array, Array]:
        between = (None,) * (x.ndim - 2)

        def local(x: Array) -> tuple[Array, Array]:
            values, ids = jax.lax.top_k(x, min(k, x.shape[-1]))
            if parts == 1:
                return values, ids
            ids += jax.lax.axis_index(words) * x.shape[-1]
            values, ids = (jax.lax.all_gather(y, words, axis=y.ndim - 1, tiled=True) for y in (values, ids))
            values, at = jax.lax.top_k(values, k)  # equal ones stay in the order of the vocabulary
            return values, jnp.take_along_axis(ids, at, axis=-1)

        seen, found = PartitionSpec(rows, *between, words), PartitionSpec(rows, *between, None)
        run = jax.shard_map(local, mesh=partitioner.mesh, in_specs=seen, out_specs=(found, found), check_vma=False)
        return run(x)

    return top_k
