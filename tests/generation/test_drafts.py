"""Drafts: whatever is guessed, the texts are those without a draft; a good guess saves calls of the model."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.decoding_reference import GREEDY, NEW, ONE, SAMPLE, many
from tests.models import small
from vadapter.base.batch import Features
from vadapter.base.errors import UserError
from vadapter.generation import drafts
from vadapter.generation.continuous import ContinuousDecoder
from vadapter.generation.decoding import EMPTY, DecodingConfig, decode, make_generate
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.vlm import VLM
from vadapter.partitioning import init_params

K = 3
BEYOND = NEW + K + 1  # what a good guess knows: the limit comes inside of a draft


def drafting(config, draft="prompt_lookup"):
    return dataclasses.replace(config, draft=draft, num_draft_tokens=K)


def known(setup, config):
    """What each row would say if nothing ended it, for longer than it may."""
    return setup.decode(dataclasses.replace(config, max_new_tokens=BEYOND), -1)[0]


def guesses(setup, config):
    """Drafts by name: all of them right, some tokens of them wrong, all wrong, and none."""
    good = known(setup, config)
    place = np.arange(BEYOND) + np.arange(len(good))[:, None]
    other = (good + 1) % setup.model.config.decoder.vocab_size
    return {
        "good": good,
        "mistaken": np.where(place % 3 == 0, other, good),
        "bad": other,
        "none": np.full_like(good, EMPTY),
    }


class Guess:
    """In the place of `drafts.guess`: takes drafts from a table, by the prompt that a row has."""

    def __init__(self, setup):
        self.lengths, self.prompts = jnp.asarray(setup.lengths), jnp.asarray(drafts.text(setup.batch))
        self.table = None

    def __call__(self, history, count, words):
        prompts = history.ids[:, None, : self.prompts.shape[1]] == self.prompts
        which = jnp.argmax(prompts.sum(axis=2), axis=1)
        at = (history.length - self.lengths[which])[:, None] + jnp.arange(count)
        return jnp.take_along_axis(jnp.asarray(self.table)[which], at, axis=1, mode="fill", fill_value=EMPTY)


@pytest.fixture
def guess(setup, monkeypatch):
    made = Guess(setup)
    monkeypatch.setattr(drafts, "guess", made)
    return made


def compiled(setup, config, guess):
    """A function of (table of drafts, end token) that gives ids and steps: one program for all drafts."""

    def run(table, end):
        guess.table = table
        return decode(setup.model, setup.params, setup.batch, config, end)

    return jax.jit(run)


@pytest.mark.parametrize("config", [GREEDY, SAMPLE], ids=["greedy", "sample"])
def test_texts_are_those_without_a_draft_and_a_good_draft_saves_steps(setup, eos, guess, config):
    run, steps = compiled(setup, drafting(config), guess), {}
    for name, table in guesses(setup, config).items():
        for end in (eos, -1):
            out = run(table, np.array([end]))
            ids, plain = setup.decode(config, end)
            np.testing.assert_array_equal(out.ids, ids, err_msg=f"{name}, end token {end}")
            steps[name, end] = int(out.steps)
    assert steps["good", -1] == -(-(NEW - 1) // (K + 1))
    assert steps["good", -1] < steps["mistaken", -1] < steps["bad", -1] == steps["none", -1] == NEW - 1
    assert all(steps[name, eos] <= plain for name in ("good", "mistaken", "bad", "none"))


def test_texts_of_looked_up_drafts_on_a_mesh_are_those_without(setup, eos):
    ids, _ = setup.decode(GREEDY, eos)
    for partitioner in (ONE, many()):
        np.testing.assert_array_equal(setup.decode(drafting(GREEDY), eos, partitioner)[0], ids)


def row(setup, i):
    return jax.tree.map(lambda x: x[i : i + 1], setup.batch)


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_continuous_decoding_take_as_many_tokens_as_each_agrees_to(setup, eos, guess, rows):
    ids, _ = setup.decode(GREEDY, eos)
    expected = {i: [int(x) for x in ids[i] if x >= 0] for i in setup.rows}
    slots = setup.batch.tokens.shape[1]

    def made(config):
        return ContinuousDecoder(
            setup.model, setup.params, config, end_ids=(eos,), slots=slots, rows=rows, partitioner=ONE
        )

    plain = made(GREEDY)
    assert dict(plain.texts((row(setup, i), i) for i in setup.rows)) == expected
    for name in ("good", "mistaken") if rows > 1 else ("mistaken",):
        guess.table = guesses(setup, GREEDY)[name]
        decoder = made(drafting(GREEDY))
        assert dict(decoder.texts((row(setup, i), i) for i in setup.rows)) == expected
        assert decoder.calls < plain.calls
        # A request may ask for fewer: its limit comes inside of a draft.
        name = decoder.submit(row(setup, 2), 2)
        assert [p.ids for p in decoder.step()] == [tuple(setup.decode(GREEDY, -1)[0][2, :2])] or not decoder.busy
        decoder.cancel(name)


# Words of the adapter's tiny LM.


@pytest.fixture(scope="module")
def speaking():
    """A model whose adapter writes words, and rows."""
    adapter = LMAdapterConfig(small.TINY, small.mlp(), "appended", 3, num_words=4)
    config = dataclasses.replace(small.vlm(), adapter=adapter)
    batch = small.batch(config, rows=3)
    return VLM(config), init_params(VLM(config), batch, jax.random.key(0), ONE), batch


def texts_of(speaking, config, batch=None):
    model, params, rows = speaking
    rows = rows if batch is None else batch
    slots = rows.tokens.shape[1]
    decoder = ContinuousDecoder(model, params, config, end_ids=(), slots=slots, rows=2, partitioner=ONE)
    prompts = [(jax.tree.map(lambda x, i=i: x[i : i + 1], rows), i) for i in range(len(rows.tokens))]
    return dict(decoder.texts(prompts)), decoder.calls


def test_words_of_the_tiny_lm_are_looked_up_and_written_once(speaking, monkeypatch):
    model, params, batch = speaking
    ids = np.asarray(make_generate(model, ONE, GREEDY, end_ids=())(params, ONE.put_batch(batch)))
    wrote, made = [], drafts.words_of

    def words_of(model, batch):
        found = made(model, batch)
        wrote.append(found[1])
        return found

    monkeypatch.setattr(drafts, "words_of", words_of)
    with_words = jax.jit(lambda: (decode(model, params, batch, drafting(GREEDY, "words"), ()).ids, wrote.pop()))()
    np.testing.assert_array_equal(with_words[0], ids)
    expected = model.apply({"params": params}, batch.media, method="written")[:, 0]
    np.testing.assert_array_equal(with_words[1], expected)

    # Words that are what the model says: of a row of several, and of the second of two that share a picture.
    monkeypatch.setattr(drafts, "words_of", lambda m, b: (made(m, b)[0], jnp.asarray(ids[:1, 1:5])))
    same = jax.tree.map(lambda x: np.repeat(np.asarray(x)[:1], 3, axis=0), batch)
    texts, calls = texts_of(speaking, drafting(GREEDY, "words"), same)
    assert list(texts.values()) == [ids[0].tolist()] * 3
    assert calls < texts_of(speaking, GREEDY, same)[1]


def test_words_that_a_feature_cache_has_are_taken(speaking):
    model, params, batch = speaking
    given = np.full((3, 1, 4), 7, np.int32)
    tokens = np.asarray(model.apply({"params": params}, batch.media, method="patch_tokens"))
    cached = batch.replace(media=Features(jnp.asarray(tokens), words=jnp.asarray(given)))
    _, words = model.apply({"params": params}, cached, method=drafts.words_of)
    np.testing.assert_array_equal(words, given[:, 0])


# What is looked up.


def looked_up(ids, count=3):
    history = drafts.History(jnp.asarray([ids + [EMPTY] * 4]), jnp.asarray([len(ids)]))
    return list(itertools.takewhile(lambda i: i >= 0, drafts.guess(history, count)[0].tolist()))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([4, 5, 6, 7, 8, 4, 5], [6, 7, 8]),
        ([4, 5, 1, 3, 4, 5, 2, 3, 4, 5], [2, 3, 4]),  # where more of the last tokens stood
        ([4, 5, 1, 4, 5, 2, 4, 5], [1, 4, 5]),  # of equal places, the first
        ([4, 5, 4, 5], [4, 5]),  # no further than what is known
        ([5, 6, 7, 5], []),  # one token alone is no reason
        ([5], []),
        ([EMPTY, EMPTY, 3, EMPTY, 4], []),  # a visual token is no token
        ([EMPTY, 4, EMPTY, 8, EMPTY, 4], []),  # nor is it guessed
    ],
)
def test_what_followed_the_last_tokens_is_guessed(ids, expected):
    assert looked_up(ids) == expected


def test_words_stand_where_the_row_would_say_them_and_nothing_is_guessed_behind_their_end():
    start = drafts.start(jnp.asarray([[3, 9, 4, 5]]), jnp.asarray([4]), words=4, room=3)
    said = drafts.say(start, jnp.asarray([[9, 7, 1, 6]]), (1,))
    history = said.add(jnp.asarray([[9, 0]]), jnp.asarray([1]))
    assert drafts.guess(history, 3, words=4).tolist() == [[7, 1, EMPTY]]  # and not 4, as after the 9 of the prompt
    history = said.add(jnp.asarray([[2, 7]]), jnp.asarray([2]))  # another first word: the second is enough to go on
    assert drafts.guess(history, 2, words=4).tolist() == [[1, EMPTY]]


# What is refused.


def test_words_are_refused_where_nobody_writes_them_or_in_another_vocabulary(setup, speaking):
    words = drafting(GREEDY, "words")
    with pytest.raises(UserError, match="num_words"):
        make_generate(setup.model, ONE, words, end_ids=())
    config = speaking[0].config
    other = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_size=65))
    with pytest.raises(UserError, match="one tokeniser"):
        ContinuousDecoder(VLM(other), None, words, end_ids=(), slots=8, partitioner=ONE)


@pytest.mark.parametrize(
    "settings", [{"draft": "tiny"}, {"method": "beam", "draft": "words"}, {"num_draft_tokens": 0}], ids=str
)
def test_senseless_drafts_are_refused(settings):
    with pytest.raises(UserError, match=rf"DecodingConfig\.{list(settings)[-1]} is .*; expected"):
        DecodingConfig(**settings)
