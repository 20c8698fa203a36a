"""Attention of short rows on TPUs in one kernel: rotation, logits, softmax and products, and all their gradients.

Between products XLA passes over [heads, queries, keys] several times, and lays queries out anew, heads before slots.
Where the logits of a row fit the chip's own memory, none of that is needed: each program of the kernel takes one head
of one row whole, from the array that the map to queries wrote, [rows, slots, heads x channels]. It keeps nothing for
the backward pass, which computes the weights again.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from vadapter.base.array_types import Array, Bool, Float
from vadapter.base.errors import UserError
from vadapter.models.attention import attend
from vadapter.models.positions import Rotation, apply_rope, rope_frequencies, rope_rotation
from vadapter.models.tpu_kernels import FUSED, RESIDUALS, check_platform, is_interpreted, sharded

_TOLERANCE = 0.03  # of an array's norm, between two ways in bfloat16
_HIDDEN = -1e30  # added to what is not seen; finite, so that a query that sees nothing has finite weights


def attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    mask: Bool[Array, "B 1 T T"],
    rotation: Rotation,
    *,
    scale: float,
) -> Float[Array, "B T N H"]:
    """Attention among the slots of a row as `attention.attend` has it, after a rotation of queries and keys.

    Args:
        query: queries, not rotated; H is a multiple of `tpu_kernels.LANES`, as a program takes whole columns of memory.
        key: keys, not rotated; query head n reads head n // (N / K).
        value: values.
        mask: True where attention is allowed.
        rotation: of all H channels.
        scale: factor on the logits.

    Raises:
        UserError: the active mesh is not of TPUs.
    """
    check_platform("fused")
    run = functools.partial(_run, dim=query.shape[3], scale=scale, interpret=is_interpreted())
    key, value = key.astype(query.dtype), value.astype(query.dtype)
    return checkpoint_name(sharded(run, query, key, value, (mask, rotation), flat=True), RESIDUALS)


def check(heads: int, groups: int, dim: int) -> None:
    """Compares the kernels with plain attention on this process's first device, in bfloat16 and on two short rows.

    What a chip or a compiler computes otherwise than expected must not become a wrong model. Where the device is no
    TPU it does nothing.

    Args:
        heads: of queries.
        groups: heads of keys and values.
        dim: channels of a head.

    Raises:
        UserError: results or gradients differ.
    """
    if jax.default_backend() != "tpu" and not is_interpreted():
        return
    rows, length = 2, 336
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(rows, length, n, dim) for n in (heads, groups, groups, heads)]
    *inputs, gradient = (jax.random.normal(k, shape, jnp.bfloat16) for k, shape in zip(keys, shapes, strict=True))
    positions = jnp.tile(jnp.arange(length), (rows, 1))
    rotation = rope_rotation(positions, rope_frequencies(dim, 10_000.0))
    mask = jnp.tile(jnp.tril(jnp.ones((length, length), bool)), (rows, 1, 1, 1))
    scale = dim**-0.5

    def plain(query: Array, key: Array, value: Array) -> Array:
        return attend(apply_rope(query, rotation), apply_rope(key, rotation), value, mask, scale=scale)

    def fused(query: Array, key: Array, value: Array) -> Array:
        return attention(query, key, value, mask, rotation, scale=scale)

    def results(run: Callable) -> list[Array]:
        out, backward = jax.jit(functools.partial(jax.vjp, run))(*inputs)
        return [x.astype(jnp.float32) for x in (out, *jax.jit(backward)(gradient))]

    for name, found, expected in zip(
        ("results", "gradients of queries", "gradients of keys", "gradients of values"),
        results(fused),
        results(plain),
        strict=True,
    ):
        error = float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected))
        if not error < _TOLERANCE:
            raise UserError(
                f"attention_impl 'fused' computes {name} that differ from plain attention by {error:.1%} on "
                f"{jax.local_devices()[0].device_kind}; expected less than {_TOLERANCE:.0%}. Set attention_impl to "
                "'xla', and please report it."
            )


def _run(
    query: Float[Array, "B T NH"],
    key: Float[Array, "B T KH"],
    value: Float[Array, "B T KH"],
    rows: tuple[Array, Rotation],
    *,
    dim: int,
    scale: float,
    interpret: bool,
) -> Float[Array, "B T NH"]:
    mask, rotation = rows
    bias = jnp.where(mask[:, 0], 0.0, _HIDDEN)
    # Channel i of a head becomes x[i] cos[i] + x[i + H/2] sin[i], where i + H/2 goes around.
    cos = jnp.concatenate([rotation.cos, rotation.cos], axis=-1)
    sin = jnp.concatenate([-rotation.sin, rotation.sin], axis=-1)
    batch, length, width = query.shape
    kernels = _Kernels(batch, length, width // dim, key.shape[2] // dim, dim, scale, interpret)
    return _attention(kernels, query, key, value, bias, cos, sin)


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """The two kernels, of arrays [B, T, N H] and [B, T, K H]."""

    batch: int
    length: int
    heads: int
    groups: int
    dim: int
    scale: float
    interpret: bool

    @property
    def shared(self) -> int:
        """Query heads that read one key head."""
        return self.heads // self.groups

    def forward(self, query: Array, key: Array, value: Array, *of_rows: Array) -> Array:
        """Returns the result. `of_rows` are the bias of the logits, cosines and sines."""
        return self._call(
            "forward",
            functools.partial(_forward, self.scale, self.shared),
            heads=[query],
            groups=[key, value],
            of_rows=of_rows,
            outputs=[query],
            scratch=[query.dtype],
            products=2,
        )[0]

    def backward(
        self, gradient: Array, query: Array, key: Array, value: Array, bias: Array, cos: Array, sin: Array
    ) -> Sequence[Array]:
        """Returns the gradients of query, key and value."""
        return self._call(
            "backward",
            functools.partial(_backward, self.scale, self.shared),
            heads=[gradient, query],
            groups=[key, value],
            of_rows=[bias.swapaxes(1, 2), cos, sin],  # keys before queries: softmax then sums over rows of registers
            outputs=[query, key, value],
            scratch=[query.dtype, jnp.float32, jnp.float32],
            products=5,
        )

    def _call(
        self,
        name: str,
        body: Callable,
        *,
        heads: Sequence[Array],
        groups: Sequence[Array],
        of_rows: Sequence[Array],
        outputs: Sequence[Array],
        scratch: Sequence[Any],
        products: int,
    ) -> Sequence[Array]:
        size = (1, self.length, self.dim)
        by_head = pl.BlockSpec(size, lambda b, n: (b, 0, n))
        by_group = pl.BlockSpec(size, lambda b, n: (b, 0, jax.lax.div(n, self.shared)))
        by_row = [pl.BlockSpec((1, *x.shape[1:]), lambda b, n: (b, 0, 0)) for x in of_rows]
        arrays, logits = (*heads, *groups, *of_rows), self.batch * self.heads * self.length**2
        return pl.pallas_call(
            body,
            grid=(self.batch, self.heads),
            in_specs=[by_head] * len(heads) + [by_group] * len(groups) + by_row,
            out_specs=[by_head] + [by_group] * (len(outputs) - 1),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
            scratch_shapes=[pltpu.VMEM((self.length, self.dim), dtype) for dtype in scratch],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            cost_estimate=pl.CostEstimate(
                flops=2 * products * logits * self.dim,
                transcendentals=logits,
                bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *outputs)),
            ),
            interpret=self.interpret,
            name=f"{FUSED}_{name}",
        )(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(kernels: _Kernels, query, key, value, bias, cos, sin):
    return kernels.forward(query, key, value, bias, cos, sin)


def _attention_forward(kernels: _Kernels, *arrays):
    return kernels.forward(*arrays), arrays


def _attention_backward(kernels: _Kernels, arrays, gradient):
    return *kernels.backward(gradient, *arrays), *(jnp.zeros_like(x) for x in arrays[3:])


_attention.defvjp(_attention_forward, _attention_backward)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    return x * cos + pltpu.roll(x, x.shape[-1] // 2, 1) * sin


def _dot(x: Array, y: Array, over_x: int, over_y: int) -> Array:
    dims = (((over_x,), (over_y,)), ((), ()))
    return jax.lax.dot_general(x, y, dims, preferred_element_type=jnp.float32)


def _rotated_keys(shared: int, key, cos, sin, keys) -> None:
    # Once for the heads that share them.
    @pl.when(jax.lax.rem(pl.program_id(1), shared) == 0)
    def _():
        keys[...] = _rotate(key[0].astype(jnp.float32), cos[0], sin[0]).astype(keys.dtype)


def _forward(scale: float, shared: int, query, key, value, bias, cos, sin, out, keys) -> None:
    _rotated_keys(shared, key, cos, sin, keys)
    queries = (scale * _rotate(query[0].astype(jnp.float32), cos[0], sin[0])).astype(keys.dtype)
    logits = _dot(queries, keys[...], 1, 1) + bias[0]
    weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    total = weights.sum(axis=1, keepdims=True)
    out[0] = (_dot(weights.astype(keys.dtype), value[0], 1, 0) / total).astype(out.dtype)


def _backward(
    scale: float,
    shared: int,
    gradient,
    query,
    key,
    value,
    bias,
    cos,
    sin,
    by_query,
    by_key,
    by_value,
    keys,
    key_sum,
    value_sum,
) -> None:
    _rotated_keys(shared, key, cos, sin, keys)

    @pl.when(jax.lax.rem(pl.program_id(1), shared) == 0)
    def _():
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    queries = (scale * _rotate(query[0].astype(jnp.float32), cos[0], sin[0])).astype(keys.dtype)
    logits = _dot(keys[...], queries, 1, 1) + bias[0]
    weights = jnp.exp(logits - logits.max(axis=0, keepdims=True))
    weights = weights * (1 / weights.sum(axis=0, keepdims=True))
    by_weight = _dot(value[0], gradient[0], 1, 1)
    value_sum[...] += _dot(weights.astype(keys.dtype), gradient[0], 1, 0)
    by_logit = weights * (by_weight - (weights * by_weight).sum(axis=0, keepdims=True))
    by_logit = by_logit.astype(keys.dtype)
    key_sum[...] += _dot(by_logit, queries, 1, 0)
    # The gradient of a rotation is the rotation back.
    by_query[0] = (scale * _rotate(_dot(by_logit, keys[...], 0, 0), cos[0], -sin[0])).astype(by_query.dtype)

    @pl.when(jax.lax.rem(pl.program_id(1), shared) == shared - 1)
    def _():
        by_key[0] = _rotate(key_sum[...], cos[0], -sin[0]).astype(by_key.dtype)
        by_value[0] = value_sum[...].astype(by_value.dtype)
