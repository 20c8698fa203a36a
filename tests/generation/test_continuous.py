"""Continuous batching: rows that end are replaced, and no text knows which others there were."""

import itertools

import jax
import numpy as np
import pytest

from tests.generation.decoding_reference import GREEDY, NEW, ONE, SAMPLE, many
from vadapter.base.errors import UserError
from vadapter.generation.continuous import ContinuousDecoder
from vadapter.generation.decoding import EMPTY, DecodingConfig
from vadapter.generation.rows import bucket
from vadapter.generation.stream import make_stream


def make(setup, config=GREEDY, ends=(), **settings):
    slots = setup.batch.tokens.shape[1]
    return ContinuousDecoder(
        setup.model, setup.params, config, end_ids=ends, slots=slots, partitioner=ONE, **{"rows": 3, **settings}
    )


@pytest.fixture(scope="module")
def decoder(setup, eos):
    """One for several tests: nothing of a request may stay."""
    return make(setup, ends=(eos,), chunk=4)


def row(setup, i):
    return jax.tree.map(lambda x: x[i : i + 1], setup.batch)


def plain(setup, config, ends):
    ids, _ = setup.decode(config, ends)
    return {i: [int(x) for x in ids[i] if x >= 0] for i in setup.rows}


def texts(decoder, setup, order):
    return {name: ids for name, ids in decoder.texts((row(setup, i), i) for i in order)}


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (6, 2, 0), (5,)])
def test_texts_are_those_of_plain_greedy_decoding_whatever_runs_beside(setup, eos, decoder, order):
    expected = plain(setup, GREEDY, eos)
    assert len({len(text) for text in expected.values()}) > 1  # rows end at different times, and are replaced
    assert texts(decoder, setup, order) == {i: expected[i] for i in order}


def test_samples_are_those_of_plain_sampling(setup, eos):
    decoder = make(setup, SAMPLE, (eos,))
    assert texts(decoder, setup, setup.rows[::-1]) == plain(setup, SAMPLE, eos)


def test_a_request_that_comes_later_takes_the_first_free_row_and_pieces_join_to_the_text(setup, eos, decoder):
    expected = plain(setup, GREEDY, eos)
    order = [setup.rows[i % 7] for i in range(9)]
    start = decoder.submit(row(setup, order[0]))
    found = {start: []}
    for i in itertools.count(1):
        if i < len(order):
            found[decoder.submit(row(setup, order[i]))] = []
        if not decoder.busy:
            break
        for piece in decoder.step():
            found[piece.request] += piece.ids
    assert [found[start + i] for i in range(len(order))] == [expected[i] for i in order]


def test_a_request_may_ask_for_fewer_tokens(setup):
    decoder = make(setup)
    expected = plain(setup, GREEDY, -1)
    wanted = {
        decoder.submit(row(setup, i), limit): expected[i][:limit] for i, limit in ((0, 2), (1, 6), (2, 1), (3, 5))
    }
    found = {name: [] for name in wanted}
    while decoder.busy:
        for piece in decoder.step():
            found[piece.request] += piece.ids
    assert found == wanted


def test_a_cancelled_request_has_no_further_piece_and_costs_no_other_its_text(setup):
    decoder = make(setup, rows=1, chunk=2)
    expected = plain(setup, GREEDY, -1)
    runs, waits, last = (decoder.submit(row(setup, i)) for i in (0, 1, 2))
    assert [p.request for p in decoder.step()] == [runs]
    decoder.cancel(runs)
    decoder.cancel(waits)
    decoder.cancel(12345)
    found = []
    while decoder.busy:
        for piece in decoder.step():
            assert piece.request == last
            found += piece.ids
    assert found == expected[2]


def test_what_a_prompt_shares_with_the_one_before_is_read_once_and_changes_no_text(setup, monkeypatch):
    """The same picture and another question: the encoder runs once."""
    text = np.arange(40) % 29 + 1
    batch = row(setup, 0)
    soft = batch.tokens.shape[1] - int((batch.media_index < 0).sum())
    length = soft + len(text)
    index = np.where(np.arange(length) < soft, np.arange(length), -1)[None].astype(np.int32)
    tokens = np.where(index < 0, np.r_[np.zeros(soft, int), text], 0).astype(np.int32)
    one = np.ones((1, length), np.int32)
    first = batch.replace(
        tokens=tokens, segment_ids=one, positions=np.arange(length, dtype=np.int32)[None], media_index=index
    )
    other = first.replace(tokens=np.where(np.arange(length) > length - 5, 7, tokens).astype(np.int32))
    elsewhere = other.replace(media=255 - other.media)
    alone = {}
    for name, prompt in (("first", first), ("other", other), ("elsewhere", elsewhere)):
        decoder = ContinuousDecoder(
            setup.model, setup.params, GREEDY, end_ids=(), slots=length, rows=2, share=False, partitioner=ONE
        )
        [(_, alone[name])] = decoder.texts([(prompt, name)])
    decoder = ContinuousDecoder(setup.model, setup.params, GREEDY, end_ids=(), slots=length, rows=2, partitioner=ONE)
    read, admit = [], decoder._programs.admit
    monkeypatch.setattr(
        decoder._programs,
        "admit",
        lambda p, r, rest, *a: read.append((rest.tokens.shape[1], rest.media.shape[1])) or admit(p, r, rest, *a),
    )
    found: dict[str, list[int]] = dict(decoder.texts([(first, "first"), (other, "other"), (elsewhere, "elsewhere")]))
    found["first again"] = next(iter(decoder.texts([(first, "")])))[1]
    assert found == {**alone, "first again": alone["first"]}
    assert read == [(bucket(length), 1), (16, 0), (bucket(length), 1), (bucket(length), 1)]


def test_a_data_set_of_batches_gives_what_each_batch_gives(setup, eos):
    stream = make_stream(setup.model, ONE, GREEDY, end_ids=(eos,))
    ids, _ = setup.decode(GREEDY, eos)
    halves = [(jax.tree.map(lambda x, i=i: x[i : i + 4], setup.batch), i) for i in (4, 0)]
    nobody = setup.batch.replace(segment_ids=np.zeros_like(setup.batch.segment_ids)), "nobody"
    found = list(stream(setup.params, [*halves, nobody]))
    assert [name for _, name in found] == [4, 0, "nobody"]
    np.testing.assert_array_equal(found[0][0], ids[4:])
    np.testing.assert_array_equal(found[1][0], ids[:4])
    assert (found[2][0] == EMPTY).all()


def test_what_does_not_fit_is_refused_before_it_waits(setup, decoder):
    long = jax.tree.map(lambda x: np.repeat(x, 2, axis=1) if x.ndim == 2 else x, row(setup, 0))
    nothing = row(setup, 7)
    for prompt, limit in (
        (long, None),
        (nothing, None),
        (setup.batch, None),
        (row(setup, 0), 0),
        (row(setup, 0), NEW + 1),
    ):
        with pytest.raises(UserError, match="expected|Expected"):
            decoder.submit(prompt, limit)
    assert not decoder.busy


def test_a_mesh_of_several_devices_and_beams_are_refused(setup):
    with pytest.raises(UserError, match="one device"):
        ContinuousDecoder(setup.model, setup.params, GREEDY, end_ids=(), slots=8, partitioner=many())
    with pytest.raises(UserError, match="no beam search"):
        make(setup, DecodingConfig(method="beam"))
    with pytest.raises(UserError, match="1 or more"):
        make(setup, rows=0)


def test_buckets_waste_at_most_half():
    sizes = [bucket(n) for n in range(1, 2000)]
    assert all(n <= size for n, size in enumerate(sizes, 1)) and sizes == sorted(sizes)
    assert all(size <= 1.5 * n for n, size in enumerate(sizes, 1) if n >= 16)
    assert len(set(sizes)) < 20
