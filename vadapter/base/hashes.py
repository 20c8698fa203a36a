"""Numbers that tell rows of a batch apart by what they hold, for random keys that do not depend on a row's place."""

import jax.numpy as jnp

from vadapter.base.array_types import Array, Int


def scrambled(value: Array, place: Array) -> Int[Array, "..."]:
    """Mixes a value and its place to 32 bits, so that their sum (exact in any order) tells rows apart."""
    x = value.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + place.astype(jnp.uint32) * jnp.uint32(0x85EBCA77) + 1
    x = (x ^ (x >> 15)) * jnp.uint32(0x2C1B3C6D)
    x = (x ^ (x >> 12)) * jnp.uint32(0x297A2D39)
    return x ^ (x >> 15)


def of_pixels(media: Array) -> Int[Array, " B"]:
    """Returns a uint32 of each row's pixels, [B, ...]."""
    pixels = media.reshape(media.shape[0], -1)
    return scrambled(pixels, jnp.arange(pixels.shape[1])).sum(axis=1, dtype=jnp.uint32)
