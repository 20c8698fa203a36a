"""Soft tokens as words: against plain numpy, on any mesh, and what gradients and noise reach."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from vadapter.base.errors import UserError
from vadapter.models import serialization, words
from vadapter.models.configuration import TRAINING
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.models.words import WordQuantizationConfig, nearest
from vadapter.partitioning import MeshConfig, Partitioner, init_params, make_mesh
from vadapter.training.objectives import make_objective
from vadapter.training.optimizers import OptimizerConfig
from vadapter.training.program import Program

ONE = Partitioner(make_mesh(MeshConfig(), jax.devices()[:1]))
MANY = Partitioner(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
SCALED = small.decoder(scale_embedding=True, embedding_multiplier=1.5)


def quantized(kind, **fields):
    return WordQuantizationConfig(kind, **{"temperature": 0.7, **fields})


def vlm(quantization, **changes):
    return small.vlm("mlp", quantization=quantization, **changes)


@pytest.fixture(scope="module")
def world():
    config = vlm(None, decoder=SCALED)
    batch = small.batch(config, rows=4)
    return batch, nn.unbox(jax.jit(VLM(config).init)(jax.random.key(0), batch)["params"])


def soft_tokens(quantization, params, media, step=None, config=None):
    config = config or vlm(quantization, decoder=SCALED)
    beside = {} if step is None else {TRAINING: {"step": jnp.int32(step)}}
    return np.asarray(VLM(config).apply({"params": params, **beside}, media, method="soft_tokens"))


def by_hand(world):
    """Raw soft tokens, the table as text is read, and the logits of the docstring."""
    batch, params = world
    raw = soft_tokens(None, params, batch.media).astype(np.float64)
    table = np.asarray(params["decoder"]["embedder"]["embedding"], np.float64) * 32**0.5 * 1.5
    cosines = raw @ table.T / np.linalg.norm(raw, axis=-1, keepdims=True) / np.linalg.norm(table, axis=-1)
    return raw, table, np.sqrt(32) * cosines


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("chunk", [None, 10])
@pytest.mark.parametrize("step", [None, 3])
def test_softmax_is_a_mean_of_the_rows(world, chunk, step):
    _, table, logits = by_hand(world)
    settings = quantized("softmax", vocab_chunk=chunk, end_temperature=0.3, decay_steps=6)
    found = soft_tokens(settings, world[1], world[0].media, step)
    temperature = 0.3 if step is None else 0.5
    np.testing.assert_allclose(found, softmax(logits / temperature) @ table, atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 10])
@pytest.mark.parametrize("kind", ["gumbel", "straight_through"])
def test_outside_of_training_a_soft_token_is_its_nearest_row(world, kind, chunk):
    _, table, logits = by_hand(world)
    found = soft_tokens(quantized(kind, vocab_chunk=chunk), world[1], world[0].media)
    np.testing.assert_allclose(found, table[logits.argmax(axis=-1)], rtol=1e-6)


def test_a_temperature_near_0_is_the_nearest_row(world):
    _, table, logits = by_hand(world)
    found = soft_tokens(quantized("softmax", temperature=1e-4), world[1], world[0].media)
    np.testing.assert_allclose(found, table[logits.argmax(axis=-1)], rtol=1e-4, atol=1e-5)


def test_words_are_what_the_decoder_reads_of_text(world):
    batch, params = world
    found = soft_tokens(quantized("gumbel"), params, batch.media, step=5)
    config = vlm(None, decoder=SCALED)
    read = VLM(config).apply({"params": params}, method=lambda m: m.decoder.embed(jnp.arange(64)[None]))[0]
    for token in found.reshape(-1, 32):
        assert (np.asarray(read) == token).all(axis=-1).any()


def test_noise_is_of_the_step_and_the_picture_alone(world):
    batch, params = world
    settings = quantized("gumbel")
    first = soft_tokens(settings, params, batch.media, step=1)
    assert (first != soft_tokens(settings, params, batch.media, step=2)).any()
    assert (first != soft_tokens(dataclasses.replace(settings, seed=1), params, batch.media, step=1)).any()
    np.testing.assert_array_equal(first[::-1], soft_tokens(settings, params, batch.media[::-1], step=1))
    np.testing.assert_array_equal(first[1:2], soft_tokens(settings, params, batch.media[1:2], step=1))


@pytest.mark.parametrize("chunk", [None, 10])
def test_noise_chooses_words_as_often_as_the_softmax_says(world, chunk):
    """The Gumbel-max trick: at any temperature the argmax of noisy logits is a draw from softmax(logits)."""
    batch, params = world
    _, table, logits = by_hand(world)
    config = vlm(quantized("gumbel", temperature=5.0, vocab_chunk=chunk), decoder=SCALED)

    def draw(step):
        variables = {"params": params, TRAINING: {"step": step}}
        return VLM(config).apply(variables, batch.media, method="soft_tokens")

    drawn = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(600)))
    mean, expected = drawn.mean(axis=0), softmax(logits) @ table
    error = drawn.std(axis=0) / 600**0.5
    assert (np.abs(mean - expected) < 5 * error + 1e-6).mean() > 0.999


def gradients(quantization, world, step=1, config=None):
    batch, params = world
    config = config or vlm(quantization, decoder=SCALED)
    weights = np.random.default_rng(0).normal(size=(4, 4, 32))

    def value(params):
        variables = {"params": params, TRAINING: {"step": jnp.int32(step)}}
        return (VLM(config).apply(variables, batch.media, method="soft_tokens") * weights).sum()

    return jax.jit(jax.grad(value))(params)


def test_gradients_of_noisy_words_are_those_of_the_softmax(world):
    batch, params = world
    noise = words._gumbel(words._keys(0, jnp.int32(1), batch.media), jnp.int32(0), 4, 64)

    def value(params):
        """The definition, without chunks: what straight-through Gumbel-softmax differentiates."""
        config = vlm(None, decoder=SCALED)
        raw = VLM(config).apply({"params": params}, batch.media, method="soft_tokens")
        table = params["decoder"]["embedder"]["embedding"] * 32**0.5 * 1.5
        unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (raw, table)]
        weights = jax.nn.softmax((32**0.5 * unit[0] @ unit[1].T + noise) / 0.7)
        return (weights @ table * np.random.default_rng(0).normal(size=(4, 4, 32))).sum()

    found, expected = gradients(quantized("gumbel", vocab_chunk=None), world), jax.jit(jax.grad(value))(params)
    for part, path in (("adapter", ("dense_0", "kernel")), ("decoder", ("embedder", "embedding"))):
        a, b = found[part][path[0]][path[1]], expected[part][path[0]][path[1]]
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_chunks_change_no_gradient(world):
    whole, chunked = (gradients(quantized("softmax", vocab_chunk=chunk), world) for chunk in (None, 10))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), whole, chunked)


def test_straight_through_gives_the_gradient_of_the_soft_token(world):
    found, plain = gradients(quantized("straight_through"), world), gradients(None, world)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, plain)
    assert not np.asarray(found["decoder"]["embedder"]["embedding"]).any()


def one_update(quantization, world, accumulate=1):
    batch, params = world
    optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=0, accumulate=accumulate)
    fields = {"trainable": ("adapter/.*",), "frozen_dtype": "float32", "optimizer": optimizer, "steps": 4}
    program = Program(VLM(vlm(quantization, decoder=SCALED)), batch, partitioner=ONE, **fields)
    state, frozen = program.start(jax.tree.map(jnp.array, params))
    state, metrics = program.step(state, frozen, program.put(batch))
    return jax.device_get((state.params, frozen, metrics))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "gumbel", "straight_through"])
def test_a_frozen_table_stays_while_the_adapter_learns(world, kind):
    trained, frozen, _ = one_update(quantized(kind), world)
    change = trained["adapter"]["dense_0"]["kernel"] - np.asarray(world[1]["adapter"]["dense_0"]["kernel"])
    assert np.abs(change).max() > 1e-4
    table = np.asarray(world[1]["decoder"]["embedder"]["embedding"])
    np.testing.assert_array_equal(frozen["decoder"]["embedder"]["embedding"], table)


def test_training_draws_noise_and_evaluation_none(world):
    batch, params = world
    settings = quantized("gumbel")
    _, _, metrics = one_update(settings, world)
    objective = make_objective(VLM(vlm(settings, decoder=SCALED)))
    held, noisy = (f(params, batch).loss_sum / 16 for f in (objective, objective.at(jnp.int32(0))))
    assert metrics["loss"] == pytest.approx(float(noisy), rel=1e-5)
    assert metrics["loss"] != pytest.approx(float(held), rel=1e-3)


@pytest.mark.slow
def test_a_batch_in_parts_draws_the_same_noise(world):
    whole, parts = (one_update(quantized("gumbel"), world, accumulate)[2]["loss"] for accumulate in (1, 2))
    assert parts == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["softmax", "gumbel", "straight_through"])
@pytest.mark.parametrize("chunk", [None, 10])
def test_sharded_equals_unsharded(kind, chunk):
    config = vlm(quantized(kind, vocab_chunk=chunk))
    batch = small.batch(config)
    params = init_params(VLM(config), batch, jax.random.key(0), MANY)

    def loss(params, batch):
        variables = {"params": params, TRAINING: {"step": jnp.int32(7)}}
        return (VLM(config).apply(variables, batch) ** 2).mean()

    def found(params, placed):
        with placed.activate():
            return jax.device_get(jax.jit(jax.value_and_grad(loss))(params, placed.put_batch(batch)))

    one, many = found(jax.device_get(params), ONE), found(params, MANY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), many, one)


@pytest.mark.parametrize("chunk", [None, 10, 3])
@pytest.mark.parametrize("placed", [ONE, MANY], ids=["one", "many"])
def test_nearest_words(chunk, placed):
    rng = np.random.default_rng(0)
    table, soft = rng.normal(size=(62, 16)).astype(np.float32), rng.normal(size=(8, 3, 16)).astype(np.float32)
    soft[0, 0] = 7 * table[41]
    with placed.activate():
        found = jax.jit(lambda x, y: nearest(x, y, 4, chunk))(soft, table)
    ids, similarities = map(np.asarray, found)
    assert ids[0, 0, 0] == 41 and similarities[0, 0, 0] == pytest.approx(1, abs=1e-5)
    lengths = np.linalg.norm(soft, axis=-1)[..., None] * np.linalg.norm(table, axis=-1)
    cosines = soft @ table.T / lengths
    np.testing.assert_array_equal(ids, np.argsort(-cosines, axis=-1)[..., :4])
    np.testing.assert_allclose(similarities, -np.sort(-cosines, axis=-1)[..., :4], atol=1e-5)


def test_words_are_counted_from_1_to_all():
    with pytest.raises(UserError, match="1 to 5 words"):
        nearest(jnp.ones((1, 1, 2)), jnp.ones((5, 2)), 6)


def test_every_row_is_its_own_nearest_in_bfloat16():
    table = jax.random.normal(jax.random.key(0), (512, 64), jnp.bfloat16) * 0.05
    scaled = table * jnp.asarray(64**0.5, jnp.bfloat16)
    ids, _ = nearest(scaled[None], table, 1)
    np.testing.assert_array_equal(np.asarray(ids)[0, :, 0], np.arange(512))


def test_model_json_has_the_quantization_and_older_ones_have_none():
    config = vlm(quantized("gumbel", end_temperature=0.5, decay_steps=100))
    record = serialization.to_json(config)
    assert serialization.from_json(record) == config
    del record["quantization"]
    assert serialization.from_json(record) == dataclasses.replace(config, quantization=None)


def test_flops_count_the_products_with_the_table(world):
    batch, params = world

    def flops(quantization, trainable):
        return vlm(quantization, decoder=SCALED).flops(params, trainable)(batch)["decoder"]

    table, tokens, adapter = 64 * 32, 4 * 4, ("adapter/dense_0/kernel",)
    assert flops(quantized("softmax"), adapter) - flops(None, adapter) == 2 * 2 * 2 * table * tokens
    assert flops(quantized("straight_through"), adapter) - flops(None, adapter) == 2 * table * tokens


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "hard"}, "gumbel"),
        ({"temperature": 0.0}, "above 0"),
        ({"end_temperature": 1.0}, "come together"),
        ({"decay_steps": 5}, "come together"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        WordQuantizationConfig(**fields)


def test_a_language_model_has_no_soft_tokens():
    with pytest.raises(UserError, match="quantization"):
        VLMConfig(small.decoder(), quantization=WordQuantizationConfig())
