"""The running batch of continuous decoding, and the compiled parts that change it."""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base.array_types import Array, Bool, Float, Int, PyTree
from vadapter.base.batch import Batch
from vadapter.generation.config import EMPTY, DecodingConfig, EndIds, is_end
from vadapter.generation.sampling import row_keys, sample
from vadapter.models.kv_cache import KVCache
from vadapter.models.vlm import VLM

SHORTEST = 16  # slots of the smallest bucket, and the shortest start of a prompt that is worth keeping
SLOTS = ("tokens", "segment_ids", "positions", "media_index")  # leaves of a batch that have a value a slot


def bucket(length: int) -> int:
    """Returns the slots that a prompt of a length is read in: 16, 24, 32, 48, 64, 96, ...; at most half as many again.

    Prompts of one bucket share a compiled program.
    """
    size = SHORTEST
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


class Choice(NamedTuple):
    """How the tokens of one request are chosen.

    Attributes:
        temperature: as of `DecodingConfig`; 0 takes the most likely token.
        top_p: as of `DecodingConfig`.
        seed: as of `DecodingConfig`.
    """

    temperature: float
    top_p: float
    seed: int


@flax.struct.dataclass
class Rows:
    """The running batch on the device.

    Attributes:
        cache: of all rows; each has a length of its own.
        token: that is read next.
        ids: new tokens so far, `EMPTY` after them.
        count: new tokens so far, the end token included.
        limit: on `count`.
        keys: random key of each row.
        temperature: of each row; 0 is greedy.
        top_p: of each row.
        ended: rows that have ended, or are free.
    """

    cache: KVCache
    token: Int[Array, " B"]
    ids: Int[Array, "B max_new_tokens"]
    count: Int[Array, " B"]
    limit: Int[Array, " B"]
    keys: Array
    temperature: Float[Array, " B"]
    top_p: Float[Array, " B"]
    ended: Bool[Array, " B"]


class Programs:
    """The compiled parts: reading a prompt into a row, and going on with all rows."""

    def __init__(self, model: VLM, config: DecodingConfig, end_ids: EndIds, size: int):
        self._model, self._config, self._end_ids, self._size = model, config, end_ids, size
        self.admit = jax.jit(self._admit, donate_argnums=1)
        self.advance = jax.jit(self._advance, donate_argnums=1)
        self._key = jax.jit(row_keys)

    def key(self, prompt: Batch, choice: Choice) -> Array:
        """The random key of a row; all alike where nothing is drawn."""
        if choice.temperature == 0:
            return jax.random.split(jax.random.key(0, impl="threefry2x32"), 1)
        length = prompt.tokens.shape[1]
        pad = [(0, 0), (0, bucket(length) - length)]
        padded = prompt.replace(**{name: np.pad(getattr(prompt, name), pad) for name in SLOTS})
        return self._key(padded, np.uint32(choice.seed))

    @functools.cached_property
    def nothing(self) -> KVCache:
        """The cache of one row that has read nothing."""
        return self._empty_cache(1)

    def empty(self, rows: int) -> Rows:
        """Rows that are all free."""
        cache = self._empty_cache(rows)
        # Every leaf is an array of its own, since all of them are donated.
        return Rows(
            cache=jax.tree.map(jnp.copy, cache.replace(length=jnp.zeros((rows,), jnp.int32))),
            token=jnp.zeros((rows,), jnp.int32),
            ids=jnp.full((rows, self._config.max_new_tokens), EMPTY, jnp.int32),
            count=jnp.zeros((rows,), jnp.int32),
            limit=jnp.zeros((rows,), jnp.int32),
            keys=jax.random.split(jax.random.key(0, impl="threefry2x32"), rows),
            temperature=jnp.zeros((rows,), jnp.float32),
            top_p=jnp.ones((rows,), jnp.float32),
            ended=jnp.ones((rows,), bool),
        )

    def _empty_cache(self, rows: int) -> KVCache:
        return self._model.apply({}, rows, self._size, method=lambda m, *sizes: m.decoder.empty_cache(*sizes))  # type: ignore[return-value]

    def _admit(
        self,
        params: PyTree,
        rows: Rows,
        batch: Batch,
        cache: KVCache,
        place: Array,
        limit: Array,
        key: Array,
        temperature: Array,
        top_p: Array,
    ) -> tuple[Rows, KVCache]:
        """Reads the rest of one prompt after the `cache.length` slots that the cache has of it."""
        before = cache.length
        known = jnp.arange(self._size) < before
        cache = cache.replace(segment_ids=jnp.where(known, cache.segment_ids, 0))
        length = (batch.segment_ids > 0).sum()

        def read(model: VLM) -> tuple[Array, KVCache]:
            hidden, read = model.decoder(model.embed(batch), batch.segment_ids, batch.positions, cache)
            assert read is not None
            last = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
            return model.decoder.logits(last)[:, 0], read

        logits, cache = self._model.apply({"params": params}, method=read)  # type: ignore[misc]
        one = Rows(
            cache=cache.replace(length=(before + length)[None]),
            token=jnp.zeros((1,), jnp.int32),
            ids=jnp.full((1, self._config.max_new_tokens), EMPTY, jnp.int32),
            count=jnp.zeros((1,), jnp.int32),
            limit=jnp.asarray(limit, jnp.int32)[None],
            keys=key,
            temperature=jnp.asarray(temperature, jnp.float32)[None],
            top_p=jnp.asarray(top_p, jnp.float32)[None],
            ended=jnp.zeros((1,), bool),
        )
        one = self._enter(one, logits)

        def put(path: Any, old: Array, new: Array) -> Array:
            stacked = path[-1].name in ("key", "value")  # layers before rows
            return jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1 if stacked else 0)

        return jax.tree_util.tree_map_with_path(put, rows, one), cache

    def _enter(self, rows: Rows, logits: Float[Array, "B V"]) -> Rows:
        """Takes the next token of each running row."""
        running = ~rows.ended
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if self._config.method == "sample":
            drawn = rows.temperature > 0
            token = jax.lax.cond(
                (running & drawn).any(), lambda: jnp.where(drawn, self._draw(rows, logits), token), lambda: token
            )
        at_end = is_end(token, self._end_ids)
        here = (jnp.arange(rows.ids.shape[1]) == rows.count[:, None]) & (running & ~at_end)[:, None]
        count = rows.count + running
        return rows.replace(
            token=jnp.where(running & ~at_end, token, 0),
            ids=jnp.where(here, token[:, None], rows.ids),
            count=count,
            ended=rows.ended | at_end | (count >= rows.limit),
        )

    def _draw(self, rows: Rows, logits: Float[Array, "B V"]) -> Int[Array, " B"]:
        def draw(key: Array, row: Array, step: Array, temperature: Array, top_p: Array) -> Array:
            some = jnp.where(temperature > 0, temperature, 1)
            return sample(key[None], row[None], step, self._config, temperature=some, top_p=top_p)[0]

        return jax.vmap(draw)(rows.keys, logits, rows.count, rows.temperature, rows.top_p).astype(jnp.int32)

    def _advance(self, params: PyTree, rows: Rows, steps: Array, waiting: Array) -> Rows:
        """Goes on for some steps; where others wait, only until a row ends."""

        def more(state: tuple[Array, Rows]) -> Array:
            step, now = state
            return (step < steps) & ~now.ended.all() & ~(waiting & (now.ended & ~rows.ended).any())

        def step_once(state: tuple[Array, Rows]) -> tuple[Array, Rows]:
            step, now = state
            # A row that has ended writes to its first slot over and over: its slots must not run out.
            cache = now.cache.replace(length=jnp.where(now.ended, 0, now.cache.length))
            logits, read = self._model.apply({"params": params}, now.token, cache.length, cache, method="extend")  # type: ignore[misc]
            return step + 1, self._enter(now.replace(cache=read), logits)

        return jax.lax.while_loop(more, step_once, (jnp.zeros((), jnp.int32), rows))[1]
