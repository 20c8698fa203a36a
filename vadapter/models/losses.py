"""Cross-entropy over a vocabulary, in chunks if asked, and over label groups."""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, Float, Int
from vadapter.base.errors import UserError
from vadapter.partitioning import constrain, ways

_LOWEST = -1e30  # stands for -inf, whose differences would be NaN


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of the language-modelling loss; see `cross_entropy`.

    Attributes:
        z_loss: factor of the squared log-partition; 0 is off, 1e-4 is PaLM's.
        vocab_chunk: rows of the vocabulary head at a time; None takes all at once.
        tiny_loss: factor of the loss that the tiny LM in the adapter keeps from stage 1: it reads each row too, in its
            own ids (`Experiment.tiny_lm`). It is minimised beside the decoder's, and shown by itself. 0 is none.

    Raises:
        UserError: `tiny_loss` is below 0.
    """

    z_loss: float = 0.0
    vocab_chunk: int | None = None
    tiny_loss: float = 0.0

    def __post_init__(self) -> None:
        if not self.tiny_loss >= 0:
            raise UserError(f"ObjectiveConfig.tiny_loss is {self.tiny_loss}; expected a factor, or 0 for no such loss.")


@flax.struct.dataclass
class LossSums:
    """Sums over the targets of a batch. Sums, not means: those of parts of a batch add up to those of the whole.

    Attributes:
        loss_sum: weighted cross-entropy in nats, without the z-loss.
        weight_sum: the weights.
        correct_sum: the weights of the targets that have the highest logit.
        z_sum: the weighted z-loss, its factor included.
        tiny_sum: the tiny LM's own loss, its factor included; None where there is none (`ObjectiveConfig.tiny_loss`).
    """

    loss_sum: Float[Array, ""]
    weight_sum: Float[Array, ""]
    correct_sum: Float[Array, ""]
    z_sum: Float[Array, ""]
    tiny_sum: Float[Array, ""] | None = None

    @property
    def minimised_sum(self) -> Float[Array, ""]:
        """What is minimised, times `weight_sum`."""
        total = self.loss_sum + self.z_sum
        return total if self.tiny_sum is None else total + self.tiny_sum


@flax.struct.dataclass
class _Running:
    """What is known of each target's softmax after some chunks of the vocabulary."""

    highest: Float[Array, "B L"]
    best: Int[Array, "B L"]  # the id with the highest logit; the lowest such id
    exp_sum: Float[Array, "B L"]  # of exp(logit - highest)
    target: Float[Array, "B L"]  # logit of the target


def _add_chunk(
    state: _Running,
    hidden: Float[Array, "B L D"],
    table: Float[Array, "chunk D"],
    ids: Int[Array, " chunk"],
    targets: Int[Array, "B L"],
    vocab_size: int,
    multiplier: float,
    softcap: float | None,
) -> _Running:
    logits = jnp.einsum("bld,cd->blc", hidden, table.astype(hidden.dtype), preferred_element_type=jnp.float32)
    logits = constrain(logits, "loss_batch", "length", "loss_vocab")
    if multiplier != 1:
        logits = logits * multiplier
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    logits = jnp.where(ids < vocab_size, logits, _LOWEST)
    target = jnp.sum(jnp.where(ids == targets[..., None], logits, 0.0), axis=-1)
    # The highest logit only keeps exp() in range; it drops out of the log-sum-exp, so no gradient goes through it.
    fixed = jax.lax.stop_gradient(logits)
    top = jnp.max(fixed, axis=-1)
    best = jnp.min(jnp.where(fixed == top[..., None], ids, vocab_size), axis=-1)
    better = (top > state.highest) | ((top == state.highest) & (best < state.best))
    highest = jnp.maximum(state.highest, top)
    exp_sum = state.exp_sum * jnp.exp(state.highest - highest) + jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1)
    return _Running(highest, jnp.where(better, best, state.best), exp_sum, state.target + target)


def vocab_chunks(
    table: Float[Array, "V D"], vocab_chunk: int | None
) -> tuple[Float[Array, "chunks chunk D"], Int[Array, "chunks chunk"]]:
    """Cuts a vocabulary head into chunks that are equally large and split over the devices as the table is.

    Chunk i has the rows i, i + n, i + 2n, ... of n chunks, so that every device has its part of every chunk.

    Args:
        table: the vocabulary head.
        vocab_chunk: rows of a chunk, at most; None makes one chunk. V need not be a multiple.

    Returns:
        The chunks, and the ids of their rows. Ids of V and more are of rows that fill up the last ones.
    """
    vocab_size = table.shape[0]
    count = -(-vocab_size // min(vocab_chunk or vocab_size, vocab_size))
    devices = ways("loss_vocab")
    size = -(-vocab_size // (count * devices)) * devices
    padded = jnp.pad(table, ((0, count * size - vocab_size), (0, 0)))
    chunks = padded.reshape(size, count, -1).swapaxes(0, 1)
    return constrain(chunks, None, "loss_vocab", "activation_embed"), jnp.arange(count * size).reshape(size, count).T


def cross_entropy(
    hidden: Float[Array, "B L D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B L"],
    weights: Float[Array, "B L"],
    *,
    multiplier: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    vocab_chunk: int | None = None,
) -> LossSums:
    """Cross-entropy of `softmax(hidden @ table.T)` at the targets, accumulated in f32.

    With `vocab_chunk` no [B, L, V] array exists, forwards or backwards: the vocabulary is scanned, and the backward
    pass computes each chunk's logits again. Values and gradients equal those of the plain computation.

    Args:
        hidden: states that predict the targets; their dtype is that of the matrix product.
        table: the vocabulary head.
        targets: ids to predict.
        weights: weights of the targets.
        multiplier: factor on the logits, before they are capped (Granite).
        softcap: logits become `softcap * tanh(logits / softcap)` (Gemma 2).
        z_loss: factor of `logsumexp ** 2` (PaLM, section 5).
        vocab_chunk: rows of the table at a time; V need not be a multiple. None takes all at once.
    """
    vocab_size = table.shape[0]
    shape = targets.shape
    start = _Running(
        highest=jnp.full(shape, _LOWEST, jnp.float32),
        best=jnp.full(shape, vocab_size, jnp.int32),
        exp_sum=jnp.zeros(shape, jnp.float32),
        target=jnp.zeros(shape, jnp.float32),
    )
    # Each device has some rows of the vocabulary and the targets of all that share parameters: to gather the few hidden
    # states of the targets takes less than to gather the table, as fsdp would have it.
    hidden = constrain(hidden, "loss_batch", "length", "activation_embed")
    chunks, ids = vocab_chunks(table, vocab_chunk)
    if len(chunks) == 1:
        end = _add_chunk(start, hidden, chunks[0], ids[0], targets, vocab_size, multiplier, softcap)
    else:

        @jax.checkpoint
        def body(state: _Running, chunk: tuple[Array, Array]) -> tuple[_Running, None]:
            return _add_chunk(state, hidden, *chunk, targets, vocab_size, multiplier, softcap), None

        end, _ = jax.lax.scan(body, start, (chunks, ids))
    log_z = end.highest + jnp.log(end.exp_sum)
    return _sums(log_z - end.target, end.best == targets, z_loss * log_z**2, weights)


def label_cross_entropy(
    logits: Sequence[Float[Array, "B classes"]], labels: Int[Array, "B G"], weights: Float[Array, " B"]
) -> LossSums:
    """Cross-entropy of several label groups; the mean over the labels that are there.

    Args:
        logits: one array a group.
        labels: a class a group; -1 is "no label" and carries no loss.
        weights: weights of the rows.
    """
    losses, correct = [], []
    for group, group_logits in enumerate(logits):
        group_logits = group_logits.astype(jnp.float32)
        label = jnp.maximum(labels[:, group], 0)
        target = jnp.take_along_axis(group_logits, label[:, None], axis=-1)[:, 0]
        losses.append(jax.nn.logsumexp(group_logits, axis=-1) - target)
        correct.append(jnp.argmax(group_logits, axis=-1) == label)
    weights = weights[:, None] * (labels >= 0)
    return _sums(jnp.stack(losses, axis=1), jnp.stack(correct, axis=1), jnp.zeros(labels.shape), weights)


def _sums(losses: Array, correct: Array, z: Array, weights: Array) -> LossSums:
    weights = weights.astype(jnp.float32)
    return LossSums(
        loss_sum=jnp.sum(losses * weights),
        weight_sum=jnp.sum(weights),
        correct_sum=jnp.sum(correct * weights),
        z_sum=jnp.sum(z * weights),
    )
