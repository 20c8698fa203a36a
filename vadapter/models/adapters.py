"""What stands between the vision encoder and the decoder: visual tokens in, soft tokens out.

    MlpAdapter     a map of each token (LLaVA), or of each square of tokens (pixel shuffle); with one layer, the
                   projection of stage 1
    Resampler      perceiver resampler (the paper's baseline) or attentional pooler (stage 1 of the paper), then a map:
                   in `resampler`
    LMAdapter      a tiny language model between two maps: the paper's proposal and its variants

The LM adapter is a line of three choices:

    visual tokens --front--> tokens --FC--> tiny LM --read-out--> outputs --FC--> soft tokens
                   |                                  |
                   perceiver   (new: the paper)        slots     the outputs of the front's own tokens (the paper)
                   pooler      (stage 1's, reused)     appended  outputs of learned queries after them
                   projection  (stage 1's, reused)

Front `projection` with read-out `appended` is the *queries* wiring: the aligned LM reads what it read in stage 1, and
answers where it answered in stage 1, after it. With `num_words` it first writes what it learned to write there, and the
hidden states that wrote it go on as well.

An adapter of your own: see `configuration`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vadapter.base.array_types import Array, Float, Int
from vadapter.base.errors import UserError
from vadapter.models import layers
from vadapter.models.configuration import AdapterConfig, adapter, describe
from vadapter.models.decoder import DecoderConfig
from vadapter.models.flops import FlopCounter
from vadapter.models.layers import dense
from vadapter.models.resampler import PoolerConfig, flatten_frames
from vadapter.partitioning import constrain

Readout = Literal["slots", "appended"]


@adapter
@dataclasses.dataclass(frozen=True)
class MlpConfig:
    """A map of each visual token by itself, or of squares of neighbours (pixel shuffle, as in SmolVLM and nanoVLM).

    Attributes:
        depth: 1 is linear, 2 is LLaVA 1.5's.
        hidden_dim: width between the maps; None is the output's.
        pixel_shuffle: side of the squares of patches that become one token, their features side by side; 1 maps each
            patch by itself.
        dtype: of the computation.
    """

    depth: int = 1
    hidden_dim: int | None = None
    pixel_shuffle: int = 1
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.depth < 1 or self.pixel_shuffle < 1:
            raise UserError(
                f"MlpConfig: expected depth and pixel_shuffle of 1 or more; found depth={self.depth} and "
                f"pixel_shuffle={self.pixel_shuffle}."
            )

    def make(self, output_dim: int, name: str | None = None) -> nn.Module:
        """See `configuration.AdapterConfig`."""
        return MlpAdapter(self, output_dim, name=name)

    def num_tokens(self, frames: int, patches: int) -> int:
        """See `configuration.AdapterConfig`."""
        side = math.isqrt(patches)
        if self.pixel_shuffle > 1 and (side * side != patches or side % self.pixel_shuffle):
            raise UserError(
                f"MlpConfig: pixel_shuffle={self.pixel_shuffle} needs a square grid of patches whose side is a "
                f"multiple of it; the encoder gives {patches} patches. Change pixel_shuffle or the image size."
            )
        return frames * patches // self.pixel_shuffle**2

    def flops(self, counter: FlopCounter, media: float, frames: int, patches: int) -> dict[str, float]:
        """See `configuration.AdapterConfig`."""
        return {counter.name: counter.kernels(media * self.num_tokens(frames, patches))}

    @property
    def output_map(self) -> str:
        """See `configuration.AdapterConfig`."""
        return f"dense_{self.depth - 1}"


@adapter
@dataclasses.dataclass(frozen=True)
class LMAdapterConfig:
    """A tiny language model as adapter (paper, section 3).

    Attributes:
        lm: the tiny LM; its `causal` says whether the causal mask stays.
        front: the adapter that makes the LM's input of the visual tokens: a `PerceiverConfig` (new resampler: the
            paper), a `PoolerConfig` (stage 1's pooler), an `MlpConfig` (stage 1's projection), or your own.
        readout: `slots`, the outputs of the input's own tokens (the paper), or `appended`, the outputs of learned
            queries that stand after them.
        num_queries: queries of read-out `appended`.
        query_init: `normal`, or `positions`: queries start as the front's tokens of a blank image, so that they start
            at places (`LMAdapter.places`).
        num_prefix: learned vectors before the front's tokens, such as stand there in stage 1: its prompt. 0 is none.
        num_suffix: learned vectors after the front's tokens, likewise: the rest of the prompt.
        num_words: tokens that the LM then writes by itself, greedily. The hidden states that wrote them are soft tokens
            before those of the queries, which read the words. The LM has its embedding table (and head) for it, from
            stage 1; no gradient goes through the choice of a word. 0 is none.
    """

    lm: DecoderConfig
    front: AdapterConfig
    readout: Readout = "slots"
    num_queries: int = 0
    query_init: Literal["normal", "positions"] = "normal"
    num_prefix: int = 0
    num_suffix: int = 0
    num_words: int = 0

    def __post_init__(self):
        layers.known("LMAdapterConfig.readout", self.readout, get_args(Readout))
        layers.known("LMAdapterConfig.query_init", self.query_init, ("normal", "positions"))
        if (self.readout == "appended") != (self.num_queries > 0):
            raise UserError(
                f"LMAdapterConfig: read-out 'appended' needs num_queries of one or more and 'slots' needs 0; found "
                f"{self.readout!r} with num_queries={self.num_queries}."
            )
        if self.num_words and not (self.readout == "appended" and self.lm.causal):
            raise UserError(
                "LMAdapterConfig: num_words needs read-out 'appended' and a causal LM, which writes after what it has "
                f"read; found {self.readout!r} with lm.causal={self.lm.causal}."
            )

    def make(self, output_dim: int, name: str | None = None) -> nn.Module:
        """See `configuration.AdapterConfig`."""
        return LMAdapter(self, output_dim, name=name)

    def num_tokens(self, frames: int, patches: int) -> int:
        """See `configuration.AdapterConfig`."""
        return self.num_words + self.num_queries or self.front.num_tokens(frames, patches)

    def flops(self, counter: FlopCounter, media: float, frames: int, patches: int) -> dict[str, float]:
        """See `configuration.AdapterConfig`. The front, the LM and the last map are counted by themselves."""
        context = self.num_prefix + self.front.num_tokens(frames, patches) + self.num_suffix
        length = context + self.num_words + self.num_queries
        after = {name: counter.part(name, before=counter.flows) for name in ("lm", "projection")}
        read = media * (self.num_words + self.num_queries or length)
        lm = self.lm.flops(after["lm"], np.full(round(media), length))
        if self.num_words:  # to write them is a forward pass
            forward = dataclasses.replace(after["lm"], trainable=frozenset(), before=False)
            writing = self.lm.flops(forward, np.full(round(media), context + self.num_words), media * self.num_words)
            lm = {name: lm[name] + writing[name] for name in lm}
        return {
            **self.front.flops(counter.part("front"), media, frames, patches),
            **lm,
            after["projection"].name: after["projection"].kernels(read),
        }

    def tiny_flops(self, counter: FlopCounter, lengths: Any, targets: float) -> dict[str, float]:
        """Returns the FLOPs of the LM's own loss, beside those of `flops`, which counts the front.

        Args:
            counter: of the adapter.
            lengths: tokens of each row that the LM reads.
            targets: that it predicts.
        """
        return self.lm.flops(counter.part("lm", before=counter.flows), lengths, targets)

    def given_words(self) -> "LMAdapterConfig":
        """Returns what costs as much as this adapter where its words were written before (`LMAdapter.written`)."""
        return dataclasses.replace(self, num_words=0, num_queries=self.num_queries + self.num_words)

    def stage1_rules(self) -> tuple[tuple[str, str], ...]:
        """Returns what stage 1 hands over to this adapter, as rules of a `Source`: its LM, and its map of visual tokens
        where the front is one of the same kind."""
        fronts = {MlpConfig: "dense_[0-9]+/.*", PoolerConfig: "(?:resampler|projection)/.*"}
        parts = "layers|final_norm|embedder|head" if self.num_words else "layers|final_norm"
        if self.lm.relative_buckets is not None:
            parts += "|relative_bias"
        rules = [(rf"decoder/((?:{parts})/.*)", r"adapter/lm/\1")]
        if front := fronts.get(type(self.front)):
            rules.append((f"adapter/({front})", r"adapter/front/\1"))
        return tuple(rules)

    @property
    def output_map(self) -> str:
        """See `configuration.AdapterConfig`."""
        return "projection"

    def starts(self) -> Mapping[str, Callable[..., Array]]:
        """See `configuration.AdapterConfig`."""
        return {"queries": LMAdapter.places} if self.query_init == "positions" else {}

    def summary(self) -> str:
        """See `configuration.AdapterConfig`."""
        words = f", {self.num_words} words of its own" if self.num_words else ""
        return f"{describe(self.front)}, then a {describe(self.lm)}; read-out {self.readout}{words}"


class MlpAdapter(nn.Module):
    """Maps each visual token: `[B, F, P, E]` to `[B, F * P, D]`, or with squares of side s to `[B, F * P / s^2, D]`."""

    config: MlpConfig
    output_dim: int

    @nn.compact
    def __call__(self, visual: Float[Array, "B F P E"]) -> Float[Array, "B S D"]:
        c = self.config
        x = flatten_frames(_squares(visual, c.pixel_shuffle)).astype(jnp.dtype(c.dtype))
        for i in range(c.depth):
            last = i == c.depth - 1
            width = self.output_dim if last else c.hidden_dim or self.output_dim
            x = dense(width, ("embed", "mlp"), name=f"dense_{i}", bias=True, dtype=c.dtype)(x)
            x = x if last else layers.activation("gelu")(x)
        return constrain(x, "batch", "length", "activation_embed")


def _slots(x: Float[Array, "B T D"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"]]:
    """Segments and positions of rows without padding."""
    positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    return jnp.ones_like(positions), positions


def _squares(visual: Float[Array, "B F P E"], side: int) -> Float[Array, "B F S D"]:
    """Puts the features of each square of patches side by side, in the order of rows."""
    if side == 1:
        return visual
    rows, frames, patches, width = visual.shape
    grid = math.isqrt(patches) // side
    x = visual.reshape(rows, frames, grid, side, grid, side, width)
    return x.swapaxes(3, 4).reshape(rows, frames, grid * grid, side * side * width)


class LMAdapter(nn.Module):
    """Tiny LM between two maps: `[B, F, P, E]` to `[B, R, D]`.

    Parameters: `front/...` (with its map to the LM's width, the one fully connected layer before it), `prefix`,
    `suffix`, `queries`, `lm/{layers,final_norm}`, `projection` (the one after it); `lm/{embedder,head}` with words.
    """

    config: LMAdapterConfig
    output_dim: int

    def setup(self):
        c = self.config
        self.front = c.front.make(c.lm.width)
        self.lm = c.lm.make()
        self.projection = dense(self.output_dim, ("embed", "mlp"), bias=True, dtype=c.lm.dtype)
        init = layers.named(nn.initializers.normal(c.lm.width**-0.5), "queries", "embed")
        if c.num_prefix:
            self.prefix = self.param("prefix", init, (c.num_prefix, c.lm.width))
        if c.num_suffix:
            self.suffix = self.param("suffix", init, (c.num_suffix, c.lm.width))
        if c.num_queries:
            self.queries = self.param("queries", init, (c.num_queries, c.lm.width))

    def __call__(
        self, visual: Float[Array, "B F P E"], words: Int[Array, "B W"] | None = None
    ) -> Float[Array, "B R D"]:
        """Returns the soft tokens of each row.

        Args:
            visual: patch tokens.
            words: that the LM wrote about them before, see `written`; None lets it write them now.
        """
        c = self.config
        x = self.context(visual)
        read = x.shape[1] - c.num_prefix - c.num_suffix
        first = x.shape[1] - 1  # where the LM says its first word
        if c.num_words:
            if words is None or self.is_initializing():
                words = self.words(x)
            x = jnp.concatenate([x, self.lm.embed(words).astype(x.dtype)], axis=1)
        if c.num_queries:
            x = jnp.concatenate([x, self._repeated(self.queries, x)], axis=1)
            read = c.num_queries
        hidden, _ = self.lm(x, *_slots(x))
        wrote = [hidden[:, first : first + c.num_words]] if c.num_words else []
        soft = self.projection(jnp.concatenate([*wrote, hidden[:, -read:]], axis=1))
        return constrain(soft, "batch", "length", "activation_embed")

    def context(self, visual: Float[Array, "B F P E"]) -> Float[Array, "B T D"]:
        """Returns what the LM reads before it writes: the front's tokens between the learned vectors around them."""
        x = self.front(visual)
        if self.config.num_prefix:
            x = jnp.concatenate([self._repeated(self.prefix, x), x], axis=1)
        if self.config.num_suffix:
            x = jnp.concatenate([x, self._repeated(self.suffix, x)], axis=1)
        return x

    def written(self, visual: Float[Array, "B F P E"]) -> Int[Array, "B W"]:
        """Returns the ids that the LM writes about each row."""
        return self.words(self.context(visual))

    def words(self, context: Float[Array, "B T D"]) -> Int[Array, "B W"]:
        """Returns the ids that the LM writes after a context, each the most probable one. Nothing is trained by it."""
        count = self.config.num_words
        if self.is_initializing():
            self.lm.logits(context[:, -1:])  # makes the parameters of an untied head
            return jnp.zeros((context.shape[0], count), jnp.int32)
        rows, length = context.shape[:2]
        unbound: tuple[Any, Any] = self.lm.unbind()  # pure functions, for a scan without gradients
        lm, own = unbound
        own, context = jax.lax.stop_gradient((own, context))
        cache = lm.apply(own, rows, length + count, method="empty_cache")
        hidden, cache = lm.apply(own, context, *_slots(context), cache)

        def choose(hidden: Float[Array, "B 1 D"]) -> Int[Array, " B"]:
            return jnp.argmax(lm.apply(own, hidden, method="logits"), axis=-1)[:, 0].astype(jnp.int32)

        def write(carry: tuple[Array, Any], at: Int[Array, ""]) -> tuple[tuple[Array, Any], Array]:
            word, cache = carry
            place = jnp.broadcast_to(at, (rows, 1))
            x = lm.apply(own, word[:, None], method="embed")
            hidden, cache = lm.apply(own, x, jnp.ones_like(place), place, cache)
            return (choose(hidden), cache), word

        start = (choose(hidden[:, -1:]), cache)
        _, words = jax.lax.scan(write, start, jnp.arange(length, length + count))
        return words.swapaxes(0, 1)

    def _repeated(self, vectors: Float[Array, "Q D"], x: Float[Array, "B T D"]) -> Float[Array, "B Q D"]:
        vectors = jnp.broadcast_to(vectors.astype(x.dtype), (x.shape[0], *vectors.shape))
        return constrain(vectors, "batch", "queries", "activation_embed")

    def places(self, visual: Float[Array, "1 F P E"]) -> Float[Array, "Q D"]:
        """Returns the front's tokens at evenly spaced places of one medium, the start of position queries."""
        tokens = self.front(visual)[0]
        at = jnp.round(jnp.linspace(0, tokens.shape[0] - 1, self.config.num_queries)).astype(jnp.int32)
        return tokens[at].astype(jnp.float32)
