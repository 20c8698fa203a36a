import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vadapter.models.losses import cross_entropy, label_cross_entropy
from vadapter.partitioning import MeshConfig, Partitioner, make_mesh


def example(vocab=23):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 3, 8)).astype(np.float32)
    table = rng.normal(size=(vocab, 8)).astype(np.float32)
    targets = rng.integers(0, vocab, (2, 3)).astype(np.int32)
    targets[0, 0], targets[1, 2] = 0, vocab - 1
    return hidden, table, targets, np.array([[1, 0.5, 0], [2, 1, 1]], np.float32)


def reference(hidden, table, targets, weights, softcap, z_loss):
    logits = hidden @ table.T
    if softcap:
        logits = softcap * np.tanh(logits / softcap)
    log_z = np.log(np.exp(logits).sum(-1))
    losses = log_z - np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    correct = logits.argmax(-1) == targets
    return (losses * weights).sum(), weights.sum(), (correct * weights).sum(), (z_loss * log_z**2 * weights).sum()


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [None, 5, 22, 23, 100])
def test_values_are_those_of_the_definition(softcap, chunk):
    args = example()
    sums = cross_entropy(*args, softcap=softcap, z_loss=0.1, vocab_chunk=chunk)
    found = (sums.loss_sum, sums.weight_sum, sums.correct_sum, sums.z_sum)
    np.testing.assert_allclose(found, reference(*args, softcap, 0.1), rtol=2e-6)
    # A factor on the logits, which comes before the cap, is one on the hidden states.
    hidden, *others = args
    scaled = cross_entropy(hidden / 4, *others, multiplier=4.0, softcap=softcap, z_loss=0.1, vocab_chunk=chunk)
    np.testing.assert_allclose(scaled.loss_sum, sums.loss_sum, rtol=2e-6)


@pytest.mark.parametrize("chunk", [5, 8])
def test_gradients_of_chunks_are_those_of_the_whole(chunk):
    hidden, table, targets, weights = example()

    def total(hidden, table, vocab_chunk):
        sums = cross_entropy(hidden, table, targets, weights, softcap=3.0, z_loss=0.1, vocab_chunk=vocab_chunk)
        return sums.loss_sum + sums.z_sum

    whole = jax.grad(total, (0, 1))(hidden, table, None)
    chunked = jax.grad(total, (0, 1))(hidden, table, chunk)
    for a, b in zip(whole, chunked, strict=True):
        assert np.abs(a).max() > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_large_logits_stay_finite():
    hidden, table, targets, weights = example()
    sums = cross_entropy(hidden * 1e4, table, targets, weights, vocab_chunk=5)
    assert np.isfinite(sums.loss_sum)


def test_equal_logits_count_as_the_lowest_id():
    hidden, table, _, _ = example()
    targets, weights = jnp.array([[0, 1, 22], [3, 0, 7]]), jnp.ones((2, 3))
    for chunk in (None, 5):
        assert cross_entropy(0 * hidden, table, targets, weights, vocab_chunk=chunk).correct_sum == 2


def test_bfloat16_states_are_summed_in_float32():
    hidden, table, targets, weights = example()
    sums = cross_entropy(hidden.astype(jnp.bfloat16), table, targets, weights, vocab_chunk=5)
    assert sums.loss_sum.dtype == jnp.float32
    np.testing.assert_allclose(sums.loss_sum, reference(hidden, table, targets, weights, None, 0)[0], rtol=0.02)


def test_chunks_never_make_all_logits():
    hidden, table, targets, weights = example(vocab=4096)

    def total(hidden):
        return cross_entropy(hidden, table, targets, weights, vocab_chunk=64).loss_sum

    text = jax.jit(jax.grad(total)).lower(hidden).as_text()
    assert "2x3x64xf32" in text
    assert "2x3x4096" not in text


def test_labels_that_are_absent_carry_no_loss():
    logits = (jnp.array([[0.0, 2.0], [1.0, 0.0]]), jnp.array([[0.0, 0.0, 0.0], [5.0, 0.0, 0.0]]))
    sums = label_cross_entropy(logits, jnp.array([[1, -1], [-1, 0]]), jnp.array([1.0, 2.0]))
    expected = np.log(1 + np.exp(-2.0)) + 2 * np.log(1 + 2 * np.exp(-5.0))
    np.testing.assert_allclose(sums.loss_sum, expected, rtol=1e-5)
    assert (sums.weight_sum, sums.correct_sum) == (3.0, 3.0)


@pytest.mark.parametrize("chunk", [None, 8])
def test_on_a_mesh_values_and_gradients_are_those_of_one_device(chunk):
    # 23 rows of the vocabulary do not divide over the 4 devices that share them: they are padded.
    rng = np.random.default_rng(1)
    args = [rng.normal(size=(8, 3, 8)).astype(np.float32), rng.normal(size=(23, 8)).astype(np.float32)]
    targets = rng.integers(0, 23, (8, 3)).astype(np.int32)
    weights = rng.random((8, 3)).astype(np.float32)

    def loss(hidden, table):
        sums = cross_entropy(hidden, table, targets, weights, vocab_chunk=chunk)
        return sums.loss_sum, sums

    step = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    partitioner = Partitioner(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    with partitioner.activate():
        compiled = jax.jit(step, in_shardings=(partitioner.batch_sharding, partitioner.replicated)).lower(*args)
        found = compiled.compile()(*args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, step(*args))
