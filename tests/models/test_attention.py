import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapter.base.errors import UserError
from vadapter.models.attention import attend
from vadapter.models.positions import RopeScaling, apply_rope, rope_frequencies, rope_rotation


def reference(q, k, v, mask, scale, cap):
    """Attention of one head, in plain numpy."""
    logits = q @ k.T * scale
    logits = cap * np.tanh(logits / cap) if cap else logits
    logits = np.where(mask, logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("cap", [None, 5.0])
def test_grouped_heads_read_their_own_key_head(cap):
    rng = np.random.default_rng(0)
    q = rng.integers(-2, 3, (1, 3, 4, 2)).astype(np.float32)
    k = rng.integers(-2, 3, (1, 5, 2, 2)).astype(np.float32)
    v = rng.integers(-2, 3, (1, 5, 2, 2)).astype(np.float32)
    mask = np.tril(np.ones((3, 5), bool), 2)
    out = attend(q, k, v, jnp.asarray(mask)[None, None], scale=0.5, softcap=cap)
    for head in range(4):
        expected = reference(q[0, :, head], k[0, :, head // 2], v[0, :, head // 2], mask, 0.5, cap)
        np.testing.assert_allclose(out[0, :, head], expected, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_gradients_are_those_of_the_plain_softmax(cap):
    rng = np.random.default_rng(0)
    q, k, v, weights = (rng.normal(size=(2, n, 2, 3)).astype(np.float32) for n in (4, 6, 6, 4))
    mask = jnp.asarray(rng.random((2, 1, 4, 6)) < 0.6).at[1, 0, 2].set(False)  # a query that sees nothing

    def plain(q, k, v):
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) * 0.5
        logits = cap * jnp.tanh(logits / cap) if cap else logits
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
        return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits, axis=-1), v)

    def gradients(attention):
        return jax.grad(lambda *x: (attention(*x) * weights).sum(), argnums=(0, 1, 2))(q, k, v)

    found = gradients(lambda *x: attend(*x, mask, scale=0.5, softcap=cap))
    for ours, expected in zip(found, gradients(plain), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("length", [63, 64, 130, 1030])
def test_a_causal_row_in_blocks_is_attention_as_a_whole(length):
    rng = np.random.default_rng(0)
    q, k, v, weights = (rng.normal(size=(2, length, n, 4)).astype(np.float32) for n in (4, 2, 2, 4))
    bias = rng.normal(size=(2, 4, length, length)).astype(np.float32)
    segments = np.sort(rng.integers(1, 4, (2, length)), axis=1)
    mask = jnp.asarray(np.tril(segments[:, :, None] == segments[:, None, :]))[:, None]

    def results(causal):
        def total(q, k, v, bias):
            out = attend(q, k, v, mask, scale=0.5, softcap=5.0, bias=bias, causal=causal)
            return (out * weights).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))(q, k, v, bias)
        return out, gradients

    for ours, expected in zip(jax.tree.leaves(results(True)), jax.tree.leaves(results(False)), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_causal_row_leaves_out_logits_that_no_query_sees():
    row = jnp.ones((1, 512, 2, 64))
    mask = jnp.tril(jnp.ones((512, 512), bool))[None, None]

    def flops(causal):
        run = jax.jit(lambda x: attend(x, x, x, mask, scale=1.0, causal=causal))
        return run.lower(row).compile().cost_analysis()["flops"]

    assert flops(True) < 0.65 * flops(False)


def test_unknown_implementation_is_refused():
    with pytest.raises(UserError, match="'flash'.*xla, cudnn, splash"):
        attend(*[jnp.ones((1, 2, 1, 2))] * 3, None, scale=1.0, impl="flash")


def test_rope_turns_each_pair_by_position_times_frequency():
    x = np.array([[[[1.0, 2.0, 0.0, 0.0]]]], np.float32)
    frequencies = rope_frequencies(4, 100.0)
    np.testing.assert_allclose(frequencies, [1.0, 0.1])
    y = apply_rope(x, rope_rotation(np.array([[3]]), frequencies))
    np.testing.assert_allclose(y[0, 0, 0], [np.cos(3), 2 * np.cos(0.3), np.sin(3), 2 * np.sin(0.3)], rtol=1e-5)


def test_rope_scalings():
    plain = rope_frequencies(64, 500_000.0)
    np.testing.assert_allclose(rope_frequencies(64, 500_000.0, RopeScaling("linear", 8.0)), plain / 8, rtol=1e-6)
    scaled = rope_frequencies(64, 500_000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    wavelengths = 2 * np.pi / plain
    np.testing.assert_allclose(scaled[wavelengths < 8192 / 4], plain[wavelengths < 8192 / 4], rtol=1e-6)
    np.testing.assert_allclose(scaled[wavelengths > 8192], plain[wavelengths > 8192] / 8, rtol=1e-6)
    between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    assert between.any()
    assert np.all((scaled < plain)[between] & (scaled > plain / 8)[between])
    with pytest.raises(UserError, match="RopeScaling.kind 'dynamic' is unknown"):
        RopeScaling("dynamic", 8.0)
