import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation.decoding_reference import GREEDY, NEW, SAMPLE, many, slow_one_by_one
from vadapter.base.errors import UserError
from vadapter.generation import decoding
from vadapter.generation.decoding import EMPTY, DecodingConfig, make_generate
from vadapter.generation.sampling import keep_top_p, row_keys, sample


def plain_top_p(logits, p):
    """The definition: sorted, taken until their probabilities sum to p, and what equals the last."""
    order = np.argsort(-logits)
    probabilities = np.exp(logits - logits.max())
    total = np.cumsum(probabilities[order] / probabilities.sum())
    last = logits[order[np.argmax(total >= p)]]
    return np.where(logits >= last, logits, -np.inf)


@pytest.mark.parametrize("end", [False, True])
def test_cached_greedy_equals_reading_everything_anew(setup, eos, end):
    end_id = eos if end else -1
    ids, steps = setup.decode(GREEDY, end_id)
    np.testing.assert_array_equal(ids, slow_one_by_one(setup, lambda row, step, x: x.argmax(), end_id))
    assert (ids[-1] == EMPTY).all(), "a row of padding alone"
    assert steps == NEW - 1
    if end:
        assert len(set((ids >= 0).sum(axis=1))) > 2, "rows end alike: the case is too easy"


@pytest.mark.parametrize("config", [GREEDY, SAMPLE], ids=["greedy", "sample"])
def test_any_of_several_end_tokens_ends_a_text(setup, config):
    free, _ = setup.decode(config, -1)
    firsts = tuple(dict.fromkeys(free[setup.rows, 2].tolist()))  # every row has written one after three steps
    ids, steps = setup.decode(config, firsts)
    assert len(firsts) > 1 and steps <= 2
    for row in setup.rows:
        length = next(i for i, token in enumerate(free[row].tolist()) if token in firsts)
        np.testing.assert_array_equal(ids[row], [*free[row, :length], *[EMPTY] * (NEW - length)])


def test_cached_sampling_equals_reading_everything_anew(setup, eos):
    keys = row_keys(setup.batch, SAMPLE.seed)

    def choose(row, step, logits):
        likeliest = np.argsort(-logits, kind="stable")[: SAMPLE.top_k]
        kept = plain_top_p(logits[likeliest] / SAMPLE.temperature, SAMPLE.top_p)
        noise = jax.random.gumbel(jax.random.fold_in(keys[row], step), kept.shape)
        return likeliest[np.argmax(kept + np.asarray(noise))]

    ids, _ = setup.decode(SAMPLE, eos)
    np.testing.assert_array_equal(ids, slow_one_by_one(setup, choose, eos))
    assert (ids != setup.decode(GREEDY, eos)[0]).any()


def test_sharded_sampling_equals_unsharded(setup, eos):
    np.testing.assert_array_equal(setup.decode(SAMPLE, eos, many())[0], setup.decode(SAMPLE, eos)[0])


def test_decoding_stops_when_all_rows_have_ended(setup):
    free, _ = setup.decode(GREEDY, -1)
    row, at = next((r, int(np.argmax(free[r] == t))) for r in setup.rows for t in free[r, 1:3] if t != free[r, 0])
    ids, steps = setup.decode(GREEDY, int(free[row, at]), batch=setup.only(row))
    assert steps == at
    np.testing.assert_array_equal(ids[row], [*free[row, :at], *[EMPTY] * (NEW - at)])


def test_a_sample_depends_on_the_row_and_the_seed_alone(setup):
    ids, _ = setup.decode(SAMPLE, -1)
    order = np.random.default_rng(0).permutation(8)
    shuffled = jax.tree.map(lambda x: x[order], setup.batch)
    np.testing.assert_array_equal(setup.decode(SAMPLE, -1, batch=shuffled)[0], ids[order])
    half = jax.tree.map(lambda x: x[2:6], setup.batch)
    data = lambda batch: np.asarray(jax.random.key_data(row_keys(batch, 3)))  # noqa: E731
    np.testing.assert_array_equal(data(half), data(setup.batch)[2:6])
    longer = setup.batch.replace(
        **{
            name: np.pad(getattr(setup.batch, name), [(0, 0), (0, 3)])
            for name in ("tokens", "segment_ids", "positions")
        }
    )
    np.testing.assert_array_equal(data(longer), data(setup.batch))
    other, _ = setup.decode(dataclasses.replace(SAMPLE, seed=4), -1)
    assert (other != ids).any(axis=1)[:-1].all()


def test_random_keys_tell_rows_apart(setup):
    batch = jax.tree.map(lambda x: np.repeat(x[:1], 5, axis=0).copy(), setup.batch)
    batch.tokens[1, [0, 1]] = batch.tokens[1, [1, 0]]  # order of words
    batch.media[2, 0, 0, 0, 0, 0] ^= 1  # one pixel
    batch.media[3] = batch.media[3, ..., ::-1, :]  # mirrored
    keys = np.asarray(jax.random.key_data(row_keys(batch, 0)))
    assert batch.tokens[0, 0] != batch.tokens[0, 1]
    assert len({tuple(k) for k in keys[:4]}) == 4
    assert tuple(keys[4]) == tuple(keys[0])


LOGITS = {
    "spread": [2.0, -1.0, 0.5, 3.0, 0.0, -4.0],
    "ties at the border": [1.0, 2.0, 1.0, 0.0, 1.0, -1.0],
    "all equal": [0.5] * 6,
    "one certain": [50.0, 0.0, -50.0, -60.0, 1.0, 2.0],
    "ties at the top": [3.0, 3.0, 1.0, 1.0, 0.0, 0.0],
    "some excluded": [1.0, -np.inf, 0.0, -np.inf, 2.0, 2.0],
}


@pytest.mark.parametrize("name", LOGITS)
def test_the_nucleus_is_that_of_the_definition(name):
    logits = np.array(LOGITS[name], np.float32)
    for p in (1e-6, 0.1, 0.32, 0.46, 0.6, 0.79, 0.88, 0.97, 0.9999):
        np.testing.assert_array_equal(keep_top_p(jnp.asarray(logits), p), plain_top_p(logits, p))


def drawn(logits, **settings):
    """Tokens that are ever drawn."""
    keys = jax.random.split(jax.random.key(1), 512)
    rows = jnp.tile(jnp.asarray(logits, jnp.float32), (512, 1))
    return sorted(set(np.asarray(sample(keys, rows, jnp.int32(0), DecodingConfig("sample", **settings))).tolist()))


def test_drawn_tokens_by_hand():
    logits = np.log([0.1, 0.5, 0.15, 0.25])
    assert drawn(logits) == drawn(logits, top_k=99) == drawn(logits, top_k=4) == [0, 1, 2, 3]
    assert drawn(logits, top_p=0.7) == [1, 3]
    assert drawn(logits, top_p=0.3) == drawn(logits, top_k=1) == [1]
    assert drawn(logits, top_k=2) == [1, 3]
    # the temperature comes first: at 1/2 the probabilities are .029 .725 .065 .181, and top-p takes one
    assert drawn(logits, temperature=0.5, top_p=0.7) == [1]
    # top-k comes before top-p: of the two that it leaves the first has .67, which is enough
    assert drawn(logits, top_k=2, top_p=0.6) == [1]
    equal = np.log([0.2, 0.2, 0.2, 0.4])
    assert drawn(equal, top_k=2) == [0, 3]  # exactly k
    assert drawn(equal, top_p=0.5) == [0, 1, 2, 3]  # all that are as likely as the last


def test_nucleus_of_a_large_vocabulary():
    logits = np.random.default_rng(0).normal(0, 3, (4, 5000)).astype(np.float32)
    for p in (0.5, 0.95):
        kept = np.asarray(keep_top_p(jnp.asarray(logits), p))
        np.testing.assert_array_equal(kept, [plain_top_p(row, p) for row in logits])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (dict(temperature=1.0, top_k=0, top_p=1.0), [0.1, 0.5, 0.15, 0.25]),
        (dict(temperature=0.5, top_k=0, top_p=1.0), [0.01, 0.25, 0.0225, 0.0625]),
        (dict(temperature=1.0, top_k=3, top_p=1.0), [0, 0.5, 0.15, 0.25]),
        (dict(temperature=1.0, top_k=0, top_p=0.7), [0, 0.5, 0, 0.25]),
        (dict(temperature=2.0, top_k=3, top_p=0.6), [0, 0.5**0.5, 0, 0.5]),
    ],
)
def test_sampled_frequencies_follow_the_distribution(settings, expected):
    draws, expected = 8192, np.array(expected) / np.sum(expected)
    keys = jax.random.split(jax.random.key(1), draws)
    config = DecodingConfig("sample", **settings)
    logits = jnp.tile(jnp.log(jnp.array([0.1, 0.5, 0.15, 0.25])), (draws, 1))
    counts = np.bincount(jax.jit(lambda k, x: sample(k, x, jnp.int32(2), config))(keys, logits), minlength=4)
    assert (counts[expected == 0] == 0).all()
    possible = expected > 0
    chi_square = ((counts - draws * expected)[possible] ** 2 / (draws * expected[possible])).sum()
    assert chi_square < 11.34  # 1% of three degrees of freedom; fewer have less


def test_steps_of_a_row_draw_independently():
    keys = jax.random.split(jax.random.key(0), 4096)
    logits = jnp.zeros((4096, 2))
    drawn = [np.asarray(sample(keys, logits, jnp.int32(s), DecodingConfig("sample"))) for s in (0, 1)]
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.05


def test_sharded_generate_compiles_once_and_gives_each_process_its_rows(setup, monkeypatch):
    traced = []
    plain = decoding.decode
    monkeypatch.setattr(decoding, "decode", lambda *args: traced.append(1) or plain(*args))
    run = make_generate(setup.model, many(), GREEDY, end_ids=(1,))
    params = jax.device_put(setup.params, many().replicated)
    for batch in (setup.batch, setup.only(2)):
        ids = run(params, many().put_batch(batch))
        np.testing.assert_array_equal(ids, setup.decode(GREEDY, 1, batch=batch)[0])
        assert ids.sharding.is_equivalent_to(many().batch_sharding, ids.ndim)
    assert traced == [1]


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_one_new_token(setup, method):
    ids, steps = setup.decode(DecodingConfig(method, max_new_tokens=1, top_k=1), -1)
    assert steps == 0
    np.testing.assert_array_equal(ids[:, 0], setup.decode(GREEDY, -1)[0][:, 0])


@pytest.mark.parametrize(
    "settings",
    [
        dict(method="nucleus"),
        dict(max_new_tokens=0),
        dict(temperature=-1.0),
        dict(temperature=float("nan")),
        dict(method="sample", temperature=0.0),
        dict(top_k=-1),
        dict(top_p=0.0),
        dict(top_p=1.5),
        dict(beams=0),
        dict(length_penalty=-0.1),
        dict(length_penalty=float("inf")),
        dict(seed=-1),
    ],
)
def test_senseless_settings_are_refused(settings):
    name = list(settings)[-1]
    with pytest.raises(UserError, match=rf"DecodingConfig\.{name} is .*; expected"):
        DecodingConfig(**settings)
