import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.decoding_reference import NEW, many, slow_beam
from vadapter.base.errors import UserError
from vadapter.generation.beam import Search, advance
from vadapter.generation.decoding import EMPTY, DecodingConfig, decode
from vadapter.generation.top_k import make_top_k

EOS = 0


def beam(beams, alpha=0.6, new=NEW):
    return DecodingConfig(method="beam", beams=beams, length_penalty=alpha, max_new_tokens=new)


@pytest.mark.parametrize(("beams", "alpha"), [(1, 0.6), (2, 0.6), (3, 0.0), (4, 0.6), (4, 3.0)])
def test_cached_search_equals_reading_everything_anew(setup, eos, beams, alpha):
    expected, _, steps = slow_beam(setup, beams, alpha, eos)
    ids, taken = setup.decode(beam(beams, alpha), eos)
    np.testing.assert_array_equal(ids, expected)
    assert taken == max(steps.values())
    written = (ids >= 0).sum(axis=1)
    assert written[-1] == 0, "a row of padding alone"
    assert any(0 < n < NEW for n in written), "no end token in the middle: the case is too easy"
    if beams == 1:
        np.testing.assert_array_equal(ids, setup.decode(DecodingConfig(max_new_tokens=NEW), eos)[0])


@pytest.mark.parametrize("beams", [1, 3])
def test_each_of_several_end_tokens_ends_a_hypothesis(setup, beams):
    free = setup.decode(beam(beams), -1)[0]
    tokens, counts = np.unique(free[free >= 0], return_counts=True)
    several = tuple(int(i) for i in tokens[np.argsort(-counts, kind="stable")][:3])
    expected, why, steps = slow_beam(setup, beams, 0.6, several)
    ids, taken = setup.decode(beam(beams), several)
    np.testing.assert_array_equal(ids, expected)
    assert taken == max(steps.values())
    assert list(why.values()).count("limit") <= 1 and not set(several) & set(ids.ravel().tolist())
    assert (ids != slow_beam(setup, beams, 0.6, several[:1])[0]).any(), "one end token says the same: too easy"


def test_without_an_end_token_all_rows_run_to_the_limit(setup):
    expected, _, _ = slow_beam(setup, 2, 0.6, -1)
    ids, steps = setup.decode(beam(2), -1)
    np.testing.assert_array_equal(ids, expected)
    assert steps == NEW - 1 and (ids[:-1] >= 0).all()


def test_sharded_search_equals_unsharded(setup, eos):
    np.testing.assert_array_equal(setup.decode(beam(4), eos, many())[0], setup.decode(beam(4), eos)[0])


def test_a_row_stops_when_no_running_beam_can_win(setup):
    row = setup.rows[-1]
    end = int(setup.decode(DecodingConfig(max_new_tokens=1), -1)[0][row, 0])
    _, why, steps = slow_beam(setup, 2, 0.6, end)
    assert why[row] == "hopeless" and steps[row] < NEW - 1
    ids, taken = setup.decode(beam(2), end, batch=setup.only(row))
    assert taken == steps[row]
    np.testing.assert_array_equal(ids[row], setup.decode(beam(2), end)[0][row])


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def chain(table, beams, alpha, new):
    """Searches where the next token depends on the last alone: `table` has the probabilities after each token."""
    search = Search(
        length=jnp.zeros((), jnp.int32),
        ids=jnp.full((1, 1, new), EMPTY),
        log_probs=jnp.zeros((1, 1)),
        parents=jnp.zeros((1, 1), jnp.int32),
        best_ids=jnp.full((1, new), EMPTY),
        best_score=jnp.full((1,), -jnp.inf),
        ended=jnp.zeros((1,), jnp.int32),
        done=jnp.zeros((1,), bool),
    )
    last = jnp.zeros((1, 1), jnp.int32)  # the first row of the table is after the prompt
    found = []
    for step in range(new):
        search = advance(search, jnp.log(table)[last], beam(beams, alpha, new), (EOS,))
        last = search.ids[:, :, step]
        found.append(search)
    return found


#          end    1    2    3
TABLE = [[0.40, 0.6, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.6, 0.0, 0.0, 0.4]]


def test_the_length_penalty_decides_between_short_and_long():
    # nothing: log .40 = -.916 over (6/6)**a; "1 2 3": log(.6 * .6) = -1.022 over (9/6)**a
    short, long = chain(np.array(TABLE), 2, 0.0, 4)[-1], chain(np.array(TABLE), 2, 1.0, 4)[-1]
    assert short.best_ids.tolist() == [[EMPTY] * 4]
    np.testing.assert_allclose(short.best_score, [np.log(0.4)], rtol=1e-6)
    assert long.best_ids.tolist() == [[1, 2, 3, EMPTY]]
    np.testing.assert_allclose(long.best_score, [np.log(0.36) / 1.5], rtol=1e-6)


def test_a_likelier_text_behind_an_unlikelier_start_is_found():
    table = np.array([[0.0, 0.6, 0.4, 0.0], [0.3, 0.3, 0.2, 0.2], [1.0, 0.0, 0.0, 0.0], [0.25] * 4])
    assert chain(table, 1, 0.0, 3)[-1].ids[0, 0, 0] == 1  # greedy goes wrong
    assert chain(table, 2, 0.0, 3)[-1].best_ids.tolist() == [[2, EMPTY, EMPTY]]


def test_a_row_is_done_only_when_its_result_is_certain():
    done = lambda table, alpha: [bool(s.done[0]) for s in chain(np.array(table), 2, alpha, 4)]  # noqa: E731
    # with penalty 1, log .6 / 1.5 may become better than log .4 until the second text has ended too
    assert done(TABLE, 1.0) == [False, False, False, True]
    # without, it may until log .36 is worse
    assert done(TABLE, 0.0) == [False, False, False, True]
    # log .1 / 1.5 is below log .9 at once
    assert done([[0.9, 0.1, 0.0, 0.0], *TABLE[1:]], 1.0) == [True] * 4


def test_neither_cache_nor_logits_leave_their_device(setup):
    placed = many()
    run = jax.jit(
        lambda params, batch: decode(setup.model, params, batch, beam(2, new=3), (1,), make_top_k(placed)),
        in_shardings=(placed.replicated, placed.batch_sharding),
    )
    with placed.activate():
        text = run.lower(setup.params, setup.batch).compile().as_text()
    moved = re.findall(r"= \w+\[([\d,]*)\]\S* (all[-_]gather|all-to-all|collective-permute)\(", text)
    assert {kind for _, kind in moved} == {"all-gather"}
    # candidates: rows of a device x beams x continuations; logits or new slots of the cache are 256
    assert max(np.prod([int(n) for n in shape.split(",")]) for shape, _ in moved) <= 2 * 2 * 8


def test_more_beams_than_tokens_are_refused(setup):
    with pytest.raises(UserError, match=r"beams is 33.*has 64"):
        jax.eval_shape(lambda: decode(setup.model, setup.params, setup.batch, beam(33), (1,)))


@pytest.mark.parametrize("k", [1, 3, 8, 20])
def test_the_largest_of_a_sharded_vocabulary(k):
    x = np.random.default_rng(0).integers(0, 20, (8, 3, 64)).astype(np.float32)  # many are equal
    values, ids = jax.jit(lambda x: make_top_k(many())(x, k))(x)
    order = np.argsort(-x, axis=-1, kind="stable")[..., :k]
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, axis=-1))
