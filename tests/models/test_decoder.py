import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models.decoder import Decoder
from vadapter.models.positions import RopeScaling, apply_rope, rope_frequencies, rope_rotation

VARIANTS = {
    "plain": {},
    "palm": dict(parallel_block=True, num_kv_heads=1, norm="layer_no_bias", scale_embedding=True),
    "gemma2": dict(
        norm="rms_plus_one",
        post_norms=True,
        attention_pattern=("local", "global"),
        window=3,
        final_softcap=30.0,
        attention_softcap=50.0,
        query_scale=0.2,
        scale_embedding=True,
    ),  # fmt: skip
    "gemma3": dict(
        norm="rms_plus_one",
        post_norms=True,
        qk_norm=True,
        attention_pattern=("local", "global"),
        window=2,
        rope_base=1e6,
        rope_local_base=1e4,
        rope_scaling=RopeScaling("linear", 8.0),
    ),  # fmt: skip
    "qwen": dict(activation="silu", qkv_bias=True, tied_head=False),
    "llama": dict(activation="silu", rope_scaling=RopeScaling("llama3", 8.0)),
    "smollm3": dict(activation="silu", rope_pattern=(True, False)),
    "olmo2": dict(activation="silu", pre_norms=False, post_norms=True, qk_norm=True, qk_norm_over="all_heads"),
    "granite": dict(activation="silu", embedding_multiplier=12.0, residual_multiplier=0.2, logits_multiplier=0.125),
    "phi": dict(
        activation="silu",
        rope_dim=6,
        rope_scaling=RopeScaling("longrope", factors=(1.0, 2.0, 3.0), magnitude=1.2, original_length=16),
    ),  # fmt: skip
    # Layers of four kinds: with a window or not, rotated or not.
    "mixed": dict(depth=4, attention_pattern=("local", "local", "global"), window=2, rope_pattern=(True, False)),
    "t5": dict(
        rope_pattern=(False,), query_scale=1.0, relative_buckets=4, relative_max_distance=6, logits_multiplier=0.2
    ),
    "ungated": dict(gated=False, activation="relu", remat="full"),
}


def forward(config, params, tokens, segments=None, positions=None):
    model = Decoder(config)
    segments = np.ones_like(tokens) if segments is None else segments
    positions = np.tile(np.arange(tokens.shape[1]), (tokens.shape[0], 1)) if positions is None else positions

    def run(m):
        return m.logits(m(m.embed(tokens), segments, positions)[0])

    if params is None:
        return nn.unbox(jax.jit(lambda key: model.init(key, method=run))(jax.random.key(0))["params"])
    return np.asarray(jax.jit(lambda params: model.apply({"params": params}, method=run))(params))


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_decoding_equals_a_full_pass(name):
    config = small.decoder(**VARIANTS[name])
    tokens = np.random.default_rng(0).integers(1, 64, (2, 7))
    params = forward(config, None, tokens)
    full = forward(config, params, tokens)

    def cached(m):
        cache = m.empty_cache(2, 7)
        steps = []
        for start, end in [(0, 4), (4, 5), (5, 6), (6, 7)]:
            at = np.tile(np.arange(start, end), (2, 1))
            hidden, cache = m(m.embed(tokens[:, start:end]), np.ones_like(at), at, cache)
            steps.append(m.logits(hidden))
        return jax.numpy.concatenate(steps, axis=1)

    found = jax.jit(lambda params: Decoder(config).apply({"params": params}, method=cached))(params)
    np.testing.assert_allclose(found, full, atol=2e-5)


@pytest.mark.parametrize("name", ["plain", "gemma3"])
def test_packed_documents_do_not_see_one_another(name):
    config = small.decoder(**VARIANTS[name])
    tokens = np.random.default_rng(0).integers(1, 64, (1, 6))
    params = forward(config, None, tokens)
    packed = forward(config, params, tokens, np.array([[1, 1, 1, 2, 2, 0]]), np.array([[0, 1, 2, 0, 1, 0]]))
    np.testing.assert_allclose(packed[:, :3], forward(config, params, tokens[:, :3]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 3:5], forward(config, params, tokens[:, 3:5]), atol=1e-5)


def test_a_local_layer_forgets_what_lies_behind_its_window():
    config = small.decoder(depth=1, attention_pattern=("local",), window=2)
    tokens = np.random.default_rng(0).integers(1, 64, (1, 6))
    params = forward(config, None, tokens)
    other = tokens.copy()
    other[0, 3] += 1
    change = np.abs(forward(config, params, other) - forward(config, params, tokens)).max(axis=(0, 2))
    assert (change > 1e-6).tolist() == [False, False, False, True, True, False]


def test_a_layer_without_rotation_knows_no_positions():
    # One global layer that sees all slots: its outputs follow the tokens, in whatever order they come.
    tokens = np.random.default_rng(0).integers(1, 64, (1, 6))
    order = np.array([3, 0, 5, 1, 2, 4])
    for rotates, same in ((False, True), (True, False)):
        config = small.decoder(depth=1, causal=False, rope_pattern=(rotates,))
        params = forward(config, None, tokens)
        change = np.abs(forward(config, params, tokens[:, order]) - forward(config, params, tokens)[:, order]).max()
        assert (change < 1e-5) == same


def test_channels_beyond_rope_dim_are_not_rotated():
    rotation = rope_rotation(np.array([[3]]), rope_frequencies(4, 100.0), magnitude=2.0)
    x = np.arange(1.0, 7.0, dtype=np.float32).reshape(1, 1, 1, 6)
    y = np.asarray(apply_rope(x, rotation))[0, 0, 0]
    np.testing.assert_array_equal(y[4:], [5, 6])
    np.testing.assert_allclose(
        y[:4],
        2 * np.asarray(apply_rope(x[..., :4], rope_rotation(np.array([[3]]), rope_frequencies(4, 100.0))))[0, 0, 0],
        rtol=1e-6,
    )


def test_multipliers_scale_what_they_name():
    tokens = np.arange(1, 6)[None]
    params = forward(small.decoder(), None, tokens)
    plain = forward(small.decoder(), params, tokens)
    np.testing.assert_allclose(forward(small.decoder(logits_multiplier=0.25), params, tokens), plain / 4, rtol=1e-6)
    embedded = [
        np.asarray(Decoder(small.decoder(**c)).apply({"params": params}, tokens, method="embed"))
        for c in ({}, {"embedding_multiplier": 12.0})
    ]
    np.testing.assert_allclose(embedded[1], 12 * embedded[0], rtol=1e-6)
    # Without what attention and MLP add, the output is that of the last token alone.
    alone = forward(small.decoder(residual_multiplier=1e-9), params, tokens)
    np.testing.assert_allclose(
        alone[:, -1:], forward(small.decoder(residual_multiplier=1e-9), params, tokens[:, -1:]), atol=1e-5
    )


def test_rows_longer_than_the_rotary_factors_hold_for_are_refused():
    config = small.decoder(**VARIANTS["phi"])
    tokens = np.ones((1, 16), int)
    params = forward(config, None, tokens)
    with pytest.raises(UserError, match="up to 16 slots.*a row here has 17"):
        forward(config, params, np.ones((1, 17), int))

    def one_more(m):
        return m(m.embed(tokens[:, :1]), tokens[:, :1], tokens[:, :1], m.empty_cache(1, 17))[0]

    with pytest.raises(UserError, match="17.*fewer new tokens"):
        Decoder(config).apply({"params": params}, method=one_more)


def test_soft_cap_bounds_the_logits():
    config = small.decoder(final_softcap=0.1)
    tokens = np.arange(1, 6)[None]
    params = forward(config, None, tokens)
    assert np.abs(forward(config, params, tokens)).max() <= 0.1
    assert np.abs(forward(small.decoder(), params, tokens)).max() > 0.1


def test_parameters_are_stacked_and_named():
    params = trees.flatten(forward(small.decoder(qk_norm=True, tied_head=False), None, np.ones((1, 2), int)))
    assert params["layers/attention/query/kernel"].shape == (2, 32, 4, 8)
    assert params["layers/attention/key_norm/scale"].shape == (2, 8)
    together = trees.flatten(forward(small.decoder(**VARIANTS["olmo2"]), None, np.ones((1, 2), int)))
    assert together["layers/attention/query_norm/scale"].shape == (2, 4 * 8)
    assert together["layers/attention/key_norm/scale"].shape == (2, 2 * 8)
    assert not [path for path in together if "/pre_" in path]
    assert params["head/embedding"].shape == (64, 32)
    assert params["embedder/embedding"].shape == (64, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(num_heads=3), "multiple of num_kv_heads"),
        (dict(head_dim=5), "even head_dim"),
        (dict(attention_pattern=("near",)), "'global' and 'local'"),
        (dict(attention_pattern=("local",)), "window"),
        (dict(rope_dim=3), "even rope_dim"),
        (dict(rope_dim=10), "between 2 and head_dim 8"),
        (dict(rope_pattern=()), "rope_pattern is empty"),
        (dict(qk_norm_over="width"), "head, all_heads"),
        (dict(rope_scaling=RopeScaling("longrope", factors=(1.0,))), "each of the 4 frequencies.*has 1"),
    ],
)
def test_impossible_shapes_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        small.decoder(**change)
