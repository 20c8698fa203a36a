"""Soft tokens and the words of the decoder's embedding table: which are near, and soft tokens that become words.

The paper (Table 9) quantises visual embeddings to words by Gumbel-softmax, and gives the temperatures. What the logits
are it does not say. Here they are sqrt(D) times the cosine similarity of a soft token and a row of the table: the
scaled dot product of attention, of vectors that are made equally long (root mean square 1). So the scale of a family's
embeddings does not matter; a row that has nothing to do with a soft token has a logit of about -1 to 1, a row that
equals it sqrt(D) and no other row more. Gumbel noise and temperatures around 1 are then of the right size: the largest
of V draws is about ln V, 12.5 of a vocabulary of 262 thousand.

The table is read in chunks (`losses.vocab_chunks`), split over the devices as in the loss: logits [B, L, V] never exist
at once, forwards or backwards. The backward pass keeps one [B, L, D] in f32 for each chunk.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp

from vadapter.base import hashes
from vadapter.base.array_types import Array, Float, Int
from vadapter.base.errors import UserError
from vadapter.models import layers
from vadapter.models.configuration import configuration
from vadapter.models.flops import FlopCounter
from vadapter.models.losses import vocab_chunks
from vadapter.partitioning import constrain

if TYPE_CHECKING:
    from vadapter.models.decoder import Decoder

WordKind = Literal["softmax", "gumbel", "straight_through"]
VOCAB_CHUNK = 16_384  # rows of the table at a time

_LOWEST = -1e30  # stands for -inf, whose differences would be NaN
_TINY = 1e-12  # squared length of a vector that has no direction


@configuration("field")
@dataclasses.dataclass(frozen=True)
class WordQuantizationConfig:
    """Soft tokens become words of the decoder's embedding table, scaled as text is.

    The kinds:

    - `softmax`: a mean of the rows, weighted by the softmax of the logits / temperature.
    - `gumbel`: the row with the highest logit after Gumbel noise is added; gradients are those of the softmax of the
      noisy logits / temperature (straight-through Gumbel-softmax). Evaluation and decoding take the row with the
      highest logit, without noise: the temperature does not matter there.
    - `straight_through`: the row with the highest logit; gradients go to the soft token as if it had stayed as it was.

    Noise is drawn in training alone. It follows from `seed`, the step and the row's pixels, so that a resumed run, any
    mesh and any `accumulate` draw the same. No gradient goes into a frozen table. Into one that is trained goes that
    of the softmax, and none where the kind is `straight_through`.

    Attributes:
        kind: `softmax`, `gumbel` or `straight_through`.
        temperature: the paper's better one is 2; with 1 its CIDEr was 0.
        end_temperature: of the step `decay_steps` and later, and outside of training; None is `temperature`. The paper
            has its best result with a temperature that falls from 2, and does not say where to.
        decay_steps: steps over which the temperature goes from the one to the other, on a straight line.
        seed: of the noise.
        vocab_chunk: rows of the table at a time; None takes all at once. Noise depends on it.
    """

    kind: WordKind = "gumbel"
    temperature: float = 2.0
    end_temperature: float | None = None
    decay_steps: int = 0
    seed: int = 0
    vocab_chunk: int | None = VOCAB_CHUNK

    def __post_init__(self):
        layers.known("WordQuantizationConfig.kind", self.kind, get_args(WordKind))
        if min(self.temperature, self.last_temperature) <= 0 or (self.vocab_chunk or 1) < 1:
            raise UserError(
                f"WordQuantizationConfig: expected temperatures above 0 and a vocab_chunk of 1 or more; found "
                f"temperature={self.temperature}, end_temperature={self.end_temperature} and "
                f"vocab_chunk={self.vocab_chunk}."
            )
        if (self.end_temperature is None) != (self.decay_steps == 0) or self.decay_steps < 0:
            raise UserError(
                f"WordQuantizationConfig: end_temperature and decay_steps come together; found "
                f"end_temperature={self.end_temperature} and decay_steps={self.decay_steps}. Set both, or neither."
            )

    @property
    def last_temperature(self) -> float:
        """The temperature at the end of training and after it."""
        return self.temperature if self.end_temperature is None else self.end_temperature

    def temperature_at(self, step: Int[Array, ""] | None) -> Array | float:
        """Returns the temperature of a training step; None is outside of training."""
        if step is None or not self.decay_steps:
            return self.last_temperature
        done = jnp.minimum(jnp.asarray(step, jnp.float32) / self.decay_steps, 1.0)
        return self.temperature + (self.last_temperature - self.temperature) * done

    def flops(self, table: FlopCounter, parameter: str, tokens: float) -> float:
        """Returns the FLOPs of a training step.

        Args:
            table: counts on the decoder's parameters.
            parameter: path of the table below the decoder.
            tokens: soft tokens of the step.
        """
        if self.kind == "straight_through":  # one product, and none backwards
            return 2.0 * table.sizes[f"{table.name}/{parameter}"] * tokens
        return 2 * table.matmul(parameter, tokens)  # logits, and the mean of the rows


@flax.struct.dataclass
class _Running:
    """What is known of each soft token after some chunks of the table."""

    highest: Float[Array, "B L"]
    best: Int[Array, "B L"]  # id of the row with the highest logit
    exp_sum: Float[Array, "B L"]  # of exp(logit - highest)
    mixture: Float[Array, "B L D"]  # rows, weighted by exp(logit - highest)


def quantize(
    config: WordQuantizationConfig,
    soft: Float[Array, "B L D"],
    decoder: "Decoder",
    media: Array,
    step: Int[Array, ""] | None = None,
) -> Float[Array, "B L D"]:
    """Returns soft tokens as words, in the decoder's dtype.

    Args:
        config: how.
        soft: what the adapter made.
        decoder: the bound module that has the table.
        media: pixels of the rows, [B, ...], from which the noise follows.
        step: of the training; None outside of it.
    """
    dtype = jnp.dtype(decoder.config.dtype)
    keys = _keys(config.seed, step, media) if config.kind == "gumbel" and step is not None else None
    mixes = config.kind == "softmax" or keys is not None
    running = _scan(soft, decoder.word_table(), config.vocab_chunk, config.temperature_at(step), keys, mixes)
    if mixes:
        mixture = decoder.scaled((running.mixture / running.exp_sum[..., None]).astype(dtype))
        mixture = constrain(mixture, "batch", "length", "activation_embed")
        if config.kind == "softmax":
            return mixture
    word = jax.lax.stop_gradient(decoder.embed(constrain(running.best, "batch", "length")))
    follows = mixture if mixes else soft.astype(dtype)
    return word + (follows - jax.lax.stop_gradient(follows))  # the word to the last bit, with the other's gradient


def nearest(
    soft: Float[Array, "B L D"], table: Float[Array, "V D"], count: int, vocab_chunk: int | None = VOCAB_CHUNK
) -> tuple[Int[Array, "B L count"], Float[Array, "B L count"]]:
    """Finds the nearest words of soft tokens.

    Args:
        soft: soft tokens.
        table: of text embeddings; its scale does not matter.
        count: words of each, 1 to V.
        vocab_chunk: rows of the table at a time.

    Returns:
        Ids, the nearest first, and their cosine similarities in f32.

    Raises:
        UserError: `count` is not one of these.
    """
    if not 1 <= count <= table.shape[0]:
        raise UserError(f"Expected a count of 1 to {table.shape[0]} words, the decoder's table; found {count}.")
    soft = constrain(soft, "loss_batch", "length", "activation_embed")
    chunks, ids = vocab_chunks(table, vocab_chunk)

    def add(found: tuple[Array, Array], chunk: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        rows, ids = chunk
        cosines = jnp.where(ids < table.shape[0], _cosines(soft, rows), _LOWEST)
        values, at = jax.lax.top_k(cosines, min(count, len(ids)))
        values = jnp.concatenate([found[0], values], axis=-1)
        words = jnp.concatenate([found[1], ids[at]], axis=-1)
        values, at = jax.lax.top_k(values, count)
        return (values, jnp.take_along_axis(words, at, axis=-1)), None

    shape = (*soft.shape[:2], count)
    (values, words), _ = jax.lax.scan(add, (jnp.full(shape, _LOWEST), jnp.zeros(shape, jnp.int32)), (chunks, ids))
    return constrain(words, "batch", "length", None), constrain(values, "batch", "length", None)


def _cosines(soft: Float[Array, "B L D"], rows: Float[Array, "chunk D"]) -> Float[Array, "B L chunk"]:
    """Cosine similarities in f32. Lengths leave the product, not the vectors: those would be rounded once more."""
    product = jnp.einsum("bld,cd->blc", soft.astype(rows.dtype), rows, preferred_element_type=jnp.float32)
    product = constrain(product, "loss_batch", "length", "loss_vocab")
    return product * _inverse_length(soft)[..., None] * _inverse_length(rows)


def _inverse_length(x: Float[Array, "... D"]) -> Float[Array, "..."]:
    return jax.lax.rsqrt(jnp.square(x.astype(jnp.float32)).sum(axis=-1) + _TINY)


def _keys(seed: int, step: Int[Array, ""], media: Array) -> Array:
    root = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)
    return jax.vmap(lambda row: jax.random.fold_in(root, row))(hashes.of_pixels(media))


def _gumbel(keys: Array, chunk: Int[Array, ""], length: int, size: int) -> Float[Array, "B L chunk"]:
    # Rows of the chunk first: then the draws do not change where devices need more rows to fill the last chunk up.
    draw = lambda key: jax.random.gumbel(jax.random.fold_in(key, chunk), (size, length))  # noqa: E731
    return constrain(jax.vmap(draw)(keys).swapaxes(1, 2), "loss_batch", "length", "loss_vocab")


def _scan(
    soft: Float[Array, "B L D"],
    table: Float[Array, "V D"],
    vocab_chunk: int | None,
    temperature: Array | float,
    keys: Array | None,
    mixes: bool,
) -> _Running:
    """Goes through the table. Without `keys` there is no noise; unless it `mixes`, only `best` is of use."""
    vocab_size, width = table.shape
    soft = constrain(soft, "loss_batch", "length", "activation_embed")
    chunks, ids = vocab_chunks(table, vocab_chunk)

    def add(state: _Running, chunk: tuple[Array, Array, Array]) -> tuple[_Running, None]:
        number, rows, ids = chunk
        logits = math.sqrt(width) * _cosines(soft, rows)
        if keys is not None:
            logits = logits + _gumbel(keys, number, soft.shape[1], len(ids))
        logits = jnp.where(ids < vocab_size, logits / temperature, _LOWEST)
        # The highest logit only keeps exp() in range, and chooses the word: no gradient goes through it.
        fixed = jax.lax.stop_gradient(logits)
        top = jnp.max(fixed, axis=-1)
        # Not where `fixed == top`: XLA may compute the logits twice, and round them differently.
        best = ids[jnp.argmax(fixed, axis=-1)]
        better = (top > state.highest) | ((top == state.highest) & (best < state.best))
        highest = jnp.maximum(state.highest, top)
        sums = _mixed(state, logits, highest, rows) if mixes else {}
        return dataclasses.replace(state, best=jnp.where(better, best, state.best), highest=highest, **sums), None

    shape = soft.shape[:2]
    start = _Running(
        highest=jnp.full(shape, _LOWEST, jnp.float32),
        best=jnp.full(shape, vocab_size, jnp.int32),
        exp_sum=jnp.zeros(shape, jnp.float32),
        mixture=jnp.zeros((*shape, width if mixes else 0), jnp.float32),
    )
    numbers = jnp.arange(len(chunks))
    if len(chunks) == 1:
        return add(start, (numbers[0], chunks[0], ids[0]))[0]
    return jax.lax.scan(jax.checkpoint(add), start, (numbers, chunks, ids))[0]


def _mixed(state: _Running, logits: Array, highest: Array, rows: Array) -> dict[str, Array]:
    """The sums of the softmax with another chunk."""
    shrink = jnp.exp(state.highest - highest)
    weights = jnp.exp(logits - highest[..., None])
    mean = jnp.einsum("blc,cd->bld", weights.astype(rows.dtype), rows, preferred_element_type=jnp.float32)
    mean = constrain(mean, "loss_batch", "length", "activation_embed")
    return {
        "exp_sum": state.exp_sum * shrink + weights.sum(axis=-1),
        "mixture": state.mixture * shrink[..., None] + mean,
    }
