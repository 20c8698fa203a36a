"""One decoder for the language models of the field: PaLM, Gemma, Qwen, Llama."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vadapter.base.array_types import Array, Bool, Float, Int
from vadapter.base.errors import UserError
from vadapter.models import layers
from vadapter.models.attention import AttentionImpl, attend, prepare, soft_cap
from vadapter.models.kv_cache import KVCache
from vadapter.models.layers import Norm, dense, named
from vadapter.models.masks import Visibility
from vadapter.models.positions import RopeScaling, apply_rope, rope_angles, rope_frequencies
from vadapter.partitioning import constrain


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and kind of a decoder. `models/variants.py` has the published ones.

    Attributes:
        vocab_size: rows of the embedding table.
        width: channels of a token, D.
        depth: number of layers.
        num_heads: number of query heads, N.
        num_kv_heads: key/value heads; 1 is multi-query, num_heads is multi-head.
        head_dim: channels of a head, H.
        mlp_dim: hidden size of the MLP.
        norm: `rms`, `rms_plus_one`, `layer` or `layer_no_bias`; see `layers.Norm`.
        norm_eps: added to the variance or mean square in each norm.
        activation: of the MLP; with `gated` this names GeGLU (`gelu`, `gelu_tanh`) or SwiGLU (`silu`).
        gated: whether the MLP has a gate.
        parallel_block: attention and MLP read the same norm and are added together (PaLM).
        post_norms: norms on the results of attention and MLP as well (Gemma 2, 3).
        qk_norm: norms on each head's query and key (Gemma 3, Qwen3).
        qkv_bias: biases on query, key and value (Qwen 2.5).
        query_scale: factor on the logits; None is head_dim ** -0.5.
        attention_pattern: kinds of the layers, repeated over the depth: `global` or `local`.
        window: positions that a local layer sees, its own included.
        rope_base: base of the rotary frequencies.
        rope_local_base: that of local layers; None is `rope_base`.
        rope_scaling: stretch of the frequencies of global layers.
        attention_softcap: cap of the attention logits (Gemma 2).
        final_softcap: cap of the output logits (Gemma 2).
        tied_head: the embedding table is also the vocabulary head; else that is a table of its own, `head/embedding`.
        scale_embedding: text embeddings are multiplied by sqrt(width) (Gemma, PaLM).
        causal: whether slots see earlier ones only.
        attention_impl: `xla` everywhere, `cudnn` on NVIDIA GPUs, `splash` on TPUs; see `attention.attend`.
        dtype: of the computation: `float32` or `bfloat16`.
        remat: what the backward pass recomputes: `none`, `full` or `dots`.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    norm: layers.NormKind = "rms"
    norm_eps: float = 1e-6
    activation: layers.Activation = "gelu_tanh"
    gated: bool = True
    parallel_block: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    query_scale: float | None = None
    attention_pattern: tuple[str, ...] = ("global",)
    window: int | None = None
    rope_base: float = 10_000.0
    rope_local_base: float | None = None
    rope_scaling: RopeScaling | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    tied_head: bool = True
    scale_embedding: bool = False
    causal: bool = True
    attention_impl: AttentionImpl = "xla"
    dtype: str = "bfloat16"
    remat: layers.Remat = "none"

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"DecoderConfig: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise UserError(f"DecoderConfig: rotary embeddings need an even head_dim, found {self.head_dim}.")
        if unknown := set(self.attention_pattern) - {"global", "local"}:
            raise UserError(
                f"DecoderConfig: attention_pattern holds {sorted(unknown)}; its words are 'global' and 'local'."
            )
        if "local" in self.attention_pattern and not self.window:
            raise UserError(
                "DecoderConfig: local layers need a window of one position or more; set DecoderConfig.window."
            )

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Whether each layer is local."""
        pattern = self.attention_pattern
        return tuple(pattern[i % len(pattern)] == "local" for i in range(self.depth))


@dataclasses.dataclass
class Sight:
    """What one kind of layer sees: its mask and its rotation. Made once and shared by the layers of that kind."""

    mask: Bool[Array, "B 1 T S"] | Visibility
    angles: Float[Array, "B T half"]

    def where(self, is_local: Bool[Array, ""], everywhere: "Sight") -> "Sight":
        """Returns this sight of local layers if the layer is one, else `everywhere`."""
        angles = jnp.where(is_local, self.angles, everywhere.angles)
        if isinstance(self.mask, Visibility):
            return Sight(dataclasses.replace(self.mask, is_local=is_local), angles)
        assert not isinstance(everywhere.mask, Visibility)
        return Sight(jnp.where(is_local, self.mask, everywhere.mask), angles)


jax.tree_util.register_dataclass(Sight, ["mask", "angles"], [])


class Attention(nn.Module):
    """Self-attention of one layer."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], sight: Sight, cache: tuple | None) -> tuple[Array, tuple | None]:
        c = self.config
        common: dict[str, Any] = {"bias": c.qkv_bias, "dtype": c.dtype}
        query = dense((c.num_heads, c.head_dim), ("embed", "heads", "kv"), name="query", **common)(x)
        # The kernels of one head are small: to gather them in each layer takes longer than to keep them whole.
        names = (None if c.num_kv_heads == 1 else "embed", "kv_heads", "kv")
        key = dense((c.num_kv_heads, c.head_dim), names, name="key", **common)(x)
        value = dense((c.num_kv_heads, c.head_dim), names, name="value", **common)(x)
        query = constrain(query, "batch", "length", "activation_heads", None)
        if c.qk_norm:
            query = Norm(c.norm, c.norm_eps, "kv", name="query_norm")(query)
            key = Norm(c.norm, c.norm_eps, "kv", name="key_norm")(key)
        query, key = apply_rope(query, sight.angles), apply_rope(key, sight.angles)
        if cache is not None:
            keys, values, at = cache
            start = (0, at, 0, 0)
            key = jax.lax.dynamic_update_slice(keys, key.astype(keys.dtype), start)
            value = jax.lax.dynamic_update_slice(values, value.astype(values.dtype), start)
            cache = (key, value)
        scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
        out = attend(
            query,
            key.astype(query.dtype),
            value.astype(query.dtype),
            sight.mask,
            scale=scale,
            softcap=c.attention_softcap,
            impl=c.attention_impl,
        )
        out = constrain(out, "batch", "length", "activation_heads", None)
        return dense(c.width, ("heads", "kv", "embed"), name="out", axis=(-2, -1), dtype=c.dtype)(out), cache


class Layer(nn.Module):
    """One block; as a scan body it is given (hidden), (is_local, cache of the layer), (sights, next slot)."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], of_layer: tuple, shared: tuple) -> tuple[Array, Any]:
        c = self.config
        is_local, kv = of_layer
        (everywhere, nearby), slot = shared
        sight = everywhere if nearby is None else nearby.where(is_local, everywhere)

        def norm(name: str, y: Array) -> Array:
            return Norm(c.norm, c.norm_eps, name=name)(y)

        def after(name: str, y: Array) -> Array:
            return norm(name, y) if c.post_norms else y

        mlp = layers.GatedMlp(c.mlp_dim, c.activation, c.gated, dtype=c.dtype, name="mlp")
        y = norm("pre_attention_norm", x)
        out, kv = Attention(c, name="attention")(y, sight, None if kv is None else (*kv, slot))
        out = after("post_attention_norm", out)
        if c.parallel_block:
            x = x + out + after("post_mlp_norm", mlp(y))
        else:
            x = x + out
            x = x + after("post_mlp_norm", mlp(norm("pre_mlp_norm", x)))
        return constrain(x, "batch", "length", "activation_embed"), kv


class Decoder(nn.Module):
    """Embedding, layers, final norm and vocabulary head.

    Submodules make their parameters when first used: a decoder that serves as an adapter is never asked for
    embeddings or logits, and so has `layers` and `final_norm` only.
    """

    config: DecoderConfig

    def setup(self):
        c = self.config
        table = functools.partial(
            nn.Embed,
            c.vocab_size,
            c.width,
            dtype=jnp.dtype(c.dtype),
            embedding_init=named(nn.initializers.normal(c.width**-0.5), "vocab", "embed"),
        )
        self.embedder = table()
        self.layers = nn.scan(
            layers.remat(Layer, c.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        self.final_norm = Norm(c.norm, c.norm_eps)
        if not c.tied_head:
            self.head = table()

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks up text embeddings, scaled if the configuration says so."""
        x = self.embedder(tokens)
        if self.config.scale_embedding:
            x = x * jnp.asarray(self.config.width**0.5, x.dtype)  # rounded to the compute dtype, as Gemma does
        return constrain(x, "batch", "length", "activation_embed")

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Runs the layers.

        Args:
            x: embeddings of text and soft tokens.
            segment_ids: 0 for padding.
            positions: position of each slot in its segment.
            cache: slots read before; `x` takes the next T slots.

        Returns:
            Hidden states after the final norm, and the cache with the new slots (None without a cache).
        """
        c = self.config
        x = constrain(x.astype(jnp.dtype(c.dtype)), "batch", "length", "activation_embed")
        slot, kv = None, None
        key_positions, key_segments = positions, segment_ids
        if cache is not None:
            slot, kv = cache.length, (cache.key, cache.value)
            cache = cache.advance(positions, segment_ids)
            key_positions, key_segments = cache.positions, cache.segment_ids

        def sight(window: int | None, frequencies: np.ndarray) -> Sight:
            seen = Visibility(positions, key_positions, segment_ids, key_segments, causal=c.causal, window=window)
            return Sight(prepare(seen, c.attention_impl), rope_angles(positions, frequencies))

        local = np.array(c.local_layers)
        everywhere = sight(None, rope_frequencies(c.head_dim, c.rope_base, c.rope_scaling))
        nearby = None
        if local.any():
            nearby = sight(c.window, rope_frequencies(c.head_dim, c.rope_local_base or c.rope_base))
        x, kv = self.layers(x, (jnp.asarray(local), kv), ((everywhere, nearby), slot))
        if cache is not None:
            cache = cache.replace(key=kv[0], value=kv[1])
        return self.final_norm(x), cache

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Returns soft-capped f32 logits. Training uses `head_weights` and a chunked loss instead."""
        logits = (self.embedder if self.config.tied_head else self.head).attend(x)
        logits = constrain(logits, "batch", "length", "activation_vocab")
        return soft_cap(logits.astype(jnp.float32), self.config.final_softcap)

    def empty_cache(self, batch: int, size: int) -> KVCache:
        """Makes a cache of `size` slots for `batch` rows."""
        c = self.config
        return KVCache.empty(c.depth, batch, size, c.num_kv_heads, c.head_dim, jnp.dtype(c.dtype))


def head_weights(config: DecoderConfig, params: dict[str, Any]) -> tuple[Float[Array, "V D"], float | None]:
    """Returns a decoder's vocabulary head as a table in the compute dtype, and the cap of its logits.

    Args:
        config: the decoder's.
        params: the decoder's parameters.
    """
    table = params["embedder" if config.tied_head else "head"]["embedding"]
    return table.astype(jnp.dtype(config.dtype)), config.final_softcap
