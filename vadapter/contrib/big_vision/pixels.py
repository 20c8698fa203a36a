"""Pixels of big_vision as vadapter's encoders take them."""

import jax.numpy as jnp

from vadapter.base.array_types import Array, Shaped


def from_unit(image: Shaped[Array, "*B h w 3"]) -> Shaped[Array, "*B h w 3"]:
    """Returns pixels 0..255. bytes are these already; floats are big_vision's, in -1..1."""
    return image if image.dtype == jnp.uint8 else (image.astype(jnp.float32) + 1.0) * 127.5
