"""Scaled dot-product attention with grouped heads and soft-capped logits."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, Bool, Float
from vadapter.models.layers import known
from vadapter.models.masks import Visibility
from vadapter.partitioning import is_one_cpu

AttentionImpl = Literal["xla", "cudnn", "splash"]

# What has a kernel of its own runs on one platform; `xla` runs on all. `fused` is for decoders (`DecoderConfig`).
PLATFORMS = {"cudnn": "gpu", "splash": "tpu", "fused": "tpu"}


def soft_cap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
    """Returns cap * tanh(x / cap) (Gemma 2), or `x` where `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def prepare(visibility: Visibility, impl: AttentionImpl) -> Visibility | Bool[Array, "B 1 T S"]:
    """Returns what `attend` reads as its mask, to be made once for all layers.

    That is the dense mask, but for `splash`, which goes by segments and index order. Where the keys are not the
    queries' own slots (decoding with a cache), index order says nothing, and splash leaves the work to `xla`.
    """
    return visibility if impl == "splash" and visibility.among_slots else visibility.mask()


def attend(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 T S"] | Visibility | None,
    *,
    scale: float,
    softcap: float | None = None,
    impl: AttentionImpl = "xla",
    bias: Float[Array, "B N T S"] | None = None,
    causal: bool = False,
) -> Float[Array, "B T N H"]:
    """Attention; N is a multiple of K and query head n reads key/value head n // (N / K).

    A query that may attend to nothing (padding) gets a finite value that nobody reads.

    Args:
        query: queries.
        key: keys.
        value: values.
        mask: True where attention is allowed, or who sees whom (see `prepare`); None allows all.
        scale: factor on the logits.
        softcap: cap of the logits; `cudnn` is not used with it, as it has none.
        impl: `xla` everywhere, `cudnn`'s flash attention on NVIDIA GPUs (bf16 or f16 only), or `splash` attention on
            TPUs (see `vadapter.models.splash`). Splash with a dense mask is `xla`.
        bias: added to the scaled logits, before they are capped; only `xla` has it.
        causal: whether the keys are the queries' own slots and the mask hides all later ones: on a CPU `xla` then
            leaves out most of them.

    Raises:
        UserError: an unknown `impl`, or `splash` under a mesh of devices that are not TPUs.
    """
    known("attention_impl", impl, get_args(AttentionImpl))
    if isinstance(mask, Visibility):
        mask = prepare(mask, impl)
    if impl == "splash" and (mask is None or isinstance(mask, Visibility)):
        from vadapter.models import splash  # an experimental module of jax, so that only its users depend on it

        return splash.attention(query, key, value, mask, scale=scale, softcap=softcap)
    assert not isinstance(mask, Visibility)
    if impl == "cudnn" and softcap is None:
        return jax.nn.dot_product_attention(query, key, value, mask=mask, scale=scale, implementation="cudnn")
    parts = []
    for start, end in _blocks(query.shape[1]) if causal else [(0, query.shape[1])]:
        seen = end if causal else key.shape[1]
        part = slice(start, end)
        parts.append(
            _plain(
                query[:, part],
                key[:, :seen],
                value[:, :seen],
                None if mask is None else mask[:, :, part, :seen],
                None if bias is None else bias[:, :, part, :seen],
                scale=scale,
                softcap=softcap,
            )
        )
    return jnp.concatenate(parts, axis=1)


def _blocks(length: int) -> list[tuple[int, int]]:
    # (start, end) of the queries of a causal row that are computed together, with the keys before `end`. Two blocks
    # leave out a quarter of all logits, three a third, eight 7/16. On a TPU slices and joins cost what that saves.
    number = min(8, max(2, math.ceil(length / 128))) if is_one_cpu() and length >= 64 else 1
    size = math.ceil(length / number / 8) * 8  # whole vectors of a CPU
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _plain(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 T S"] | None,
    bias: Float[Array, "B N T S"] | None,
    *,
    scale: float,
    softcap: float | None,
) -> Float[Array, "B T N H"]:
    batch, length, heads, dim = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, length, groups, heads // groups, dim)
    # The heads of a group stand beside the queries, as they lie in memory: with one group nothing is transposed.
    logits = jnp.einsum("BTKGH,BSKH->BKTGS", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        logits += jnp.moveaxis(bias.reshape(batch, groups, heads // groups, *bias.shape[2:]), 2, 3)
    logits = soft_cap(logits, softcap)
    if mask is not None:
        logits = jnp.where(mask[:, :, :, None], logits, jnp.finfo(jnp.float32).min)
    return _weighted_values(logits, value).reshape(batch, length, heads, dim)


@jax.custom_vjp
def _weighted_values(logits: Float[Array, "B K T G S"], value: Float[Array, "B S K H"]) -> Float[Array, "B T K G H"]:
    """Returns softmax(logits) @ value.

    Passes over [queries, keys] take longer than the matrix products on TPUs, so there are as few as in FlashAttention
    (arXiv 2205.14135): the result is divided by the sum of the weights, not each weight; the mean of the weights'
    gradients comes from the result and its gradient; and nothing of that size is kept in f32 for the backward pass.
    """
    return _weighted_values_forward(logits, value)[0]


def _weighted_values_forward(logits: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True)).astype(value.dtype)
    total = jnp.moveaxis(weights.sum(axis=-1, dtype=jnp.float32), 1, 2)[..., None]  # B T K G 1
    out = jnp.einsum("BKTGS,BSKH->BTKGH", weights, value, preferred_element_type=jnp.float32) / total
    out = out.astype(value.dtype)
    return out, (weights, total, out, value)


def _weighted_values_backward(kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    weights, total, out, value = kept
    gradient = (gradient / total).astype(value.dtype)
    mean = jnp.moveaxis((gradient.astype(jnp.float32) * out).sum(axis=-1, keepdims=True), 1, 2)  # B K T G 1
    by_weight = jnp.einsum("BTKGH,BSKH->BKTGS", gradient, value, preferred_element_type=jnp.float32)
    return weights * (by_weight - mean), jnp.einsum("BKTGS,BTKGH->BSKH", weights, gradient)


_weighted_values.defvjp(_weighted_values_forward, _weighted_values_backward)
