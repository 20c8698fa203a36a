"""Keys and values of the slots that a decoder has read."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, Float, Int, Shaped


@flax.struct.dataclass
class KVCache:
    """Cache of a decoder. Positions and segments say what a slot holds in each row.

    Prefill writes a row's prompt and its padding. With one `length` for all rows, generated tokens of all rows then
    take the same next slot, whatever the length of their prompts. With a length a row, each row takes its own next
    slot, so that a row that has ended can be replaced by another. Padding has segment 0 and is never attended to.

    Attributes:
        key: rotated keys of each layer.
        value: values of each layer.
        positions: position of the slot in its segment.
        segment_ids: 0 where the slot is empty or padding.
        length: slots written, of all rows alike or of each.
    """

    key: Float[Array, "layers B S K H"]
    value: Float[Array, "layers B S K H"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    length: Int[Array, ""] | Int[Array, " B"]

    @classmethod
    def empty(cls, layers: int, batch: int, size: int, kv_heads: int, head_dim: int, dtype: Any) -> "KVCache":
        """Makes a cache of `size` slots."""
        shape = (layers, batch, size, kv_heads, head_dim)
        slots = jnp.zeros((batch, size), jnp.int32)
        return cls(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), slots, slots, jnp.zeros((), jnp.int32))

    def advance(self, positions: Int[Array, "B T"], segment_ids: Int[Array, "B T"]) -> "KVCache":
        """Enters T new slots of every row; their keys and values are written by the layers."""
        return self.replace(
            positions=write(self.positions, positions, self.length),
            segment_ids=write(self.segment_ids, segment_ids, self.length),
            length=self.length + positions.shape[1],
        )

    def cut(self, length: Int[Array, " B"]) -> "KVCache":
        """Keeps the first `length` slots of each row; the others are empty, as if they had never been written."""
        kept = jnp.arange(self.segment_ids.shape[1]) < length[:, None]
        return self.replace(segment_ids=jnp.where(kept, self.segment_ids, 0), length=length)

    def repeat(self, copies: int) -> "KVCache":
        """Returns a cache of `copies` equal rows for each row, beside each other: a row of beams."""
        return self.replace(
            key=jnp.repeat(self.key, copies, axis=1),
            value=jnp.repeat(self.value, copies, axis=1),
            positions=jnp.repeat(self.positions, copies, axis=0),
            segment_ids=jnp.repeat(self.segment_ids, copies, axis=0),
        )

    def reorder(self, parents: Int[Array, "rows beams"], first: int) -> "KVCache":
        """Gives each beam the slots of its parent, from slot `first` on: those before are equal for all beams.

        Args:
            parents: beam of the same row whose slots are taken. Position and segment of a slot are the same for all
                the beams of a row.
            first: slots of the prompt.
        """
        rows, beams = parents.shape

        def reordered(x: Array) -> Array:
            new = x[:, :, first:]
            by_row = new.reshape(x.shape[0], rows, beams, *new.shape[2:])
            by_row = jnp.take_along_axis(by_row, parents[None, :, :, None, None, None], axis=2)
            return x.at[:, :, first:].set(by_row.reshape(new.shape))

        return self.replace(key=reordered(self.key), value=reordered(self.value))


def write(
    cached: Array, new: Shaped[Array, "B T *rest"], start: Int[Array, ""] | Int[Array, " B"]
) -> Shaped[Array, "B S *rest"]:
    """Returns what a cache holds `[B, S, ...]`, with T new slots of every row.

    Args:
        cached: what it held.
        new: takes the dtype of the cache.
        start: slot of the first new one, of all rows alike or of each.
    """
    new = new.astype(cached.dtype)
    if start.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(cached, new, start, axis=1)
    return jax.vmap(lambda row, x, at: jax.lax.dynamic_update_slice_in_dim(row, x, at, axis=0))(cached, new, start)
