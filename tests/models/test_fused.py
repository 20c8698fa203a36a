import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models.test_splash import packed
from vadapter.base.errors import UserError
from vadapter.models import decoder, fused, tpu_kernels
from vadapter.models.decoder import Decoder, DecoderConfig
from vadapter.partitioning import MeshConfig, Partitioner, make_mesh

SMALL = DecoderConfig(
    vocab_size=16, width=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=128, mlp_dim=32, dtype="float32"
)


def rows(config, lengths, length=24):
    segments, positions = packed(length, lengths)
    x = jax.random.normal(jax.random.key(1), (len(lengths), length, config.width))
    params = nn.unbox(jax.jit(Decoder(config).init)(jax.random.key(0), x, segments, positions)["params"])
    return params, x, segments, positions


def results(config, params, x, segments, positions):
    """Hidden states, and the gradients of what is no padding with respect to parameters and inputs."""

    def total(params, x):
        out, _ = Decoder(config).apply({"params": params}, x, segments, positions)
        return jnp.sum(jnp.sin(out) * (segments > 0)[..., None]), out

    with tpu_kernels.interpreted():
        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(params, x)
    return out * (segments > 0)[..., None], gradients


def assert_same(config, *inputs):
    plain = results(config, *inputs)
    fused = results(dataclasses.replace(config, attention_impl="fused"), *inputs)
    for ours, expected in zip(jax.tree.leaves(fused), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_decoder_computes_what_it_does_with_xla(kv_heads):
    config = dataclasses.replace(SMALL, num_kv_heads=kv_heads, remat="dots")
    assert_same(config, *rows(config, [[9, 11], [24], [5]]))


def test_windows_scales_and_layers_without_rotation_hold():
    config = dataclasses.replace(
        SMALL, attention_pattern=("local", "global"), window=5, rope_pattern=(True, False), query_scale=0.5
    )
    assert_same(config, *rows(config, [[9, 11], [24]]))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_each_device_computes_its_rows_and_heads(kv_heads):
    config = dataclasses.replace(SMALL, num_kv_heads=kv_heads)
    params, x, segments, positions = rows(config, [[24], [20], [7, 9], [24]])
    expected = results(config, params, x, segments, positions)
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, tensor=4)))
    with partitioner.activate():
        found = results(dataclasses.replace(config, attention_impl="fused"), params, x, segments, positions)
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-4)


def test_cached_decoding_is_xlas():
    config = dataclasses.replace(SMALL, attention_impl="fused")
    params, x, segments, positions = rows(config, [[24]])

    def last(config):
        module = Decoder(config)
        _, cache = module.apply(
            {"params": params}, x[:, :23], segments[:, :23], positions[:, :23], module.empty_cache(1, 24)
        )
        return module.apply({"params": params}, x[:, 23:], segments[:, 23:], positions[:, 23:], cache)[0]

    np.testing.assert_array_equal(last(config), last(SMALL))


def assert_is_xlas(config):
    params, *inputs = rows(config, [[24]])
    implementations = (dataclasses.replace(config, attention_impl=impl) for impl in ("xla", "fused"))
    np.testing.assert_array_equal(*[Decoder(c).apply({"params": params}, *inputs)[0] for c in implementations])


@pytest.mark.parametrize("more", [{"head_dim": 64}, {"rope_dim": 64}, {"attention_softcap": 5.0}])
def test_what_the_kernel_cannot_do_is_xlas(more):
    assert_is_xlas(dataclasses.replace(SMALL, **more))


def test_an_unknown_implementation_names_those_of_a_decoder():
    with pytest.raises(UserError, match="'flash'.*xla, cudnn, splash, fused"):
        dataclasses.replace(SMALL, attention_impl="flash")


def test_longer_rows_are_xlas(monkeypatch):
    monkeypatch.setattr(decoder, "FUSED_SLOTS", 16)
    assert_is_xlas(SMALL)


def test_a_device_that_computes_otherwise_is_refused(monkeypatch):
    with tpu_kernels.interpreted():
        fused.check(heads=4, groups=2, dim=128)
        right = fused._rotate
        monkeypatch.setattr(fused, "_rotate", lambda x, cos, sin: right(x, cos, -sin))
        with pytest.raises(UserError, match="'fused' computes results that differ from plain attention by .*'xla'"):
            fused.check(heads=4, groups=2, dim=128)


def test_other_platforms_are_refused():
    config = dataclasses.replace(SMALL, attention_impl="fused")
    params, x, segments, positions = rows(SMALL, [[24]])
    active = Partitioner(make_mesh(MeshConfig(), jax.devices()[:1])).activate()
    with active, pytest.raises(UserError, match="attention_impl 'fused' is a kernel for TPUs.*'cpu'"):
        Decoder(config).apply({"params": params}, x, segments, positions)
