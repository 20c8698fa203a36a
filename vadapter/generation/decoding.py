"""Text generation on device, with the KV cache: greedy, sampling and beam search."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, Float, Int, PyTree
from vadapter.base.batch import Batch
from vadapter.generation import drafts
from vadapter.generation.beam import beam_search
from vadapter.generation.config import EMPTY, Decoded, DecodingConfig, EndIds, is_end
from vadapter.generation.rows import Programs
from vadapter.generation.sampling import row_keys, sample
from vadapter.generation.top_k import TopK, make_top_k
from vadapter.models.kv_cache import KVCache
from vadapter.models.vlm import VLM
from vadapter.partitioning import Partitioner

__all__ = ["EMPTY", "Decoded", "DecodingConfig", "decode", "make_generate"]

Choose = Callable[[Float[Array, "B V"], Int[Array, ""]], Int[Array, " B"]]


def decode(
    model: VLM, params: PyTree, batch: Batch, config: DecodingConfig, end_ids: EndIds, top_k: TopK = jax.lax.top_k
) -> Decoded:
    """Continues each row's prompt until an end token or the limit; stops as soon as every row has ended.

    Args:
        model: the VLM.
        params: its whole parameters.
        batch: rows that end with their prompt. Rows of padding alone end at once.
        config: the method and its settings.
        end_ids: ids of the end tokens: any of them ends a text.
        top_k: as `make_top_k` makes it for a mesh.

    Raises:
        UserError: a vocabulary too small for the beams.
    """
    if config.method == "beam":
        return beam_search(model, params, batch, config, end_ids, top_k)
    if config.draft is not None:
        return with_drafts(model, params, batch, config, end_ids)
    if config.method == "greedy":
        return one_by_one(model, params, batch, config, end_ids, lambda logits, _: jnp.argmax(logits, axis=-1))
    keys = row_keys(batch, config.seed)
    draw = functools.partial(sample, keys, config=config, find=top_k)
    return one_by_one(model, params, batch, config, end_ids, draw)


def one_by_one(
    model: VLM, params: PyTree, batch: Batch, config: DecodingConfig, end_ids: EndIds, choose: Choose
) -> Decoded:
    """Continues each row by the token that `choose` gives for (logits, new tokens before it).

    One prefill, then one token of every row a step.
    """
    rows = batch.tokens.shape[0]
    lengths = (batch.segment_ids > 0).sum(axis=1)
    logits, cache = model.apply({"params": params}, batch, config.max_new_tokens - 1, method="prefill")
    empty = jnp.full((rows, config.max_new_tokens), EMPTY, jnp.int32)

    def enter(logits: Array, step: Array, ids: Array, ended: Array) -> tuple[Array, Array, Array]:
        token = choose(logits, step).astype(jnp.int32)
        ended = ended | is_end(token, end_ids)
        ids = jax.lax.dynamic_update_slice(ids, jnp.where(ended, EMPTY, token)[:, None], (jnp.zeros_like(step), step))
        return jnp.where(ended, 0, token), ids, ended

    def more(state: tuple) -> Array:
        step, _, _, ended, _ = state
        return (step < config.max_new_tokens - 1) & ~ended.all()

    def step_once(state: tuple) -> tuple:
        step, token, ids, ended, cache = state
        logits, cache = model.apply({"params": params}, token, lengths + step, cache, method="extend")
        return step + 1, *enter(logits, step + 1, ids, ended), cache

    start = jnp.zeros((), jnp.int32)
    steps, _, ids, _, _ = jax.lax.while_loop(
        more, step_once, (start, *enter(logits, start, empty, lengths == 0), cache)
    )
    return Decoded(ids, steps)


def with_drafts(model: VLM, params: PyTree, batch: Batch, config: DecodingConfig, end_ids: EndIds) -> Decoded:
    """Continues each row's prompt with drafts: each row takes as many tokens a step as it agrees to.

    Raises:
        UserError: as `drafts.check`.
    """
    rows, slots = batch.tokens.shape
    lengths = (batch.segment_ids > 0).sum(axis=1)
    programs = Programs(model, config, end_ids, slots + config.max_new_tokens, slots)

    def read(model: VLM) -> tuple[Array, KVCache, Array]:
        given, words = batch, jnp.full((rows, programs.num_words), EMPTY, jnp.int32)
        if programs.num_words and batch.media.shape[1]:
            given, words = drafts.words_of(model, batch)
        return *model.prefill(given, config.max_new_tokens + config.guessed), words

    logits, cache, words = model.apply({"params": params}, method=read)  # type: ignore[misc]
    start = programs.entered(
        cache.cut(lengths),
        logits[:, None],
        programs.history(drafts.text(batch), lengths),
        words,
        limit=jnp.full((rows,), config.max_new_tokens, jnp.int32),
        keys=row_keys(batch, config.seed) if config.method == "sample" else lengths,  # which nobody asks then
        temperature=jnp.full((rows,), config.temperature),
        top_p=jnp.full((rows,), config.top_p),
        ended=lengths == 0,
    )
    found, steps = programs.go_on(params, start, config.max_new_tokens, False)
    return Decoded(found.ids, steps)


def make_generate(
    model: VLM,
    partitioner: Partitioner,
    config: DecodingConfig | None = None,
    *,
    end_ids: Sequence[int],
) -> Callable[[PyTree, Batch], Int[Array, "B max_new_tokens"]]:
    """Compiles `decode` for a mesh, once for each shape of a batch.

    Args:
        model: the VLM.
        partitioner: places the activations.
        config: how texts are chosen; default greedy.
        end_ids: ids of the end tokens: any of them ends a text. With `()` every text goes on to the limit.

    Returns:
        A function of (parameters, device batch) that gives ids `[B, max_new_tokens]`, `EMPTY` from an end token on.
        They are sharded like the batch, so that each process has those of its own rows.

    Raises:
        UserError: the model cannot give the drafts (`vadapter.generation.drafts.check`).
    """
    settings = config or DecodingConfig()
    drafts.check(model.config, settings)
    top_k = make_top_k(partitioner)
    run = jax.jit(
        lambda params, batch: decode(model, params, batch, settings, end_ids, top_k).ids,
        out_shardings=partitioner.batch_sharding,
    )

    def generate(params: PyTree, batch: Batch) -> Array:
        with partitioner.activate():
            return run(params, batch)

    return generate
