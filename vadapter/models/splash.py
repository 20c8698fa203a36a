"""Splash attention: jax's flash attention for TPUs, a Pallas kernel that never writes the logits to memory.

Lengths are padded to blocks of up to 512 slots and the result is cut; blocks that a causal mask or a window hides are
skipped. The head dimension may be anything: the compiler pads it to its 128 lanes. Keys and values of grouped heads
are not repeated. The output and the log-sum-exp of each query carry the name `RESIDUALS`: a policy of
`jax.checkpoint` that saves it does not run the forward kernel again in the backward pass.

Order in the row stands for order in a segment (see `vadapter.models.masks`). Padding, segment 0, attends to padding, so
that all values are finite.

XLA cannot partition a kernel. Under a mesh each device runs it on its own rows and heads, by the rules for `batch` and
`activation_heads`.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import PartitionSpec

from vadapter.base.array_types import Array, Float, Int
from vadapter.base.errors import UserError
from vadapter.models.masks import Visibility
from vadapter.partitioning import rules

RESIDUALS = "attention"

_LANES = 128
_MAX_BLOCK = 512

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


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    visibility: Visibility | None,
    *,
    scale: float,
    softcap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Attention as `attention.attend` has it.

    Args:
        query: queries; they are scaled in f32 and rounded to their type once more.
        key: keys.
        value: values.
        visibility: who sees whom, where the keys are the queries' own slots; None allows all.
        scale: factor on the logits.
        softcap: cap of the logits.

    Raises:
        UserError: the active mesh is not of TPUs. What counts is the mesh, not this machine, which may be compiling
            for another; without an active mesh jax itself refuses when it lowers the kernel for another platform.
    """
    check_platform("splash")
    query = (query.astype(jnp.float32) * scale).astype(query.dtype)
    run = functools.partial(_run, softcap=softcap, interpret=is_interpreted())
    if visibility is None:
        return sharded(functools.partial(run, causal=False, window=None), query, key, value, None)
    segments = visibility.query_segments
    run = functools.partial(run, causal=visibility.causal)
    near = functools.partial(sharded, functools.partial(run, window=visibility.window))
    if visibility.window is None or visibility.is_local is None:
        return near(query, key, value, segments)
    far = functools.partial(sharded, functools.partial(run, window=None))
    return jax.lax.cond(visibility.is_local, near, far, query, key, value, segments)


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


def _run(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    segments: Int[Array, "B T"] | None,
    *,
    causal: bool,
    window: int | None,
    softcap: float | None,
    interpret: bool,
) -> Float[Array, "B T N H"]:
    batch, length, heads, _ = query.shape
    block_q, padded_q = _blocks(length)
    block_kv, padded_kv = _blocks(key.shape[1])
    ids = None
    if segments is not None:
        ids = pallas.SegmentIds(_pad(segments, padded_q), _pad(segments, padded_kv))
    elif padded_kv != key.shape[1]:
        of = [jnp.ones((batch, x.shape[1]), jnp.int32) for x in (query, key)]
        ids = pallas.SegmentIds(_pad(of[0], padded_q), _pad(of[1], padded_kv))
    kernel = pallas.make_splash_mha_single_device(
        pallas.MultiHeadMask([_mask((padded_q, padded_kv), causal, window)] * heads),
        block_sizes=_block_sizes(block_q, block_kv, blocks_kv=padded_kv // block_kv),
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )
    q, k, v = (_pad(x, n).swapaxes(1, 2) for x, n in ((query, padded_q), (key, padded_kv), (value, padded_kv)))
    return jax.vmap(kernel)(q, k, v, ids).swapaxes(1, 2)[:, :length]


def _blocks(length: int) -> tuple[int, int]:
    # Block size and padded length: as few blocks of at most _MAX_BLOCK as hold the length, in whole lanes.
    lanes = math.ceil(length / _LANES)
    blocks = math.ceil(lanes * _LANES / _MAX_BLOCK)
    block = math.ceil(lanes / blocks) * _LANES
    return block, block * blocks


def _block_sizes(block_q: int, block_kv: int, blocks_kv: int) -> pallas.BlockSizes:
    # The kernel that makes all three gradients at once writes dQ for each block of keys, to be summed in the queries'
    # type. With one block there is nothing to sum: it is then exact, and saves two matrix products.
    fused = blocks_kv == 1
    return pallas.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=None if fused else block_q,
        block_kv_dq=None if fused else block_kv,
        use_fused_bwd_kernel=fused,
    )


def _mask(shape: tuple[int, int], causal: bool, window: int | None) -> pallas.Mask:
    if window is not None and window < shape[0]:
        return pallas.LocalMask(shape, (window - 1, 0 if causal else window - 1), offset=0)
    return pallas.CausalMask(shape) if causal else pallas.FullMask(shape)


def _pad(x: Array, length: int) -> Array:
    # Pads axis 1 with zeros.
    return jnp.pad(x, [(0, length - n if axis == 1 else 0) for axis, n in enumerate(x.shape)])
