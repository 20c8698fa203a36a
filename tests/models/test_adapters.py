import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.flops import FlopCounter
from vadapter.models.resampler import PerceiverConfig

VISUAL = np.random.default_rng(0).normal(size=(2, 2, 4, 32)).astype(np.float32)


def run(config, visual=VISUAL, params=None):
    module = config.make(24)
    if params is None:
        params = nn.unbox(jax.jit(module.init)(jax.random.key(0), visual)["params"])
    return params, np.asarray(jax.jit(module.apply)({"params": params}, visual))


@pytest.mark.parametrize("name", small.ADAPTERS)
def test_soft_tokens_are_as_many_as_announced(name):
    config = small.ADAPTERS[name]
    _, soft = run(config)
    assert soft.shape == (2, config.num_tokens(2, 4), 24)


def test_pixel_shuffle_reads_squares_of_neighbours():
    visual = np.random.default_rng(0).normal(size=(1, 2, 16, 8)).astype(np.float32)
    config = small.mlp(pixel_shuffle=2)
    params, soft = run(config, visual)
    assert soft.shape == (1, 8, 24) and params["dense_0"]["kernel"].shape == (32, 24)
    visual[:, 1, 6] += 1  # frame 1, row 1, column 2: in the upper right square of its frame
    changed = np.abs(run(config, visual, params)[1] - soft).max(axis=(0, 2)) > 1e-6
    assert changed.tolist() == [False] * 5 + [True, False, False]
    # Features stand side by side in the order of rows, as in the published models.
    ours = visual[0, 0, [0, 1, 4, 5]].reshape(-1) @ params["dense_0"]["kernel"] + params["dense_0"]["bias"]
    np.testing.assert_allclose(soft[0, 0], ours, atol=1e-5)


@pytest.mark.parametrize("patches", [9, 8])
def test_pixel_shuffle_needs_a_grid_that_it_divides(patches):
    with pytest.raises(UserError, match="pixel_shuffle=2 needs a square grid"):
        small.mlp(pixel_shuffle=2).num_tokens(1, patches)


PLACEMENTS = {
    "final": {"resampler/final_norm"},
    "shared": {"resampler/layers/norm"},
    "separate": {"resampler/layers/norm_query", "resampler/layers/norm_key"},
    "separate_final": {"resampler/layers/norm_query", "resampler/layers/norm_key", "resampler/final_norm"},
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_table_1_layer_norms(placement):
    params, _ = run(small.perceiver(num_layers=1, layer_norm=placement))
    norms = {p.rsplit("/", 1)[0] for p in trees.flatten(params) if "norm" in p and "ffn" not in p}
    assert norms == PLACEMENTS[placement]


def test_table_1_ffn_time_and_dimensions():
    with_all = trees.flatten(run(small.perceiver(query_dim=8, hidden_dim=32))[0])
    assert with_all["resampler/layers/attention/query/kernel"].shape == (2, 8, 4, 8)
    assert with_all["resampler/time_embedding"].shape == (2, 32)
    without = trees.flatten(run(small.perceiver(ffn=False, time_embedding=False))[0])
    assert not [p for p in without if "ffn" in p or "time" in p]


def test_time_embedding_makes_the_order_of_frames_matter():
    params, soft = run(small.perceiver(time_embedding=False))
    _, swapped = run(small.perceiver(time_embedding=False), VISUAL[:, ::-1], params)
    np.testing.assert_allclose(swapped, soft, atol=1e-5)
    params, soft = run(small.perceiver())
    _, swapped = run(small.perceiver(), VISUAL[:, ::-1], params)
    assert np.abs(swapped - soft).max() > 1e-3


def test_concatenated_keys_let_queries_see_one_another():
    for concat, seen in [(True, True), (False, False)]:
        config = small.perceiver(num_layers=1, concat_keys=concat)
        params, soft = run(config)
        queries = params["resampler"]["queries"]
        params["resampler"]["queries"] = queries.at[0].multiply(-1.0)
        change = np.abs(run(config, VISUAL, params)[1] - soft).max(axis=(0, 2))
        assert (change[1:] > 1e-6).all() == seen
        assert change[0] > 1e-3


def test_every_combination_of_table_1_runs():
    options = itertools.product(PLACEMENTS, (True, False), (True, False))
    for placement, ffn, concat in options:
        config = small.perceiver(num_layers=1, layer_norm=placement, ffn=ffn, concat_keys=concat)
        shape = jax.eval_shape(config.make(24).init_with_output, jax.random.key(0), VISUAL)[0].shape
        assert shape == (2, 4, 24)


def test_a_residual_pooler_starts_as_the_pooler_of_stage_1():
    params, soft = run(small.pooler())
    fresh, _ = run(small.pooler(residual=True))
    taken = trees.flatten(fresh) | trees.flatten(params)
    np.testing.assert_allclose(run(small.pooler(residual=True), VISUAL, trees.unflatten(taken))[1], soft, atol=1e-6)


def test_causal_lm_reads_out_appended_queries_after_the_visual_tokens():
    params, soft = run(small.ADAPTERS["queries"])
    changed = VISUAL.copy()
    changed[:, -1, -1] += 1.0
    assert (np.abs(run(small.ADAPTERS["queries"], changed, params)[1] - soft).max(axis=(0, 2)) > 1e-5).all()


def test_slots_of_a_causal_lm_see_earlier_slots_only_and_of_a_bidirectional_one_all():
    for causal in (True, False):
        config = LMAdapterConfig(small.decoder(width=32, causal=causal), small.mlp())
        params, soft = run(config)
        changed = VISUAL.copy()
        changed[:, -1, -1] += 1.0  # the last slot
        change = np.abs(run(config, changed, params)[1] - soft).max(axis=(0, 2))
        assert (change[:-1] > 1e-6).any() != causal


def test_the_adapter_lm_has_neither_table_nor_head():
    params = trees.flatten(run(small.ADAPTERS["paper"])[0])
    lm = {p.split("/")[1] for p in params if p.startswith("lm/")}
    assert lm == {"layers", "final_norm"}


def prefixed(count):
    return LMAdapterConfig(small.TINY, small.mlp(), "appended", 3, num_prefix=count)


def shapes(config):
    return trees.flatten(nn.unbox(jax.eval_shape(config.make(24).init, jax.random.key(0), VISUAL)["params"]))


def test_a_prefix_of_embeddings_is_read_as_the_lm_reads_those_words_before_the_tokens():
    params, soft = run(prefixed(2))
    table = np.random.default_rng(1).normal(size=(small.TINY.vocab_size, small.TINY.width)).astype(np.float32)
    lm, words = {**params["lm"], "embedder": {"embedding": table}}, jnp.array([[5, 9], [5, 9]])

    def read(module, after):
        embeddings = module.embed(words)
        x = jnp.concatenate([embeddings, after], axis=1)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return embeddings[0], module(x, jnp.ones_like(positions), positions)[0]

    @jax.jit
    def of_the_lm(params, lm):
        tokens = small.mlp().make(small.TINY.width).apply({"params": params["front"]}, VISUAL)
        queries = jnp.broadcast_to(params["queries"], (2, *params["queries"].shape))
        after = jnp.concatenate([tokens, queries], axis=1)
        embeddings, hidden = small.TINY.make().apply({"params": lm}, after, method=read)
        return embeddings, hidden[:, -3:] @ params["projection"]["kernel"] + params["projection"]["bias"]

    embeddings, wanted = of_the_lm(params, lm)
    found = run(prefixed(2), VISUAL, {**params, "prefix": embeddings})[1]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(found - soft).max() > 1e-3


def test_without_a_prefix_the_parameters_are_as_before():
    plain = shapes(LMAdapterConfig(small.TINY, small.mlp(), "appended", 3))
    assert shapes(prefixed(0)) == plain
    assert {path: x for path, x in shapes(prefixed(2)).items() if path != "prefix"} == plain
    assert shapes(prefixed(2))["prefix"].shape == (2, small.TINY.width)


def test_flops_count_the_prefix_in_the_lm_and_nowhere_else():
    def count(config):
        sizes = {f"adapter/{path}": x.size for path, x in shapes(config).items()}
        return config.flops(FlopCounter("adapter", sizes, frozenset(sizes)), 2, 2, 4)

    # As many positions of the LM as with two more queries, whose outputs are read out besides.
    found, without = count(prefixed(2)), count(prefixed(0))
    longer = count(LMAdapterConfig(small.TINY, small.mlp(), "appended", 5))
    assert found["adapter/lm"] == longer["adapter/lm"] > without["adapter/lm"]
    assert found["adapter/projection"] == without["adapter/projection"] < longer["adapter/projection"]
    assert found["adapter/front"] == without["adapter/front"]


def writing(words=4, **changes):
    settings = {"lm": small.TINY, "num_queries": 3, "num_prefix": 2, "num_suffix": 1, "num_words": words}
    return LMAdapterConfig(front=small.mlp(), readout="appended", **{**settings, **changes})


def test_words_are_those_that_the_lm_writes_one_after_the_other():
    params, soft = run(writing())
    assert soft.shape == (2, writing().num_tokens(2, 4), 24) == (2, 4 + 3, 24)
    # From weights that say something, and by the longest way: everything is read again for each word.
    rng = np.random.default_rng(3)
    params["lm"]["embedder"]["embedding"] = rng.normal(size=params["lm"]["embedder"]["embedding"].shape)
    decoder, lm = small.TINY.make(), {"params": params["lm"]}

    def read(module, x):
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return module(x, jnp.ones_like(positions), positions)[0]

    def repeated(x):
        return jnp.broadcast_to(x, (2, *x.shape))

    tokens = small.mlp().make(small.TINY.width).apply({"params": params["front"]}, VISUAL)
    x = jnp.concatenate([repeated(params["prefix"]), tokens, repeated(params["suffix"])], axis=1)
    first, words = x.shape[1] - 1, []
    for _ in range(4):
        hidden = decoder.apply(lm, x, method=read)
        words.append(decoder.apply(lm, hidden[:, -1:], method="logits").argmax(axis=-1))
        x = jnp.concatenate([x, decoder.apply(lm, words[-1], method="embed")], axis=1)
    assert len(np.unique(np.stack(words))) > 1
    x = jnp.concatenate([x, repeated(params["queries"])], axis=1)
    hidden = decoder.apply(lm, x, method=read)
    said = jnp.concatenate([hidden[:, first : first + 4], hidden[:, -3:]], axis=1)
    wanted = said @ params["projection"]["kernel"] + params["projection"]["bias"]
    np.testing.assert_allclose(run(writing(), VISUAL, params)[1], wanted, atol=1e-4)


def test_an_lm_that_writes_has_its_table_from_stage_1():
    params = trees.flatten(run(writing())[0])
    assert {p.split("/")[1] for p in params if p.startswith("lm/")} == {"layers", "final_norm", "embedder"}
    (lm, target), *_ = writing().stage1_rules()
    assert re.sub(lm, target, "decoder/embedder/embedding") == "adapter/lm/embedder/embedding"
    untied = writing(lm=small.decoder(width=16, tied_head=False))
    assert "lm/head/embedding" in trees.flatten(run(untied)[0])


def test_words_are_counted_as_read_and_written():
    def count(config):
        sizes = {f"adapter/{path}": x.size for path, x in shapes(config).items()}
        return config.flops(FlopCounter("adapter", sizes, frozenset(sizes)), 2, 2, 4)["adapter/lm"]

    silent, longer = count(writing(0)), count(writing(0, num_queries=7))
    assert silent < longer < count(writing(4)) < 2 * longer + silent


def test_bad_configurations():
    with pytest.raises(UserError, match="num_words needs"):
        LMAdapterConfig(small.TINY, small.mlp(), num_words=3)
    with pytest.raises(UserError, match="num_words needs"):
        writing(lm=small.decoder(width=16, causal=False))
    with pytest.raises(UserError, match="num_queries"):
        LMAdapterConfig(small.TINY, small.mlp(), "appended")
    with pytest.raises(UserError, match="layer_norm"):
        PerceiverConfig(layer_norm="everywhere")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="num_frames"):
        run(small.perceiver(num_frames=1))


def test_a_tiny_lm_with_relative_positions_takes_its_biases_along():
    lm = small.decoder(width=16, relative_buckets=8, rope_pattern=(False,))
    config = LMAdapterConfig(lm, small.mlp(), "appended", 3)
    (rule, target), *_ = config.stage1_rules()
    assert re.sub(rule, target, "decoder/relative_bias/embedding") == "adapter/lm/relative_bias/embedding"
    params = run(config)[0]
    assert "lm/relative_bias/embedding" in trees.flatten(params)
    biases = {"embedding": 9 * params["lm"]["relative_bias"]["embedding"]}
    other = {**params, "lm": {**params["lm"], "relative_bias": biases}}
    assert np.abs(run(config, params=other)[1] - run(config, params=params)[1]).max() > 1e-4
