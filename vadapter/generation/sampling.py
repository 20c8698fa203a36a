"""Draws of a token: temperature, then top-k, then top-p (nucleus), then a seeded draw of each row."""

import jax
import jax.numpy as jnp

from vadapter.base import hashes
from vadapter.base.array_types import Array, Float, Int
from vadapter.base.batch import Batch
from vadapter.generation.config import DecodingConfig
from vadapter.generation.top_k import TopK

_ONE = 0x3F800000  # the bits of 1.0 in f32


def keep_top_p(logits: Float[Array, "*B V"], p: float | Array) -> Float[Array, "*B V"]:
    """Returns logits, -inf but for the fewest largest of probability `p` and those equal to the last of them.

    The vocabulary is not sorted. The smallest probability that is kept is found by bisection over the bits of a
    float, which have the order of the floats: 30 sums over the vocabulary, exact, and cheap where it is sharded.
    """
    if isinstance(p, float | int) and p >= 1:
        return logits
    probabilities = jax.nn.softmax(logits, axis=-1)
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds  # `low` always keeps enough
        middle = (low + high + 1) // 2
        enough = jnp.where(bits >= middle, probabilities, 0).sum(axis=-1, keepdims=True) >= p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    low = jnp.zeros((*logits.shape[:-1], 1), jnp.int32)
    low, _ = jax.lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, _ONE)))
    # All of it is all of it, though a sum of floats may come to 1 without the last of them.
    return jnp.where((bits >= low) | (jnp.asarray(p) >= 1), logits, -jnp.inf)


def sample(
    keys: Array,
    logits: Float[Array, "B V"],
    step: Int[Array, ""],
    config: DecodingConfig,
    find: TopK = jax.lax.top_k,
    temperature: Array | None = None,
    top_p: Array | None = None,
) -> Int[Array, " B"]:
    """Draws a token of each row.

    Args:
        keys: random key of each row.
        logits: of the next token.
        step: new tokens before this one.
        config: `temperature`, `top_k` and `top_p` count, in this order.
        find: as `make_top_k` makes it for a mesh.
        temperature, top_p: scalars in the place of those of the configuration.
    """
    logits, ids = logits / (config.temperature if temperature is None else temperature), None
    if 0 < config.top_k < logits.shape[-1]:
        logits, ids = find(logits, config.top_k)  # what follows is then over k tokens, no longer over the vocabulary
    logits = keep_top_p(logits, config.top_p if top_p is None else top_p)
    draw = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, step), row))
    drawn = draw(keys, logits)
    return drawn if ids is None else jnp.take_along_axis(ids, drawn[:, None], axis=1)[:, 0]


def row_keys(batch: Batch, seed: int | Array) -> Array:
    """Makes a random key of each row from the seed and what the row holds, its text and its pixels.

    A row's samples so depend neither on its place among others nor on the mesh, and rows at the same place in
    different batches draw independently.

    Returns:
        Keys [B].
    """
    text = hashes.scrambled(batch.tokens, batch.positions)
    text = jnp.where(batch.segment_ids > 0, text, 0).sum(axis=1, dtype=jnp.uint32)
    pixels = hashes.of_pixels(batch.pixels)
    root = jax.random.key(seed, impl="threefry2x32")
    return jax.vmap(lambda a, b: jax.random.fold_in(jax.random.fold_in(root, a), b))(text, pixels)
