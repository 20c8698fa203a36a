"""Greedy decoding on device, with the KV cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vadapter.array_types import Array, Int, PyTree
from vadapter.batch import Batch
from vadapter.models.vlm import VLM
from vadapter.partitioning import Partitioner

EMPTY = -1  # no token has it; 0 is a word in some vocabularies


def greedy(
    model: VLM, params: PyTree, batch: Batch, *, max_new_tokens: int, eos_id: int
) -> Int[Array, "B max_new_tokens"]:
    """Continues each row's prompt with the most likely token until the end token or the limit.

    One prefill, then one token of every row a step; it stops as soon as every row has ended.

    Args:
        model: the VLM.
        params: its whole parameters.
        batch: rows that end with their prompt. Rows of padding alone end at once.
        max_new_tokens: limit on the new tokens, the end token included.
        eos_id: id of the end token.

    Returns:
        New ids of each row; `EMPTY` from the end token on.
    """
    rows = batch.tokens.shape[0]
    lengths = (batch.segment_ids > 0).sum(axis=1)
    logits, cache = model.apply({"params": params}, batch, max_new_tokens, method="prefill")
    out = jnp.full((rows, max_new_tokens), EMPTY, jnp.int32)

    def more(state: tuple) -> Array:
        step, *_, ended = state
        return (step < max_new_tokens) & ~ended.all()

    def step_once(state: tuple) -> tuple:
        step, logits, cache, out, ended = state
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        ended = ended | (token == eos_id)
        out = jax.lax.dynamic_update_slice(out, jnp.where(ended, EMPTY, token)[:, None], (0, step))
        token = jnp.where(ended, 0, token)
        logits, cache = model.apply({"params": params}, token, lengths + step, cache, method="extend")
        return step + 1, logits, cache, out, ended

    state = (jnp.zeros((), jnp.int32), logits, cache, out, lengths == 0)
    return jax.lax.while_loop(more, step_once, state)[3]


def make_generate(
    model: VLM, partitioner: Partitioner, *, max_new_tokens: int, eos_id: int
) -> Callable[[PyTree, Batch], Array]:
    """Compiles `greedy` for a mesh.

    Args:
        model: the VLM.
        partitioner: places the activations.
        max_new_tokens: see `greedy`.
        eos_id: see `greedy`.

    Returns:
        A function of (parameters, device batch) that gives ids `[B, max_new_tokens]`, replicated over the mesh.
    """
    run = jax.jit(
        lambda params, batch: greedy(model, params, batch, max_new_tokens=max_new_tokens, eos_id=eos_id),
        out_shardings=partitioner.replicated,
    )

    def generate(params: PyTree, batch: Batch) -> Array:
        with partitioner.activate():
            return run(params, batch)

    return generate
