"""What the kernels of attention for TPUs share, `splash` and `fused`: where they run, on which part of the arrays.

XLA cannot partition a kernel. Under a mesh each device runs it on its own rows and heads, by the rules for `batch` and
`activation_heads`.
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vadapter.base.array_types import Array
from vadapter.base.errors import UserError
from vadapter.partitioning import rules

LANES = 128  # the columns that a TPU's memory is made of
RESIDUALS = "attention"  # the name of results that a policy of `jax.checkpoint` may keep, and not run the kernel again
FUSED = "fused_attention"  # what the names of the kernels of `vadapter.models.fused` begin with
FUSED_SLOTS = 512  # the longest rows whose logits fit the memory of any TPU's core beside what these kernels need

_interpreted: contextvars.ContextVar[bool] = contextvars.ContextVar("interpreted", default=False)


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """Kernels traced inside are interpreted, slowly and on any platform: for tests."""
    token = _interpreted.set(True)
    try:
        yield
    finally:
        _interpreted.reset(token)


def is_interpreted() -> bool:
    """Returns whether kernels are interpreted."""
    return _interpreted.get()


def check_platform(impl: str) -> None:
    """Raises a `UserError` if the active mesh is not of TPUs; `impl` is the name of the kernel."""
    state = rules.active_rules()
    if state is None or is_interpreted():
        return
    platform = state[0].devices.flat[0].platform
    if platform != "tpu":
        raise UserError(
            f"attention_impl {impl!r} is a kernel for TPUs, and this mesh is of devices of the platform {platform!r}. "
            "Set attention_impl to 'xla', which runs everywhere, or on NVIDIA GPUs to 'cudnn'."
        )


def sharded(run: Callable[..., Array], query: Array, key: Array, value: Array, rows: Any, flat: bool = False) -> Array:
    """Returns `run(query, key, value, rows)`, each device on its rows and its heads, all slots of a row.

    Args:
        run: a kernel.
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: the same.
        rows: a tree of arrays whose first axis is that of the rows, or None.
        flat: `run` takes and returns arrays [B, T, N H] and [B, S, K H].
    """

    def flattened(x: Array) -> Array:
        return x.reshape(*x.shape[:2], -1) if flat else x

    state = rules.active_rules()
    if state is None or state[0].size == 1:
        return run(flattened(query), flattened(key), flattened(value), rows).reshape(query.shape)
    mesh, table = state
    names = ("batch", None, "activation_heads", None)
    spec = rules.partition_spec(names, query.shape, mesh, table, f"attention's queries {names}")
    heads = (spec[2],) if isinstance(spec[2], str) else spec[2] or ()
    # Fewer key/value heads than devices along the heads: repeated, so that each device has the one its queries read.
    ways = math.prod(mesh.shape[axis] for axis in heads)
    copies = ways // math.gcd(ways, key.shape[2])
    key, value = (jnp.repeat(x, copies, axis=2) if copies > 1 else x for x in (key, value))
    whole = PartitionSpec(*spec[:3])  # of [..., heads] and of [..., heads x channels]
    specs = (whole, whole, whole, PartitionSpec(spec[0]))
    mapped = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)
    return mapped(flattened(query), flattened(key), flattened(value), rows).reshape(query.shape)
