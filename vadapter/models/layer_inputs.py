"""What the layers of a decoder are given beside the hidden states.

A scan runs the layers, so what differs between kinds of layers is made once for each kind, and chosen by a flag.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, Bool, Float, Int
from vadapter.models.masks import Visibility
from vadapter.models.positions import Rotation


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class AttentionInputs:
    """What the attention of all layers of one kind, local or global, is given: its mask and its rotation."""

    mask: Bool[Array, "B 1 T S"] | Visibility
    rotation: Rotation

    @staticmethod
    def choose(is_local: Bool[Array, ""], local: "AttentionInputs", global_: "AttentionInputs") -> "AttentionInputs":
        """Returns `local` for a layer that is local, else `global_`."""
        rotation = local.rotation.where(is_local, global_.rotation)
        if isinstance(local.mask, Visibility):
            return AttentionInputs(dataclasses.replace(local.mask, is_local=is_local), rotation)
        assert not isinstance(global_.mask, Visibility)
        return AttentionInputs(jnp.where(is_local, local.mask, global_.mask), rotation)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LayerInputs:
    """What a layer has of its own. The decoder stacks those of all layers, and the scan gives each layer its own.

    Attributes:
        is_local: whether the layer is local.
        rotates: whether it rotates queries and keys; None where all layers do.
        key: cached keys; None without a cache.
        value: cached values; None without a cache.
    """

    is_local: Bool[Array, ""]
    rotates: Bool[Array, ""] | None = None
    key: Float[Array, "B S K H"] | None = None
    value: Float[Array, "B S K H"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class SharedInputs:
    """What all layers share.

    Attributes:
        global_: attention inputs of global layers.
        local: of local layers; None where there are none.
        start: slot of the cache that the first new key takes, in all rows or in each; None without a cache.
        bias: added to the logits of attention, by relative position; None without such biases.
    """

    global_: AttentionInputs
    local: AttentionInputs | None
    start: Int[Array, ""] | Int[Array, " B"] | None
    bias: Float[Array, "B N T S"] | None = None

    def attention(self, own: LayerInputs) -> AttentionInputs:
        """Returns the attention inputs of a layer."""
        found = self.global_
        if self.local is not None:
            found = AttentionInputs.choose(own.is_local, self.local, self.global_)
        if own.rotates is None:
            return found
        return AttentionInputs(found.mask, found.rotation.where(own.rotates, found.rotation.none()))
