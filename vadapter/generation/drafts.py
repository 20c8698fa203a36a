"""Drafts: a guess how each row goes on, which the model checks in one call (speculative decoding).

A step reads the last token of a row and its draft at once. Of the draft it keeps what the model would have chosen
itself, token for token, and then takes one more token of the model's own choice: a step gives 1 to k + 1 tokens, and
the text is the one without a draft. A draft that is wrong costs time, never a word.

Drafts are found by looking up: where did the last tokens of this row stand before, and what came after them? That is
prompt lookup (Saxena 2023; the n-gram drafts of vLLM). Where an adapter's tiny LM writes words of its own about the
picture (`LMAdapterConfig.num_words`), they can be looked up as well, since they stand there as if the row had said
them after its prompt: the aligned tiny LM drafts for the large one.
"""

from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np

from vadapter.base.array_types import Array, Int
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.generation.config import EMPTY, DecodingConfig, EndIds, is_end
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.vlm import VLM, VLMConfig

NGRAM = 3  # tokens that are looked up at most: the more of them stood there before, the better the guess
LEAST = 2  # that must have stood there: one alone is seldom worth a guess, but in words about the very picture it is


@flax.struct.dataclass
class History:
    """What is looked up: words about the picture, the prompt, and the new tokens of each row.

    Attributes:
        ids: `EMPTY` where a visual token or nothing stands.
        length: of what is known.
    """

    ids: Int[Array, "B H"]
    length: Int[Array, " B"]

    def add(self, ids: Int[Array, "B T"], count: Int[Array, " B"]) -> "History":
        """Adds the first `count` of some ids to each row."""
        return History(put(self.ids, ids, self.length, count), self.length + count)


def check(model: VLMConfig, config: DecodingConfig) -> None:
    """Refuses drafts that a model cannot give.

    Raises:
        UserError: `draft` is `words`, and the adapter has no tiny LM that writes words, or its vocabulary is another
            one than the decoder's.
    """
    if config.draft != "words":
        return
    found = model.adapter
    if not isinstance(found, LMAdapterConfig) or not found.num_words:
        raise UserError(
            "DecodingConfig.draft is 'words', which an adapter with a tiny LM and num_words of one or more writes; "
            "this model's adapter writes none. Use 'prompt_lookup', or leave draft out."
        )
    if found.lm.vocab_size != model.decoder.vocab_size:
        raise UserError(
            "DecodingConfig.draft is 'words', which needs one tokeniser for both language models; found a vocabulary "
            f"of {found.lm.vocab_size} tokens in the adapter and one of {model.decoder.vocab_size} in the decoder. Use "
            "'prompt_lookup', or leave draft out."
        )


def num_words(model: VLMConfig, config: DecodingConfig) -> int:
    """Returns how many words of the adapter's tiny LM are looked up."""
    return model.adapter.num_words if config.draft == "words" and isinstance(model.adapter, LMAdapterConfig) else 0


def text(batch: Batch) -> Any:
    """Returns the ids of rows on the device or the host [B, T], `EMPTY` in slots of visual tokens and padding."""
    there = (batch.segment_ids > 0) & (batch.media_index < 0)
    return (np if isinstance(there, np.ndarray) else jnp).where(there, batch.tokens, EMPTY)


def start(prompts: Int[Array, "B T"], lengths: Int[Array, " B"], words: int, room: int) -> History:
    """Returns the history of rows that have nothing but their prompt.

    Args:
        prompts: as `text` gives them.
        lengths: slots of each prompt.
        words: as `num_words` gives it. Nothing stands there until `say`.
        room: for new tokens.
    """
    before = _before(words)
    ids = jnp.pad(prompts, [(0, 0), (before, room)], constant_values=EMPTY)
    return History(ids.astype(jnp.int32), before + lengths.astype(jnp.int32))


def _before(words: int) -> int:
    """Slots before the prompt: the words, and tokens that lead to them."""
    return NGRAM - 1 + words if words else 0


def say(history: History, words: Int[Array, "B W"], end_ids: EndIds) -> History:
    """Puts words before the prompts, behind the last tokens of the prompt, so that those lead to them."""
    count = words.shape[1]
    over = jnp.cumsum(is_end(words, end_ids), axis=1) - is_end(words, end_ids) > 0
    at = history.length[:, None] + np.arange(-(NGRAM - 1), 0)
    lead = jnp.take_along_axis(history.ids, jnp.maximum(at, 0), axis=1)
    said = jnp.concatenate([lead, jnp.where(over, EMPTY, words)], axis=1)
    return history.replace(ids=history.ids.at[:, : NGRAM - 1 + count].set(said))


def guess(history: History, count: int, words: int = 0) -> Int[Array, "B count"]:
    """Returns what followed where most of a row's last tokens stood before, the first such place; `EMPTY` is no guess.

    Args:
        history: its last token is one that the row said.
        count: tokens of a draft.
        words: as of `start`.
    """
    ids, last = history.ids, history.length - 1
    places = jnp.arange(ids.shape[1])
    alike, score = places < last[:, None], jnp.zeros(ids.shape, jnp.int32)
    for back in range(NGRAM):
        token = jnp.take_along_axis(ids, jnp.maximum(last - back, 0)[:, None], axis=1)
        alike &= (jnp.roll(ids, back, axis=1) == token) & (places >= back)
        score += alike
    score += (score > 0) & (places < _before(words))
    best = jnp.argmax(score, axis=1)
    at = best[:, None] + jnp.arange(1, count + 1)
    draft = jnp.take_along_axis(ids, jnp.minimum(at, ids.shape[1] - 1), axis=1)
    return jnp.where((score.max(axis=1) >= LEAST)[:, None] & (at <= last[:, None]), draft, EMPTY)


def agreed(draft: Int[Array, "B k"], chosen: Int[Array, "B k+1"]) -> Int[Array, " B"]:
    """Returns how many tokens of each draft the model chose itself, up to the first that it did not."""
    return jnp.cumprod(draft == chosen[:, :-1], axis=1, dtype=jnp.int32).sum(axis=1)


def put(old: Int[Array, "B S"], new: Int[Array, "B T"], at: Int[Array, " B"], count: Int[Array, " B"]) -> Array:
    """Returns rows with the first `count` of some values from place `at` on."""
    place = jnp.arange(old.shape[1]) - at[:, None]
    moved = jnp.take_along_axis(new, jnp.clip(place, 0, new.shape[1] - 1), axis=1)
    return jnp.where((place >= 0) & (place < count[:, None]), moved, old)


def words_of(model: VLM, batch: Batch) -> tuple[Batch, Int[Array, "B W"]]:
    """Lets the adapter's tiny LM write about the first medium of each row. A bound `model`; the batch has media.

    Returns:
        The batch, which has the words now, and the words.
    """
    batch = model.with_words(batch)
    return batch, batch.media.words[:, 0]  # type: ignore[union-attr]
