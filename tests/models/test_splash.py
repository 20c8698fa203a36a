import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from vadapter.base.errors import UserError
from vadapter.models import splash, tpu_kernels
from vadapter.models.attention import attend
from vadapter.models.decoder import Decoder
from vadapter.models.layers import remat
from vadapter.models.masks import Visibility
from vadapter.models.resampler import AttentionalPooler
from vadapter.models.vit import ViT
from vadapter.partitioning import DEFAULT_RULES, MeshConfig, Partitioner, make_mesh

pytestmark = pytest.mark.slow


def packed(length, lengths):
    """Rows of segments of the given lengths, then padding."""
    segments, positions = np.zeros((2, len(lengths), length), np.int32)
    for row, sizes in enumerate(lengths):
        at = 0
        for i, size in enumerate(sizes):
            segments[row, at : at + size] = i + 1
            positions[row, at : at + size] = np.arange(size)
            at += size
    return jnp.asarray(segments), jnp.asarray(positions)


def arrays(rows, queries, keys, heads, kv_heads, dim, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(rows, queries, heads, dim), (rows, keys, kv_heads, dim), (rows, keys, kv_heads, dim)]
    return [jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for shape in shapes]


def outcome(impl, inputs, mask, weights, **options):
    """Attention and its gradients, of what `weights` lets count."""

    def total(*inputs):
        out = attend(*inputs, mask, scale=0.3, impl=impl, **options)
        return jnp.sum(jnp.sin(out) * weights), out

    with tpu_kernels.interpreted():
        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*inputs)
    assert np.isfinite(out).all()
    return out * weights, *gradients


def assert_same(inputs, mask=None, weights=None, **options):
    weights = jnp.ones(inputs[0].shape[:2]) if weights is None else weights
    weights = weights[..., None, None]
    plain = outcome("xla", inputs, mask, weights, **options)
    for a, b in zip(outcome("splash", inputs, mask, weights, **options), plain, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("kv_heads", "causal", "window", "cap"),
    [(1, True, None, None), (2, True, 40, 3.0), (4, False, 40, None)],
)
def test_equals_plain_attention_on_packed_rows(kv_heads, causal, window, cap):
    segments, positions = packed(200, [[90, 70], [200]])
    seen = Visibility(positions, positions, segments, segments, causal=causal, window=window)
    assert_same(arrays(2, 200, 200, 4, kv_heads, 24), seen, segments > 0, softcap=cap)


def test_equals_plain_attention_over_many_blocks(monkeypatch):
    monkeypatch.setattr(splash, "_MAX_BLOCK", 128)
    segments, positions = packed(300, [[200, 90]])
    seen = Visibility(positions, positions, segments, segments, window=50)
    assert_same(arrays(1, 300, 300, 2, 1, 8), seen, segments > 0, softcap=5.0)


@pytest.mark.parametrize(("queries", "keys"), [(7, 130), (128, 128)])
def test_equals_plain_cross_attention(queries, keys):
    assert_same(arrays(1, queries, keys, 2, 2, 88))


@pytest.mark.parametrize("length", [1, 128, 257, 336, 513, 640, 1100])
def test_blocks_hold_the_length_with_little_to_spare(length):
    block, padded = splash._blocks(length)
    assert block % 128 == 0 and block <= 512
    assert padded % block == 0 and length <= padded < length + 128 * (padded // block)


def test_decoder_of_local_and_global_layers_trains_alike():
    plain = small.decoder(attention_pattern=("local", "global"), window=3, num_kv_heads=1, remat="full")
    segments, positions = packed(12, [[7, 4], [12]])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, plain.width)), jnp.float32)
    params = jax.jit(Decoder(plain).init)(jax.random.key(0), x, segments, positions)

    def loss(impl, params):
        model = Decoder(dataclasses.replace(plain, attention_impl=impl))
        hidden, _ = model.apply(params, x, segments, positions)
        return jnp.sum(hidden**3 * (segments > 0)[..., None])

    with tpu_kernels.interpreted():
        gradients = [jax.jit(jax.grad(lambda p, impl=impl: loss(impl, p)))(params) for impl in ("splash", "xla")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-3), *gradients)


def test_decoding_with_a_cache_needs_no_kernel():
    plain = small.decoder()
    segments, positions = packed(4, [[4]])
    x = jnp.ones((1, 4, plain.width))
    params = jax.jit(Decoder(plain).init)(jax.random.key(0), x, segments, positions)
    model = Decoder(dataclasses.replace(plain, attention_impl="splash"))
    hidden, cache = jax.jit(model.apply)(params, x, segments, positions, model.empty_cache(1, 8))
    again, _ = jax.jit(model.apply)(params, x[:, :1], segments[:, :1], positions[:, 3:] + 1, cache)
    assert np.isfinite(hidden).all() and np.isfinite(again).all()


def test_sharded_over_rows_and_heads_equals_whole():
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, tensor=4)), DEFAULT_RULES)
    segments, positions = packed(20, [[12, 8], [9], [20], [5, 5, 5]] * 2)
    seen = Visibility(positions, positions, segments, segments, window=6)
    inputs = arrays(8, 20, 20, 4, 2, 8)
    weights = (segments > 0)[..., None, None]
    whole = outcome("splash", inputs, seen, weights)
    with partitioner.activate():
        parts = outcome("splash", inputs, seen, weights)
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_encoder_and_pooler_take_it():
    frames = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    visual = jnp.ones((1, 1, 5, 12))
    for module, plain, x in ((ViT, small.vit(depth=1), frames), (AttentionalPooler, small.pooler(), visual)):
        params = jax.jit(module(plain).init)(jax.random.key(0), x)
        with tpu_kernels.interpreted():
            out = jax.jit(module(dataclasses.replace(plain, attention_impl="splash")).apply)(params, x)
        np.testing.assert_allclose(out, jax.jit(module(plain).apply)(params, x), atol=1e-5)


def test_a_mesh_of_other_devices_is_refused_early():
    partitioner = Partitioner(make_mesh(MeshConfig()), DEFAULT_RULES)
    inputs = arrays(8, 4, 4, 2, 2, 8)
    with partitioner.activate(), pytest.raises(UserError, match="'cpu'.*'xla'"):
        jax.eval_shape(lambda *x: attend(*x, None, scale=1.0, impl="splash"), *inputs)


class Attends(nn.Module):
    def __call__(self, x):
        return jnp.sin(attend(x, x, x, None, scale=1.0, impl="splash"))


@pytest.mark.parametrize(("policy", "computed_again"), [("full", True), ("dots", False)])
def test_a_policy_saves_the_kernels_results(policy, computed_again):
    layer = remat(Attends, policy)()
    equations = jax.make_jaxpr(jax.grad(lambda x: layer.apply({}, x).sum()))(jnp.ones((1, 8, 2, 8))).eqns
    [backward] = [e for e in equations if "policy" in e.params]
    assert (f"name={tpu_kernels.RESIDUALS}" in str(backward.params["jaxpr"])) == computed_again
