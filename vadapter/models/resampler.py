"""Cross-attention from learned queries to visual tokens: perceiver resampler and attentional pooler.

As adapters they are followed by a map to the decoder's width (`Resampler`).
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import jax.numpy as jnp
from flax import linen as nn

from vadapter.base.array_types import Array, Float
from vadapter.base.errors import UserError
from vadapter.models import layers
from vadapter.models.attention import AttentionImpl, attend
from vadapter.models.configuration import adapter
from vadapter.models.flops import FlopCounter
from vadapter.models.layers import Norm, dense, named
from vadapter.partitioning import constrain

LayerNormPlacement = Literal["final", "shared", "separate", "separate_final"]


@adapter
@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """Perceiver resampler (Flamingo, arXiv 2204.14198) with the options of the paper's Table 1; its best are default.

    Attributes:
        num_layers: 6 in the baseline, 1 before the tiny LM.
        num_queries: tokens that come out, R.
        query_dim: width of the queries, and of the result.
        hidden_dim: width of query, key and value inside the cross-attention.
        num_heads: heads of the cross-attention.
        layer_norm: where LayerNorms stand: `separate` (one for queries, one for keys and values), `shared` (one for
            both), `separate_final` (and one on the result), `final` (on the result only).
        ffn: a feed-forward block after each cross-attention.
        ffn_ratio: its hidden size over query_dim.
        time_embedding: a learned vector for each frame is added to its tokens.
        num_frames: frames that have a time embedding.
        concat_keys: queries are keys and values too, as in Flamingo. Whether the paper keeps that is open.
        zero_init: cross-attention and FFN results start at zero, so that the resampler starts as its queries.
        attention_impl: `xla` everywhere, `cudnn` on NVIDIA GPUs, `splash` on TPUs; see `attention.attend`.
        dtype: of the computation.
    """

    num_layers: int = 6
    num_queries: int = 256
    query_dim: int = 768
    hidden_dim: int = 768
    num_heads: int = 12
    layer_norm: LayerNormPlacement = "separate"
    ffn: bool = True
    ffn_ratio: int = 4
    time_embedding: bool = True
    num_frames: int = 8
    concat_keys: bool = True
    zero_init: bool = False
    attention_impl: AttentionImpl = "xla"
    dtype: str = "bfloat16"

    def __post_init__(self):
        layers.known("PerceiverConfig.layer_norm", self.layer_norm, get_args(LayerNormPlacement))
        if self.hidden_dim % self.num_heads:
            raise UserError(
                f"PerceiverConfig: hidden_dim {self.hidden_dim} is not a multiple of num_heads {self.num_heads}."
            )

    def make(self, output_dim: int, name: str | None = None) -> nn.Module:
        """See `configuration.AdapterConfig`."""
        return Resampler(self, output_dim, Perceiver, name=name)

    def num_tokens(self, frames: int, patches: int) -> int:
        """See `configuration.AdapterConfig`."""
        return self.num_queries

    @property
    def output_map(self) -> str:
        """See `configuration.AdapterConfig`."""
        return "projection"

    def flops(self, counter: FlopCounter, media: float, frames: int, patches: int) -> dict[str, float]:
        """See `configuration.AdapterConfig`."""
        keys = frames * patches + self.num_queries * self.concat_keys
        attention = counter.attention(media * self.num_queries, keys, self.hidden_dim, self.num_layers)
        return {counter.name: attention + _kernels(counter, media, frames * patches, keys, self.num_queries)}


@adapter
@dataclasses.dataclass(frozen=True)
class PoolerConfig:
    """CoCa's attentional pooler (arXiv 2205.01917): one cross-attention, then LayerNorm on what was queried.

    Attributes:
        num_queries: tokens that come out, R.
        query_dim: width of the queries and of the result.
        num_heads: heads of the cross-attention.
        residual: the queries are added to what they read, and an FFN follows, both starting at zero: how a pooler of
            stage 1 goes on as the resampler of stage 2 without a jump.
        ffn_ratio: hidden size of that FFN over query_dim.
        time_embedding: as in `PerceiverConfig`, starting at zero.
        num_frames: frames that have a time embedding.
        attention_impl: `xla` everywhere, `cudnn` on NVIDIA GPUs, `splash` on TPUs; see `attention.attend`.
        dtype: of the computation.
    """

    num_queries: int = 256
    query_dim: int = 768
    num_heads: int = 12
    residual: bool = False
    ffn_ratio: int = 4
    time_embedding: bool = False
    num_frames: int = 8
    attention_impl: AttentionImpl = "xla"
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.query_dim % self.num_heads:
            raise UserError(
                f"PoolerConfig: query_dim {self.query_dim} is not a multiple of num_heads {self.num_heads}."
            )

    def make(self, output_dim: int, name: str | None = None) -> nn.Module:
        """See `configuration.AdapterConfig`."""
        return Resampler(self, output_dim, AttentionalPooler, name=name)

    def num_tokens(self, frames: int, patches: int) -> int:
        """See `configuration.AdapterConfig`."""
        return self.num_queries

    @property
    def output_map(self) -> str:
        """See `configuration.AdapterConfig`."""
        return "projection"

    def flops(self, counter: FlopCounter, media: float, frames: int, patches: int) -> dict[str, float]:
        """See `configuration.AdapterConfig`."""
        keys = frames * patches
        attention = counter.attention(media * self.num_queries, keys, self.query_dim, layers=1)
        return {counter.name: attention + _kernels(counter, media, keys, keys, self.num_queries)}


def _kernels(counter: FlopCounter, media: float, visual: int, keys: int, queries: int) -> float:
    """FLOPs of all maps: those to keys and values run on the keys, the first map on visual tokens, others on queries.

    Args:
        counter: of the adapter.
        media: images or videos.
        visual: visual tokens of each.
        keys: keys that each query sees.
        queries: queries of each.
    """

    def tokens(path: str) -> float:
        if path.endswith("input_projection/kernel"):
            return media * visual
        return media * (keys if path.endswith(("/key/kernel", "/value/kernel")) else queries)

    return counter.kernels(tokens)


class CrossAttention(nn.Module):
    """Attention from queries to keys/values of another width, back to the queries' width."""

    hidden_dim: int
    num_heads: int
    dtype: str
    zero_init: bool = False
    impl: AttentionImpl = "xla"

    @nn.compact
    def __call__(self, queries: Float[Array, "B R D"], keys: Float[Array, "B S E"]) -> Float[Array, "B R D"]:
        head_dim = self.hidden_dim // self.num_heads
        shape, names = (self.num_heads, head_dim), ("embed", "heads", "kv")
        q = dense(shape, names, name="query", dtype=self.dtype)(queries)
        k = dense(shape, names, name="key", dtype=self.dtype)(keys)
        v = dense(shape, names, name="value", dtype=self.dtype)(keys)
        out = attend(q, k, v, None, scale=head_dim**-0.5, impl=self.impl)
        init = nn.initializers.zeros if self.zero_init else layers.fan_in
        names = ("heads", "kv", "embed")
        width = queries.shape[-1]
        return dense(width, names, name="out", axis=(-2, -1), dtype=self.dtype, init=init)(out)


class FeedForward(nn.Module):
    """LayerNorm, Dense, GELU, Dense."""

    ratio: int
    dtype: str
    zero_init: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B R D"]) -> Float[Array, "B R D"]:
        width = x.shape[-1]
        y = Norm("layer", name="norm")(x)
        y = layers.activation("gelu_tanh")(dense(self.ratio * width, ("embed", "mlp"), name="up", dtype=self.dtype)(y))
        init = nn.initializers.zeros if self.zero_init else layers.fan_in
        return dense(width, ("mlp", "embed"), name="down", dtype=self.dtype, init=init)(y)


def learned_queries(module: nn.Module, count: int, width: int, batch: int, dtype: str) -> Float[Array, "B R D"]:
    """Makes the parameter `queries` and repeats it for each row.

    The constraint is more than a hint: without it XLA's partitioner was seen to give wrong sums once the queries are
    concatenated to the keys (8 devices, mesh 2x2x2).
    """
    init = named(nn.initializers.normal(width**-0.5), "queries", "embed")
    queries = module.param("queries", init, (count, width))
    queries = jnp.broadcast_to(queries.astype(jnp.dtype(dtype)), (batch, count, width))
    return constrain(queries, "batch", "queries", "activation_embed")


def add_time(module: nn.Module, visual: Float[Array, "B F P E"], num_frames: int, init=None) -> Array:
    """Adds the parameter `time_embedding` of each frame to its tokens; the shape stays."""
    frames, width = visual.shape[1], visual.shape[-1]
    if frames > num_frames:
        raise UserError(
            f"The adapter has time embeddings for {num_frames} frames and was given {frames}. Raise num_frames."
        )
    init = named(init or nn.initializers.normal(width**-0.5), "frames", "embed")
    time = module.param("time_embedding", init, (num_frames, width)).astype(visual.dtype)
    return visual + time[:frames, None]


def flatten_frames(visual: Float[Array, "B F P E"]) -> Float[Array, "B S E"]:
    """Joins frames and patches."""
    return visual.reshape(visual.shape[0], -1, visual.shape[-1])


class ResamplerLayer(nn.Module):
    """`x += attn(q=x, kv=[visual; x]); x += ffn(x)`, a scan body."""

    config: PerceiverConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B R D"], visual: Float[Array, "B S E"]) -> tuple[Array, None]:
        c = self.config
        queries, keys = x, visual
        if c.layer_norm == "shared":
            norm = Norm("layer", name="norm")
            queries, keys = norm(x), norm(visual)
        elif c.layer_norm.startswith("separate"):
            queries, keys = Norm("layer", name="norm_query")(x), Norm("layer", name="norm_key")(visual)
        if c.concat_keys:
            keys = jnp.concatenate([keys, queries], axis=1)
        attention = CrossAttention(c.hidden_dim, c.num_heads, c.dtype, c.zero_init, c.attention_impl, name="attention")
        x = x + attention(queries, keys)
        if c.ffn:
            x = x + FeedForward(c.ffn_ratio, c.dtype, c.zero_init, name="ffn")(x)
        return constrain(x, "batch", "length", "activation_embed"), None


class Perceiver(nn.Module):
    """Perceiver resampler: `[B, F, P, E]` to `[B, R, query_dim]`. Its layers are stacked on a leading layer axis.

    Where the queries join the keys, or one norm serves both, visual tokens are first mapped to query_dim.
    """

    config: PerceiverConfig

    @nn.compact
    def __call__(self, visual: Float[Array, "B F P E"]) -> Float[Array, "B R D"]:
        c = self.config
        visual = visual.astype(jnp.dtype(c.dtype))
        if c.time_embedding:
            visual = add_time(self, visual, c.num_frames)
        visual = flatten_frames(visual)
        if visual.shape[-1] != c.query_dim and (c.concat_keys or c.layer_norm == "shared"):
            visual = dense(c.query_dim, ("embed", "mlp"), name="input_projection", dtype=c.dtype)(visual)
            visual = constrain(visual, "batch", "length", "activation_embed")
        x = learned_queries(self, c.num_queries, c.query_dim, visual.shape[0], c.dtype)
        stack = nn.scan(
            ResamplerLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, _ = stack(c, name="layers")(x, visual)
        return Norm("layer", name="final_norm")(x) if c.layer_norm.endswith("final") else x


class AttentionalPooler(nn.Module):
    """Attentional pooler: `[B, F, P, E]` to `[B, R, query_dim]`."""

    config: PoolerConfig

    @nn.compact
    def __call__(self, visual: Float[Array, "B F P E"]) -> Float[Array, "B R D"]:
        c = self.config
        visual = visual.astype(jnp.dtype(c.dtype))
        if c.time_embedding:
            visual = add_time(self, visual, c.num_frames, nn.initializers.zeros)
        queries = learned_queries(self, c.num_queries, c.query_dim, visual.shape[0], c.dtype)
        attention = CrossAttention(c.query_dim, c.num_heads, c.dtype, impl=c.attention_impl, name="attention")
        x = attention(queries, flatten_frames(visual))
        x = Norm("layer", name="norm")(x)
        if c.residual:
            gate = self.param("residual_gate", named(nn.initializers.zeros, "embed"), (c.query_dim,))
            x = x + gate.astype(x.dtype) * queries
            x = x + FeedForward(c.ffn_ratio, c.dtype, zero_init=True, name="ffn")(x)
        return x


class Resampler(nn.Module):
    """Perceiver or pooler and a map to the decoder's width: `[B, F, P, E]` to `[B, R, D]`.

    Attributes:
        config: of the perceiver or pooler.
        output_dim: D.
        resampler: `Perceiver` or `AttentionalPooler`.
    """

    config: PerceiverConfig | PoolerConfig
    output_dim: int
    resampler: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, visual: Float[Array, "B F P E"]) -> Float[Array, "B R D"]:
        c = self.config
        x = self.resampler(c, name="resampler")(visual)
        x = dense(self.output_dim, ("embed", "mlp"), name="projection", bias=True, dtype=c.dtype)(x)
        return constrain(x, "batch", "length", "activation_embed")
