"""Frozen kernels in int8, with an f32 scale for each layer and output channel: half the memory of bf16.

Only the weights are quantised, by qwix; activations are not. A kernel is turned back layer by layer, where it is used
(`vadapter.models.layers.dense`), so that its bf16 twin never exists for more than a layer.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from vadapter.base.array_types import Array

if TYPE_CHECKING:
    from qwix import QArray


def is_quantized(leaf: Any) -> "TypeGuard[QArray]":
    """Returns whether a leaf of a parameter tree is a quantised array (a pytree of its int8 values and its scale)."""
    return hasattr(leaf, "qvalue")  # not isinstance: runs without int8 need not import qwix


def values(leaf: Any) -> Any:
    """Returns the array that holds a parameter's values: the int8 ones of a quantised array, else the leaf itself."""
    return leaf.qvalue if is_quantized(leaf) else leaf


def nbytes(leaf: Any) -> int:
    """Returns the bytes of a parameter, those of its scale included."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(leaf))


def quantize(kernel: Array, inputs: int) -> "QArray":
    """Quantises a kernel of stacked layers where it lies: by the largest absolute value of each output channel.

    Args:
        kernel: floating, the layers first, then the axes that are summed over, then those of the output.
        inputs: number of axes that are summed over.

    Returns:
        A qwix `QArray`: the values lie as `kernel` does, and so does the scale, which has size 1 in the summed axes.
    """
    import qwix

    channels = (0, *range(1 + inputs, kernel.ndim))

    def make(kernel: Array) -> "QArray":
        return qwix.quantize(kernel.astype(jnp.float32), jnp.int8, channelwise_axes=channels)

    sharding = getattr(kernel, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return jax.jit(make)(kernel)
    spec = [*sharding.spec, *[None] * (kernel.ndim - len(sharding.spec))]
    scale = PartitionSpec(*(axes if i in channels else None for i, axes in enumerate(spec)))
    made = jax.eval_shape(make, kernel)
    return jax.jit(make, out_shardings=made.replace(qvalue=sharding, scale=NamedSharding(sharding.mesh, scale)))(kernel)


def dequantize(kernel: "QArray", dtype: Any) -> Array:
    """Returns the floating array of a quantised one."""
    import qwix

    return qwix.dequantize(kernel).astype(dtype)
