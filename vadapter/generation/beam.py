"""Beam search on device, with the KV cache."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, Bool, Float, Int, PyTree
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.generation.config import EMPTY, Decoded, DecodingConfig, EndIds, is_end
from vadapter.generation.top_k import TopK
from vadapter.models.kv_cache import KVCache
from vadapter.models.vlm import VLM


@flax.struct.dataclass
class Search:
    """Running hypotheses of every row, the likeliest first, and the best ended one.

    Attributes:
        length: new tokens of the running hypotheses.
        ids: their tokens; `EMPTY` from `length` on.
        log_probs: their log-probabilities.
        parents: which of the hypotheses one token shorter each continues.
        best_ids: the ended hypothesis of the highest score.
        best_score: its log-probability over the length penalty; -inf while there is none.
        ended: hypotheses that have ended.
        done: rows whose result stands.
    """

    length: Int[Array, ""]
    ids: Int[Array, "B beams max_new_tokens"]
    log_probs: Float[Array, "B beams"]
    parents: Int[Array, "B beams"]
    best_ids: Int[Array, "B max_new_tokens"]
    best_score: Float[Array, " B"]
    ended: Int[Array, " B"]
    done: Bool[Array, " B"]


def beam_search(
    model: VLM, params: PyTree, batch: Batch, config: DecodingConfig, end_ids: EndIds, top_k: TopK = jax.lax.top_k
) -> Decoded:
    """Continues each row's prompt with the best text that a search of `config.beams` hypotheses finds.

    Each step ranks the continuations of a row's hypotheses by log-probability. An end token among the first `beams`
    of them ends a hypothesis; the first `beams` others run on. A row is done when `beams` hypotheses have ended, or
    when no running one can get a better score than the best ended one, whatever follows. It gives the ended
    hypothesis of the best score; where none has ended at the limit, the likeliest running one. One beam is greedy.

    The prompts are read once, for all the beams of a row. Beams lie beside each other on the batch axis, so that
    those of a row stay on its device.

    Args:
        model: the VLM.
        params: its whole parameters.
        batch: rows that end with their prompt. Rows of padding alone are empty.
        config: `beams`, `length_penalty` and `max_new_tokens` count.
        end_ids: ids of the end tokens: any of them ends a text.
        top_k: as `make_top_k` makes it for a mesh.

    Raises:
        UserError: a vocabulary too small for the beams.
    """
    rows, prompt = batch.tokens.shape
    lengths = (batch.segment_ids > 0).sum(axis=1)
    read: Any = model.apply({"params": params}, batch, config.max_new_tokens - 1, method="prefill")
    logits, cache = read
    if logits.shape[-1] < (needed := _candidates(config, end_ids)):
        raise UserError(
            f"DecodingConfig.beams is {config.beams}; with the model's end tokens ({len(end_ids)}) it needs a "
            f"vocabulary of {needed} tokens or more, and the model's has {logits.shape[-1]}. Use fewer beams."
        )
    search = Search(
        length=jnp.zeros((), jnp.int32),
        ids=jnp.full((rows, 1, config.max_new_tokens), EMPTY, jnp.int32),
        log_probs=jnp.zeros((rows, 1)),
        parents=jnp.zeros((rows, 1), jnp.int32),
        best_ids=jnp.full((rows, config.max_new_tokens), EMPTY, jnp.int32),
        best_score=jnp.full((rows,), -jnp.inf),
        ended=jnp.zeros((rows,), jnp.int32),
        done=lengths == 0,
    )
    search = advance(search, logits[:, None], config, end_ids, top_k)

    def more(state: tuple[Search, KVCache]) -> Array:
        return (state[0].length < config.max_new_tokens) & ~state[0].done.all()

    def step_once(state: tuple[Search, KVCache]) -> tuple[Search, Any]:
        search, cache = state
        last = jax.lax.dynamic_index_in_dim(search.ids, search.length - 1, axis=2, keepdims=False)
        positions = jnp.repeat(lengths, config.beams) + search.length - 1
        cache = cache.reorder(search.parents, first=prompt)
        logits, cache = model.apply({"params": params}, last.reshape(-1), positions, cache, method="extend")
        return advance(search, logits.reshape(rows, config.beams, -1), config, end_ids, top_k), cache

    search, _ = jax.lax.while_loop(more, step_once, (search, cache.repeat(config.beams)))
    ids = jnp.where(jnp.isfinite(search.best_score)[:, None], search.best_ids, search.ids[:, 0])
    return Decoded(jnp.where((lengths > 0)[:, None], ids, EMPTY), search.length - 1)


def advance(
    search: Search,
    logits: Float[Array, "B beams V"],
    config: DecodingConfig,
    end_ids: EndIds,
    top_k: TopK = jax.lax.top_k,
) -> Search:
    """Takes one more token.

    Args:
        search: of one hypothesis a row at the start, then of `beams`.
        logits: of the next token of each hypothesis.
        config: see `beam_search`.
        end_ids: see `beam_search`.
        top_k: see `beam_search`.
    """
    beams, length = config.beams, search.length + 1
    scores, tokens, parents = _likeliest(search.log_probs, logits, _candidates(config, end_ids), top_k)
    at_end = is_end(tokens, end_ids)

    ending = (at_end & jnp.isfinite(scores))[:, :beams]  # what is impossible does not end
    first = jnp.argmax(ending, axis=1)[:, None]  # of one length, the likeliest has the best score
    score = jnp.take_along_axis(scores, first, axis=1)[:, 0] / penalty(length, config)
    better = ending.any(axis=1) & (score > search.best_score) & ~search.done
    candidate = _of_parents(search.ids, jnp.take_along_axis(parents, first, axis=1))[:, 0]
    best_score = jnp.where(better, score, search.best_score)
    ended = search.ended + ending.sum(axis=1)

    running = jnp.argsort(at_end, axis=1, stable=True)[:, :beams]
    log_probs = jnp.take_along_axis(scores, running, axis=1)
    parents = jnp.take_along_axis(parents, running, axis=1)
    tokens = jnp.take_along_axis(tokens, running, axis=1)
    ids = jax.lax.dynamic_update_slice(
        _of_parents(search.ids, parents),
        tokens[:, :, None],
        (jnp.zeros_like(length), jnp.zeros_like(length), length - 1),
    )
    # More tokens only lower the log-probability, and no penalty divides it by more than that of the longest text.
    hopeless = log_probs[:, 0] / penalty(config.max_new_tokens, config) <= best_score
    return Search(
        length=length,
        ids=ids,
        log_probs=log_probs,
        parents=parents,
        best_ids=jnp.where(better[:, None], candidate, search.best_ids),
        best_score=best_score,
        ended=ended,
        done=search.done | (ended >= beams) | hopeless,
    )


def _candidates(config: DecodingConfig, end_ids: EndIds) -> int:
    """How many continuations of a row are looked at: so many that `beams` of them run on, whatever ends."""
    return config.beams * max(2, 1 + len(end_ids))


def penalty(length: Int[Array, ""] | int, config: DecodingConfig) -> Array:
    """Returns what divides the log-probability of a hypothesis of `length` new tokens, the end token included."""
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** config.length_penalty


def _likeliest(
    log_probs: Float[Array, "B beams"], logits: Float[Array, "B beams V"], count: int, top_k: TopK
) -> tuple[Float[Array, "B count"], Int[Array, "B count"], Int[Array, "B count"]]:
    """Returns log-probability, token and parent of a row's likeliest continuations, in order."""
    top, tokens = top_k(logits, count)
    top = top - jax.nn.logsumexp(logits, axis=-1, keepdims=True) + log_probs[:, :, None]
    scores = top.reshape(top.shape[0], -1)
    at = jnp.argsort(scores, axis=1, stable=True, descending=True)[:, :count]
    scores, tokens = (jnp.take_along_axis(x.reshape(scores.shape), at, axis=1) for x in (scores, tokens))
    return scores, tokens, (at // count).astype(jnp.int32)


def _of_parents(ids: Int[Array, "B beams L"], parents: Int[Array, "B n"]) -> Int[Array, "B n L"]:
    return jnp.take_along_axis(ids, parents[:, :, None], axis=1)
