"""One decoder for the language models of the field: PaLM, Gemma, Qwen, Llama, SmolLM, OLMo, Granite, Phi, T5's kind."""

import dataclasses
import functools
import math
from typing import Any, ClassVar, Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vadapter.base.array_types import Array, Float, Int
from vadapter.base.errors import UserError
from vadapter.models import layers
from vadapter.models.attention import AttentionImpl, attend, prepare, soft_cap
from vadapter.models.configuration import configuration
from vadapter.models.flops import FlopCounter
from vadapter.models.kv_cache import KVCache, write
from vadapter.models.layer_inputs import AttentionInputs, LayerInputs, SharedInputs
from vadapter.models.layers import Norm, dense, named
from vadapter.models.lora import DROPOUT, LoraConfig
from vadapter.models.masks import Visibility
from vadapter.models.positions import RopeScaling, apply_rope, rope_frequencies, rope_rotation
from vadapter.models.relative_positions import RelativeBias
from vadapter.models.tpu_kernels import FUSED_SLOTS, LANES
from vadapter.partitioning import constrain


@configuration("decoder")
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
        pre_norms: norms on what attention and MLP read; without them there should be `post_norms` (OLMo 2).
        post_norms: norms on the results of attention and MLP (Gemma 2, 3, OLMo 2).
        qk_norm: norms on query and key (Gemma 3, Qwen3, OLMo 2).
        qk_norm_over: what such a norm goes over: `head`, each head by itself, or `all_heads`, all together (OLMo 2).
        qkv_bias: biases on query, key and value (Qwen 2.5).
        query_scale: factor on the logits; None is head_dim ** -0.5.
        attention_pattern: kinds of the layers, repeated over the depth: `global` or `local`.
        window: positions that a local layer sees, its own included.
        rope_pattern: whether layers rotate queries and keys (RoPE) or not (NoPE), repeated over the depth (SmolLM3).
        rope_dim: channels of a head that are rotated, the first ones (Phi-4 mini); None is `head_dim`.
        rope_base: base of the rotary frequencies.
        rope_local_base: that of local layers; None is `rope_base`.
        rope_scaling: stretch of the frequencies of global layers.
        relative_buckets: buckets of T5's relative position biases, which all layers share (`relative_positions`); None
            has none. T5 rotates nothing (`rope_pattern` (False,)) and does not scale its logits (`query_scale` 1).
        relative_max_distance: distance from which on all keys are in the last bucket.
        attention_softcap: cap of the attention logits (Gemma 2).
        final_softcap: cap of the output logits (Gemma 2).
        tied_head: the embedding table is also the vocabulary head; else that is a table of its own, `head/embedding`.
        scale_embedding: text embeddings are multiplied by sqrt(width) (Gemma, PaLM).
        embedding_multiplier: factor on text embeddings (Granite).
        residual_multiplier: factor on what attention and MLP add to the hidden states (Granite).
        logits_multiplier: factor on the output logits, before they are capped (Granite).
        causal: whether slots see earlier ones only.
        attention_impl: `xla` everywhere, `cudnn` on NVIDIA GPUs, `splash` on TPUs, see `attention.attend`; `fused` on
            TPUs for short rows, see `vadapter.models.fused`. Decoding with a cache leaves both to `xla`, and so does
            `fused` what its kernel cannot do: rows of more than 512 slots, heads that are not multiples of 128
            channels, all of them rotated, caps and biases of the logits.
        dtype: of the computation: `float32` or `bfloat16`.
        remat: what the backward pass recomputes: `none`, `full` or `dots`.
        lora: small trained maps beside those of the layers; None has none.
    """

    stack: ClassVar[str] = "layers"

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
    pre_norms: bool = True
    post_norms: bool = False
    qk_norm: bool = False
    qk_norm_over: Literal["head", "all_heads"] = "head"
    qkv_bias: bool = False
    query_scale: float | None = None
    attention_pattern: tuple[str, ...] = ("global",)
    window: int | None = None
    rope_pattern: tuple[bool, ...] = (True,)
    rope_dim: int | None = None
    rope_base: float = 10_000.0
    rope_local_base: float | None = None
    rope_scaling: RopeScaling | None = None
    relative_buckets: int | None = None
    relative_max_distance: int = 128
    attention_softcap: float | None = None
    final_softcap: float | None = None
    tied_head: bool = True
    scale_embedding: bool = False
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_multiplier: float = 1.0
    causal: bool = True
    attention_impl: AttentionImpl | Literal["fused"] = "xla"
    dtype: str = "bfloat16"
    remat: layers.Remat = "none"
    lora: LoraConfig | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"DecoderConfig: num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}."
            )
        self._check_rope()
        self._check_relative()
        if self.lora is not None:
            self.lora.check(self._maps, "the decoder")
        layers.known("attention_impl", self.attention_impl, (*get_args(AttentionImpl), "fused"))
        layers.known("qk_norm_over", self.qk_norm_over, ("head", "all_heads"))
        if unknown := set(self.attention_pattern) - {"global", "local"}:
            raise UserError(
                f"DecoderConfig: attention_pattern holds {sorted(unknown)}; its words are 'global' and 'local'."
            )
        if "local" in self.attention_pattern and not self.window:
            raise UserError(
                "DecoderConfig: local layers need a window of one position or more; set DecoderConfig.window."
            )

    def _check_rope(self) -> None:
        if self.rotated % 2:
            name = "head_dim" if self.rope_dim is None else "rope_dim"
            raise UserError(f"DecoderConfig: rotary embeddings need an even {name}, found {self.rotated}.")
        if not 0 < self.rotated <= self.head_dim:
            raise UserError(
                f"DecoderConfig: rope_dim {self.rope_dim} is not between 2 and head_dim {self.head_dim}; it is the "
                "number of channels of a head that are rotated."
            )
        if not self.rope_pattern:
            raise UserError("DecoderConfig: rope_pattern is empty; (True,) rotates in all layers.")
        if self.rope_scaling:
            self.rope_scaling.check_channels(self.rotated)

    def _check_relative(self) -> None:
        if self.relative_buckets is None:
            return
        if self.relative_buckets < 2 or self.relative_max_distance <= self.relative_buckets // 2:
            raise UserError(
                f"DecoderConfig: relative_buckets {self.relative_buckets} and relative_max_distance "
                f"{self.relative_max_distance}; expected two buckets or more, and a distance above half of them."
            )
        if self.attention_impl not in ("xla", "fused"):
            raise UserError(
                f"DecoderConfig: attention_impl is {self.attention_impl!r}, which has no relative position biases. Use "
                "'xla'."
            )

    @property
    def _maps(self) -> dict[str, tuple[int, int]]:
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        outputs = {"query": heads, "key": kv, "value": kv}
        attention = {f"attention/{name}": (self.width, size) for name, size in outputs.items()}
        wide = {f"mlp/{name}": (self.width, self.mlp_dim) for name in (("gate", "up") if self.gated else ("up",))}
        return attention | {"attention/out": (heads, self.width)} | wide | {"mlp/down": (self.mlp_dim, self.width)}

    @property
    def fusable(self) -> bool:
        """Whether the fused kernel can compute this attention."""
        whole = self.head_dim % LANES == 0 and self.rotated == self.head_dim
        return whole and self.attention_softcap is None and self.relative_buckets is None

    @property
    def is_fused(self) -> bool:
        """Whether the fused kernel computes it, where there is no cache."""
        return self.attention_impl == "fused" and self.fusable

    @property
    def unfused_impl(self) -> AttentionImpl:
        """The implementation where the fused kernel does not serve."""
        return "xla" if self.attention_impl == "fused" else self.attention_impl

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Whether each layer is local."""
        pattern = self.attention_pattern
        return tuple(pattern[i % len(pattern)] == "local" for i in range(self.depth))

    @property
    def rope_layers(self) -> tuple[bool, ...]:
        """Whether each layer rotates queries and keys."""
        pattern = self.rope_pattern
        return tuple(bool(pattern[i % len(pattern)]) for i in range(self.depth))

    @property
    def rotated(self) -> int:
        """Channels of a head that are rotated."""
        return self.head_dim if self.rope_dim is None else self.rope_dim

    def make(self, name: str | None = None) -> "Decoder":
        """Returns the module; `name` is that of the submodule, for modules that are `nn.compact`."""
        return Decoder(self, name=name)

    def flops(self, counter: FlopCounter, lengths: Any, targets: float = 0.0) -> dict[str, float]:
        """Returns the FLOPs of a training step; see `configuration.AdapterConfig.flops`.

        Args:
            counter: counts on the decoder's parameters.
            lengths: tokens of each row, without padding.
            targets: hidden states that the vocabulary head multiplies; 0 where there is no head.
        """
        lengths = np.asarray(lengths, np.float64)
        total = counter.kernels(float(lengths.sum()))
        if targets:
            total += counter.matmul(f"{'embedder' if self.tied_head else 'head'}/embedding", targets)
        width, attention = self.num_heads * self.head_dim, 0.0
        for local in (False, True):
            layers = sum(x == local for x in self.local_layers)
            keys = np.minimum(lengths, self.window or math.inf) if local else lengths
            causal = self.causal and not local
            attention += counter.attention(float((lengths * keys).sum()), 1, width, layers, causal)
        return {counter.name: total + attention}


class Attention(nn.Module):
    """Self-attention of one layer."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], own: LayerInputs, shared: SharedInputs
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Returns what attention adds, and the cached keys and values with the new ones (None without a cache)."""
        c = self.config
        inputs = shared.attention(own)
        common: dict[str, Any] = {"bias": c.qkv_bias, "dtype": c.dtype, "lora": c.lora}
        query = dense((c.num_heads, c.head_dim), ("embed", "heads", "kv"), name="query", **common)(x)
        # The kernels of one head are small: to gather them in each layer takes longer than to keep them whole.
        names = (None if c.num_kv_heads == 1 else "embed", "kv_heads", "kv")
        key = dense((c.num_kv_heads, c.head_dim), names, name="key", **common)(x)
        value = dense((c.num_kv_heads, c.head_dim), names, name="value", **common)(x)
        fused = c.is_fused and own.key is None and x.shape[1] <= FUSED_SLOTS
        if not fused:
            query = constrain(query, "batch", "length", "activation_heads", None)
        if c.qk_norm:
            query, key = self._norm("query_norm", query), self._norm("key_norm", key)
        scale = c.head_dim**-0.5 if c.query_scale is None else c.query_scale
        read = None
        if fused:
            from vadapter.models import fused as kernels  # of jax's experimental modules

            assert not isinstance(inputs.mask, Visibility)
            out = kernels.attention(query, key, value, inputs.mask, inputs.rotation, scale=scale)
        else:
            query, key = apply_rope(query, inputs.rotation), apply_rope(key, inputs.rotation)
            if own.key is not None and own.value is not None and shared.start is not None:
                key, value = write(own.key, key, shared.start), write(own.value, value, shared.start)
                read = (key, value)
            out = attend(
                query,
                key.astype(query.dtype),
                value.astype(query.dtype),
                inputs.mask,
                scale=scale,
                softcap=c.attention_softcap,
                impl=c.unfused_impl,
                bias=shared.bias,
                causal=c.causal and read is None,
            )
            out = constrain(out, "batch", "length", "activation_heads", None)
        return dense(c.width, ("heads", "kv", "embed"), name="out", axis=(-2, -1), dtype=c.dtype, lora=c.lora)(
            out
        ), read

    def _norm(self, name: str, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        c = self.config
        if c.qk_norm_over == "head":
            return Norm(c.norm, c.norm_eps, "kv", name=name)(x)
        together = x.reshape(*x.shape[:2], -1)
        return Norm(c.norm, c.norm_eps, name=name)(together).reshape(x.shape)


class Layer(nn.Module):
    """One block, a scan body."""

    config: DecoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], own: LayerInputs, shared: SharedInputs
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Returns the hidden states, and the layer's cached keys and values (None without a cache)."""
        c = self.config

        def norm(name: str, y: Array) -> Array:
            return Norm(c.norm, c.norm_eps, name=name)(y)

        def before(name: str, y: Array) -> Array:
            return norm(name, y) if c.pre_norms else y

        def after(name: str, y: Array) -> Array:
            y = norm(name, y) if c.post_norms else y
            return y if c.residual_multiplier == 1 else y * c.residual_multiplier

        mlp = layers.GatedMlp(c.mlp_dim, c.activation, c.gated, dtype=c.dtype, lora=c.lora, name="mlp")
        y = before("pre_attention_norm", x)
        out, read = Attention(c, name="attention")(y, own, shared)
        out = after("post_attention_norm", out)
        if c.parallel_block:
            x = x + out + after("post_mlp_norm", mlp(y))
        else:
            x = x + out
            x = x + after("post_mlp_norm", mlp(before("pre_mlp_norm", x)))
        return constrain(x, "batch", "length", "activation_embed"), read


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
            split_rngs={"params": True, DROPOUT: True},
            in_axes=(0, nn.broadcast),  # pyright: ignore[reportArgumentType]
            length=c.depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        self.final_norm = Norm(c.norm, c.norm_eps)
        if c.relative_buckets is not None:
            self.relative_bias = RelativeBias(c.num_heads, c.relative_buckets, c.relative_max_distance)
        if not c.tied_head:
            self.head = table()

    def embed(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks up text embeddings, scaled if the configuration says so."""
        return constrain(self.scaled(self.embedder(tokens)), "batch", "length", "activation_embed")

    def scaled(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Returns rows of the embedding table, or mixtures of them, as the layers read them."""
        c = self.config
        if c.scale_embedding:
            x = x * jnp.asarray(c.width**0.5, x.dtype)  # rounded to the compute dtype, as Gemma does
        if c.embedding_multiplier != 1:
            x = x * c.embedding_multiplier
        return x

    def word_table(self) -> Float[Array, "V D"]:
        """Returns the table of text embeddings, not scaled, in the compute dtype."""
        return self.embedder.embedding.astype(jnp.dtype(self.config.dtype))

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

        Raises:
            UserError: the rows are longer than `rope_scaling` holds for.
        """
        c = self.config
        x = constrain(x.astype(jnp.dtype(c.dtype)), "batch", "length", "activation_embed")
        own = LayerInputs(jnp.asarray(c.local_layers), None if all(c.rope_layers) else jnp.asarray(c.rope_layers))
        start, key_positions, key_segments = None, positions, segment_ids
        if cache is not None:
            own = dataclasses.replace(own, key=cache.key, value=cache.value)
            start = cache.length
            cache = cache.advance(positions, segment_ids)
            key_positions, key_segments = cache.positions, cache.segment_ids

        def attention_inputs(window: int | None, base: float, scaling: RopeScaling | None = None) -> AttentionInputs:
            seen = Visibility(positions, key_positions, segment_ids, key_segments, causal=c.causal, window=window)
            magnitude = scaling.magnitude if scaling else 1.0
            rotation = rope_rotation(positions, rope_frequencies(c.rotated, base, scaling), magnitude)
            return AttentionInputs(prepare(seen, c.unfused_impl), rotation)

        if c.rope_scaling:
            c.rope_scaling.check_length(key_positions.shape[1])
        global_ = attention_inputs(None, c.rope_base, c.rope_scaling)
        local = attention_inputs(c.window, c.rope_local_base or c.rope_base) if any(c.local_layers) else None
        bias = None if c.relative_buckets is None else self.relative_bias(positions, key_positions)
        x, read = self.layers(x, own, SharedInputs(global_, local, start, bias))
        if cache is not None:
            cache = cache.replace(key=read[0], value=read[1])
        return self.final_norm(x), cache

    def head_table(self) -> Float[Array, "V D"]:
        """Returns the table of the vocabulary head, in the compute dtype."""
        head = self.embedder if self.config.tied_head else self.head
        return head.embedding.astype(jnp.dtype(self.config.dtype))

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Returns f32 logits, scaled and soft-capped. Training uses `head_table` and a chunked loss instead."""
        logits = (self.embedder if self.config.tied_head else self.head).attend(x)
        logits = constrain(logits, "batch", "length", "activation_vocab")
        logits = logits.astype(jnp.float32)
        if self.config.logits_multiplier != 1:
            logits = logits * self.config.logits_multiplier
        return soft_cap(logits, self.config.final_softcap)

    def empty_cache(self, batch: int, size: int) -> KVCache:
        """Makes a cache of `size` slots for `batch` rows."""
        c = self.config
        return KVCache.empty(c.depth, batch, size, c.num_kv_heads, c.head_dim, jnp.dtype(c.dtype))
