"""Splash attention: jax's flash attention for TPUs, a Pallas kernel that never writes the logits to memory.

Lengths are padded to blocks of up to 512 slots and the result is cut; blocks that a causal mask or a window hides are
skipped. The head dimension may be anything: the compiler pads it to its 128 lanes. Keys and values of grouped heads
are not repeated. The output and the log-sum-exp of each query carry the name `RESIDUALS`: a policy of
`jax.checkpoint` that saves it does not run the forward kernel again in the backward pass.

Order in the row stands for order in a segment (see `vadapter.models.masks`). Padding, segment 0, attends to padding, so
that all values are finite.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas

from vadapter.base.array_types import Array, Float, Int
from vadapter.models.masks import Visibility
from vadapter.models.tpu_kernels import LANES, RESIDUALS, check_platform, is_interpreted, sharded

_MAX_BLOCK = 512


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
    lanes = math.ceil(length / LANES)
    blocks = math.ceil(lanes * LANES / _MAX_BLOCK)
    block = math.ceil(lanes / blocks) * LANES
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
