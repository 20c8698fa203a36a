"""The running batch of continuous decoding, and the compiled parts that change it."""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base.array_types import Array, Bool, Float, Int, PyTree
from vadapter.base.batch import Batch
from vadapter.generation import drafts
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
        history: what drafts are looked up in; of no slots where there are none.
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
    history: drafts.History


class Programs:
    """The compiled parts: reading a prompt into a row, and going on with all rows."""

    def __init__(self, model: VLM, config: DecodingConfig, end_ids: EndIds, size: int, slots: int):
        drafts.check(model.config, config)
        self._model, self._config, self._end_ids = model, config, end_ids
        self.num_words = drafts.num_words(model.config, config)
        self._slots = slots if config.draft else 0
        self._size = size + config.guessed  # a draft may reach beyond the last token
        self.admit = jax.jit(self._admit, donate_argnums=1)
        self.advance = jax.jit(self.go_on, donate_argnums=1)
        self._key = jax.jit(row_keys)
        # One program each: a leaf at a time they would be a dozen, which a process that says one text waits for.
        self.empty = jax.jit(self._empty, static_argnums=0)
        self._one_key = jax.jit(lambda: _keys(1))

    def key(self, prompt: Batch, choice: Choice) -> Array:
        """The random key of a row; all alike where nothing is drawn."""
        if choice.temperature == 0:
            return self._one_key()
        length = prompt.tokens.shape[1]
        pad = [(0, 0), (0, bucket(length) - length)]
        padded = prompt.replace(**{name: np.pad(getattr(prompt, name), pad) for name in SLOTS})
        return self._key(padded, np.uint32(choice.seed))

    @functools.cached_property
    def nothing(self) -> KVCache:
        """The cache of one row that has read nothing."""
        return jax.jit(self._empty_cache, static_argnums=0)(1)

    def _empty(self, rows: int) -> Rows:
        """Rows that are all free."""
        return Rows(
            cache=self._empty_cache(rows).replace(length=jnp.zeros((rows,), jnp.int32)),
            token=jnp.zeros((rows,), jnp.int32),
            ids=jnp.full((rows, self._config.max_new_tokens), EMPTY, jnp.int32),
            count=jnp.zeros((rows,), jnp.int32),
            limit=jnp.zeros((rows,), jnp.int32),
            keys=_keys(rows),
            temperature=jnp.zeros((rows,), jnp.float32),
            top_p=jnp.ones((rows,), jnp.float32),
            ended=jnp.ones((rows,), bool),
            history=self.history(np.full((rows, self._slots), EMPTY), jnp.zeros((rows,), jnp.int32)),
        )

    def text(self, prompt: Batch) -> np.ndarray:
        """What drafts look up of a prompt on the host; nothing where there are no drafts."""
        found = np.full((1, self._slots), EMPTY, np.int32)
        found[:, : prompt.tokens.shape[1]] = drafts.text(prompt)[:, : self._slots]
        return found

    def history(self, prompts: Array | np.ndarray, lengths: Array) -> drafts.History:
        """What drafts look up of rows that have nothing but their prompt, see `drafts.start`."""
        room = self._config.max_new_tokens if self._config.draft else 0
        return drafts.start(jnp.asarray(prompts), lengths, self.num_words, room)

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
        text: Array,
        words: Array,
    ) -> tuple[Rows, KVCache, Array]:
        """Reads the rest of one prompt after the `cache.length` slots that the cache has of it.

        `words` are those about its picture, where that was read before.
        """
        before = cache.length
        known = jnp.arange(self._size) < before
        cache = cache.replace(segment_ids=jnp.where(known, cache.segment_ids, 0))
        length = (batch.segment_ids > 0).sum()

        def read(model: VLM) -> tuple[Array, KVCache, Array]:
            rest, said = batch, words
            if self.num_words and batch.media.shape[1]:
                rest, said = drafts.words_of(model, batch)
            hidden, read = model.decoder(model.embed(rest), rest.segment_ids, rest.positions, cache)
            assert read is not None
            last = jax.lax.dynamic_slice_in_dim(hidden, length - 1, 1, axis=1)
            return model.decoder.logits(last), read, said

        logits, cache, words = self._model.apply({"params": params}, method=read)  # type: ignore[misc]
        one = self.entered(
            cache.replace(length=(before + length)[None]),
            logits,
            self.history(text, (before + length)[None]),
            words,
            limit=jnp.asarray(limit, jnp.int32)[None],
            keys=key,
            temperature=jnp.asarray(temperature, jnp.float32)[None],
            top_p=jnp.asarray(top_p, jnp.float32)[None],
            ended=jnp.zeros((1,), bool),
        )

        def put(path: Any, old: Array, new: Array) -> Array:
            stacked = path[-1].name in ("key", "value")  # layers before rows
            return jax.lax.dynamic_update_slice_in_dim(old, new, place, axis=1 if stacked else 0)

        return jax.tree_util.tree_map_with_path(put, rows, one), cache, words

    def entered(
        self, cache: KVCache, logits: Float[Array, "B 1 V"], history: drafts.History, words: Array, **settings: Array
    ) -> Rows:
        """Rows whose prompts were read, with their first token.

        Args:
            cache: has the prompts; its length is of each row.
            logits: of the first token.
            history: has the prompts.
            words: about the picture of each row; of no width where none are looked up.
            settings: other leaves of `Rows`.
        """
        count = jnp.zeros_like(cache.length)
        rows = Rows(
            cache=cache,
            token=count,
            ids=jnp.full((len(count), self._config.max_new_tokens), EMPTY, jnp.int32),
            count=count,
            history=drafts.say(history, words, self._end_ids) if self.num_words else history,
            **settings,
        )
        return self._enter(rows, self._choose(rows, logits), jnp.ones_like(count))

    def _enter(self, rows: Rows, chosen: Int[Array, "B T"], count: Int[Array, " B"]) -> Rows:
        """Takes the first `count` tokens of each running row, up to an end token and the limit."""
        place = jnp.arange(chosen.shape[1])
        count = jnp.minimum(count, rows.limit - rows.count)
        at_end = is_end(chosen, self._end_ids) & (place < count[:, None])
        ends = at_end.any(axis=1)
        count = jnp.where(ends, jnp.argmax(at_end, axis=1) + 1, count)
        count = jnp.where(rows.ended, 0, count)
        kept = count - (ends & ~rows.ended)
        total = rows.count + count
        ended = rows.ended | ends | (total >= rows.limit)
        last = jnp.take_along_axis(chosen, jnp.maximum(count - 1, 0)[:, None], axis=1)[:, 0]
        return rows.replace(
            token=jnp.where(ended, 0, last),
            ids=drafts.put(rows.ids, chosen, rows.count, kept),
            count=total,
            ended=ended,
            history=rows.history.add(chosen, kept),
        )

    def _choose(self, rows: Rows, logits: Float[Array, "B T V"]) -> Int[Array, "B T"]:
        """The token that each row takes after each that was read."""
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        if self._config.method != "sample":
            return token
        drawn = rows.temperature > 0
        return jax.lax.cond(
            (~rows.ended & drawn).any(),
            lambda: jnp.where(drawn[:, None], self._draw(rows, logits), token),
            lambda: token,
        )

    def _draw(self, rows: Rows, logits: Float[Array, "B T V"]) -> Int[Array, "B T"]:
        def draw(key: Array, row: Array, step: Array, temperature: Array, top_p: Array) -> Array:
            some = jnp.where(temperature > 0, temperature, 1)
            return sample(key[None], row[None], step, self._config, temperature=some, top_p=top_p)[0]

        # A token's draw depends on its number alone: a draft is kept as far as it says what would be drawn anyway.
        steps = rows.count[:, None] + jnp.arange(logits.shape[1])
        tokens = jax.vmap(draw, in_axes=(None, 0, 0, None, None))
        return jax.vmap(tokens)(rows.keys, logits, steps, rows.temperature, rows.top_p).astype(jnp.int32)

    def go_on(self, params: PyTree, rows: Rows, steps: Array | int, waiting: Array | bool) -> tuple[Rows, Array]:
        """Goes on for some steps; where others wait, only until a row ends. Returns the number of steps as well."""

        def more(state: tuple[Array, Rows]) -> Array:
            step, now = state
            return (step < steps) & ~now.ended.all() & ~(waiting & (now.ended & ~rows.ended).any())

        def step_once(state: tuple[Array, Rows]) -> tuple[Array, Rows]:
            step, now = state
            # A row that has ended writes to its first slots over and over: its slots must not run out.
            cache = now.cache.replace(length=jnp.where(now.ended, 0, now.cache.length))
            return step + 1, self._step(params, now.replace(cache=cache))

        start = jnp.zeros((), jnp.int32)
        step, rows = jax.lax.while_loop(more, step_once, (start, rows))
        return rows, step

    def _step(self, params: PyTree, rows: Rows) -> Rows:
        if not self._config.guessed:
            return self._read(params, rows, jnp.zeros((len(rows.count), 0), jnp.int32))
        draft = drafts.guess(rows.history, self._config.guessed, self.num_words)
        # A step without any guess reads one token, as if there were no drafts.
        some = ((draft[:, 0] >= 0) & ~rows.ended).any()
        return jax.lax.cond(
            some, lambda: self._read(params, rows, draft), lambda: self._read(params, rows, draft[:, :0])
        )

    def _read(self, params: PyTree, rows: Rows, draft: Int[Array, "B k"]) -> Rows:
        """Reads each row's last token and its draft, and takes what the model says to them."""
        start = rows.cache.length
        tokens = jnp.concatenate([rows.token[:, None], jnp.maximum(draft, 0)], axis=1)
        positions = start[:, None] + jnp.arange(tokens.shape[1])
        logits, cache = self._model.apply({"params": params}, tokens, positions, rows.cache, method="verify")  # type: ignore[misc]
        chosen = self._choose(rows, logits)
        entered = self._enter(rows, chosen, 1 + drafts.agreed(draft, chosen))
        if draft.shape[1]:
            cache = cache.cut(start + entered.count - rows.count)
        return entered.replace(cache=cache)


def _keys(rows: int) -> Array:
    """Keys of rows that draw nothing."""
    return jax.random.split(jax.random.key(0, impl="threefry2x32"), rows)
