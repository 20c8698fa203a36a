"""Who attends to whom, from positions and segments alone.

Positions grow by one along a segment, so one rule serves training, packed rows, prefill and cached decoding:

    same segment, not padding, key position <= query position, and in a local layer less than `window` behind it.

A row `a b c | d e` of two segments (window 2), causal:      global        local

                                                        a    # . . . .    # . . . .
                                                        b    # # . . .    # # . . .
                                                        c    # # # . .    . # # . .
                                                        d    . . . # .    . . . # .
                                                        e    . . . # #    . . . # #

So does index order: the slots of a segment stand beside each other in the order of their positions. Kernels that know
segments, causality and windows (splash attention) need no mask: `Visibility` keeps the numbers until one is needed.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, Bool, Int


@dataclasses.dataclass(frozen=True)
class Visibility:
    """Which queries may attend to which keys.

    Attributes:
        query_positions: position in its segment.
        key_positions: likewise.
        query_segments: 0 is padding: it attends to nothing and nothing attends to it.
        key_segments: likewise.
        is_local: whether the window holds, for layers in a scan that differ in that; None is yes.
        causal: keys after the query are hidden.
        window: keys `window` or more positions away are hidden; None hides none.
    """

    query_positions: Int[Array, "B T"]
    key_positions: Int[Array, "B S"]
    query_segments: Int[Array, "B T"]
    key_segments: Int[Array, "B S"]
    is_local: Bool[Array, ""] | None = None
    causal: bool = True
    window: int | None = None

    @property
    def among_slots(self) -> bool:
        """Whether the keys are the queries' own slots, all of them; not so in cached decoding."""
        return self.query_positions.shape == self.key_positions.shape

    def mask(self) -> Bool[Array, "B 1 T S"]:
        """Returns True where a query may attend to a key."""
        key_segments = self.key_segments[:, None, :]
        mask = (self.query_segments[:, :, None] == key_segments) & (key_segments > 0)
        distance = self.query_positions[:, :, None] - self.key_positions[:, None, :]
        if self.causal:
            mask &= distance >= 0
        if self.window is not None:
            near = jnp.abs(distance) < self.window
            mask &= near if self.is_local is None else near | ~self.is_local
        return mask[:, None]


jax.tree_util.register_dataclass(
    Visibility,
    ["query_positions", "key_positions", "query_segments", "key_segments", "is_local"],
    ["causal", "window"],
)
