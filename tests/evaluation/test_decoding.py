import jax
import numpy as np
import pytest

from tests.models import small
from vadapter.evaluation.decoding import EMPTY, make_generate
from vadapter.models.vlm import VLM
from vadapter.partitioning import MeshConfig, Partitioner, init_params, make_mesh

ONE = Partitioner(make_mesh(MeshConfig(), jax.devices()[:1]))
NEW = 5


@pytest.fixture(scope="module")
def setup():
    """A model, its parameters, and prompts of different lengths."""
    config = small.vlm()
    batch = small.batch(config)
    length = batch.tokens.shape[1]
    lengths = np.array([length, length - 1, length - 3, length - 2] * 2)
    keep = np.arange(length) < lengths[:, None]
    batch = batch.replace(
        tokens=np.where(keep, batch.tokens, 0),
        segment_ids=keep.astype(np.int32),
        positions=np.where(keep, batch.positions, 0),
        media_index=np.where(keep, batch.media_index, -1),
    )
    return VLM(config), init_params(VLM(config), batch, jax.random.key(0), ONE), batch, lengths


def slow_greedy(model, params, batch, lengths, eos_id):
    """Reads the whole row anew for every token."""
    logits_at = jax.jit(
        lambda batch, at: model.apply(
            {"params": params}, batch, at, method=lambda m, b, at: m.decoder.logits(_hidden(m, b, at))
        )
    )
    pad = [(0, 0), (0, NEW)]
    batch = batch.replace(
        tokens=np.pad(batch.tokens, pad),
        segment_ids=np.pad(batch.segment_ids, pad),
        positions=np.tile(np.arange(batch.tokens.shape[1] + NEW, dtype=np.int32), (8, 1)),
        media_index=np.pad(batch.media_index, pad, constant_values=-1),
    )
    out, ended, rows = np.zeros((8, NEW), int), np.zeros(8, bool), np.arange(8)
    for i in range(NEW):
        token = np.asarray(logits_at(batch, (lengths + i - 1)[:, None]))[:, 0].argmax(-1)
        ended |= token == eos_id
        out[:, i] = np.where(ended, EMPTY, token)
        tokens, segments = batch.tokens.copy(), batch.segment_ids.copy()
        tokens[rows, lengths + i], segments[rows, lengths + i] = np.where(ended, 0, token), 1
        batch = batch.replace(tokens=tokens, segment_ids=segments)
    return out


def _hidden(model, batch, at):
    hidden, _ = model.decoder(model.embed(batch), batch.segment_ids, batch.positions)
    return jax.numpy.take_along_axis(hidden, at[..., None], axis=1)


def generate(setup, partitioner, eos_id):
    model, params, batch, _ = setup
    run = make_generate(model, partitioner, max_new_tokens=NEW, eos_id=eos_id)
    return np.asarray(run(jax.device_put(params, partitioner.replicated), partitioner.put_batch(batch)))


def test_cached_generation_equals_reading_everything_anew(setup):
    model, params, batch, lengths = setup
    free = generate(setup, ONE, eos_id=-1)
    np.testing.assert_array_equal(free, slow_greedy(model, params, batch, lengths, -1))
    eos = int(free[0, 2])
    stopped = generate(setup, ONE, eos)
    np.testing.assert_array_equal(stopped, slow_greedy(model, params, batch, lengths, eos))
    assert (stopped[0, np.argmax(free[0] == eos) :] == EMPTY).all()


def test_sharded_generation_equals_unsharded(setup):
    many = Partitioner(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    np.testing.assert_array_equal(generate(setup, many, eos_id=-1), generate(setup, ONE, eos_id=-1))
