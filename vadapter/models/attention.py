"""Scaled dot-product attention with grouped heads and soft-capped logits."""

from typing import Literal

import jax
import jax.numpy as jnp

from vadapter.array_types import Array, Bool, Float

AttentionImpl = Literal["xla", "cudnn"]


def soft_cap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Returns cap * tanh(x / cap) (Gemma 2), or `x` where `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 T S"] | None,
    *,
    scale: float,
    softcap: float | None = None,
    impl: AttentionImpl = "xla",
) -> Float[Array, "B T N H"]:
    """Attention; N is a multiple of K and query head n reads key/value head n // (N / K).

    A query that may attend to nothing (padding) gets a finite value that nobody reads.

    Args:
        query: queries.
        key: keys.
        value: values.
        mask: True where attention is allowed; None allows all.
        scale: factor on the logits.
        softcap: cap of the logits; `impl` is not used with it, as no fused kernel has it.
        impl: `xla` everywhere, or `cudnn`'s flash attention on NVIDIA GPUs (bf16 or f16 only).
    """
    if softcap is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale, implementation=impl)
    batch, length, heads, dim = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, length, groups, heads // groups, dim)
    logits = jnp.einsum("BTKGH,BSKH->BKGTS", query, key, preferred_element_type=jnp.float32) * scale
    logits = soft_cap(logits, softcap)
    if mask is not None:
        logits = jnp.where(mask[:, :, None], logits, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights, value).reshape(batch, length, heads, dim)
