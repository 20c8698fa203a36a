"""T5's relative position biases (Raffel et al. 2020, arXiv 1910.10683, section 2.1)."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vadapter.base.array_types import Array, Float, Int
from vadapter.models.layers import named


@functools.cache
def buckets(count: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each distance 0 .. max_distance of a key behind its query, int32.

    The first half of the buckets are one distance each, the others grow as the logarithm; all distances of
    `max_distance` and more are in the last one. It is computed in f32 as T5 does, which decides at the edges.
    """
    distance, exact = np.arange(max_distance + 1), count // 2
    grown = np.log(distance.astype(np.float32) / exact + np.finfo(np.float32).eps) / np.log(max_distance / exact)
    large = exact + (grown * (count - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(large, count - 1)).astype(np.int32)


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of distances, shared by all layers.

    Attributes:
        num_heads: N.
        count: buckets.
        max_distance: from where on all distances are one bucket.
    """

    num_heads: int
    count: int
    max_distance: int

    @nn.compact
    def __call__(self, query_positions: Int[Array, "B T"], key_positions: Int[Array, "B S"]) -> Float[Array, "B N T S"]:
        """Returns what is added to the logits, in f32. Keys ahead of their query have the bucket of distance 0."""
        init = named(nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"), "heads", None)
        table = self.param("embedding", init, (self.num_heads, self.count)).astype(jnp.float32)
        distance = query_positions[:, :, None] - key_positions[:, None, :]
        bucket = jnp.asarray(buckets(self.count, self.max_distance))[jnp.clip(distance, 0, self.max_distance)]
        return jnp.moveaxis(table[:, bucket], 0, 1)
