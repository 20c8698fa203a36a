"""Who attends to whom, from positions and segments alone.

Positions grow by one along a segment, so one rule serves training, packed rows, prefill and cached decoding:

    same segment, not padding, key position <= query position, and in a local layer less than `window` behind it.

A row `a b c | d e` of two segments (window 2), causal:      global        local

                                                        a    # . . . .    # . . . .
                                                        b    # # . . .    # # . . .
                                                        c    # # # . .    . # # . .
                                                        d    . . . # .    . . . # .
                                                        e    . . . # #    . . . # #
"""

import jax.numpy as jnp

from vadapter.array_types import Array, Bool, Int


def attention_mask(
    query_positions: Int[Array, "B T"],
    key_positions: Int[Array, "B S"],
    query_segments: Int[Array, "B T"],
    key_segments: Int[Array, "B S"],
    *,
    causal: bool = True,
    window: int | None = None,
) -> Bool[Array, "B 1 T S"]:
    """Returns True where a query may attend to a key.

    Args:
        query_positions: position in its segment.
        key_positions: likewise.
        query_segments: 0 is padding: it attends to nothing and nothing attends to it.
        key_segments: likewise.
        causal: keys after the query are hidden.
        window: keys `window` or more positions away are hidden.
    """
    mask = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    distance = query_positions[:, :, None] - key_positions[:, None, :]
    if causal:
        mask &= distance >= 0
    if window is not None:
        mask &= jnp.abs(distance) < window
    return mask[:, None]
