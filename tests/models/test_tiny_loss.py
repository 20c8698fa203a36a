"""The loss that the tiny LM in the adapter keeps from stage 1: what it is, and what it costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from tests.training.small import partitioner
from vadapter.base import trees
from vadapter.base.batch import Features, Text
from vadapter.base.errors import UserError
from vadapter.models.losses import ObjectiveConfig
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.models.words import WordQuantizationConfig
from vadapter.training.step import loss_and_gradients

LM = dataclasses.replace(small.TINY, vocab_size=48, final_softcap=20.0, depth=1)
ADAPTER = dataclasses.replace(small.ADAPTERS["queries"], lm=LM, num_words=2, num_prefix=1)
STAGE2 = VLMConfig(small.decoder(depth=1), small.vit(depth=1), ADAPTER, repeat_stills=False)
STAGE1 = VLMConfig(LM, small.vit(depth=1), ADAPTER.front, repeat_stills=False)
HALF = ObjectiveConfig(tiny_loss=0.5)


def tiny_text(rows=8, media=1, frames=1):
    """Rows as stage 1 has them, of other ids and lengths than the decoder's."""
    batch = small.batch(STAGE1, rows, media, frames, seed=1)
    return Text(**{f.name: getattr(batch, f.name) for f in dataclasses.fields(Text)})


def stage2_batch(rows=8, media=1, frames=1):
    return small.batch(STAGE2, rows, media, frames).replace(tiny=tiny_text(rows, media, frames))


def params_of(model, batch):
    return nn.unbox(jax.jit(model.init)(jax.random.key(0), batch)["params"])


def loss_sums(model, variables, batch, settings=None):
    run = jax.jit(lambda variables, batch: model.apply(variables, batch, settings, method="loss_sums"))
    return run(variables, batch)


def handed_back(params):
    """The parameters of stage 1 that are in those of stage 2."""
    return {
        "encoder": params["encoder"],
        "adapter": params["adapter"]["front"],
        "decoder": params["adapter"]["lm"],
    }


@pytest.mark.parametrize(("media", "frames"), [(1, 1), (2, 2), (0, 1)])
def test_losses_and_gradients_are_those_of_both_stages(media, frames):
    model, stage1, batch = VLM(STAGE2), VLM(STAGE1), stage2_batch(media=media, frames=frames)
    params = params_of(model, stage2_batch())
    read = small.batch(STAGE1, 8, media, frames, seed=1).replace(media=batch.media)

    def plain(params):
        large = model.apply({"params": params}, batch, method="loss_sums").loss_sum
        return large + 0.5 * stage1.apply({"params": handed_back(params)}, read, method="loss_sums").loss_sum

    def ours(params):
        sums = model.apply({"params": params}, batch, HALF, method="loss_sums")
        return sums.minimised_sum, sums

    expected, wanted = jax.jit(jax.value_and_grad(plain))(params)
    (total, sums), found = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    alone = loss_sums(model, {"params": params}, batch)
    assert alone.tiny_sum is None
    np.testing.assert_allclose(sums.loss_sum, alone.loss_sum, rtol=1e-6)  # what is shown is the decoder's
    np.testing.assert_allclose(sums.tiny_sum, expected - alone.loss_sum, rtol=1e-4)
    wanted, found = trees.flatten(wanted), trees.flatten(found)
    for path, gradient in wanted.items():
        np.testing.assert_allclose(found[path], gradient, rtol=1e-3, atol=1e-5, err_msg=path)
    assert np.abs(found["adapter/lm/embedder/embedding"]).max() > 1e-3


def test_a_row_counts_as_much_as_in_the_decoders_loss():
    # Of two rows the second has a text of one piece for the tiny LM, and one that is skipped has no weight.
    model, batch = VLM(STAGE2), stage2_batch(rows=3)
    params = params_of(model, batch)
    few = np.ones((3, 4), np.float32)
    few[1, 1:] = 0
    skipped = batch.target_weights * np.array([[1], [1], [0]], np.float32)
    batch = batch.replace(target_weights=skipped, tiny=batch.tiny.replace(target_weights=few))
    sums = loss_sums(model, {"params": params}, batch, ObjectiveConfig(tiny_loss=1.0))
    read = small.batch(STAGE1, 3, seed=1).replace(media=batch.media)
    logits = VLM(STAGE1).apply({"params": handed_back(params)}, read, method="logits")
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), read.target_ids[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(sums.tiny_sum, 4 * losses[0].mean() + 4 * losses[1, 0], rtol=1e-5)


def test_parts_of_a_batch_and_eight_devices_give_the_same():
    model, batch = VLM(STAGE2), stage2_batch()
    params = params_of(model, batch)

    def objective(params, batch):
        return model.apply({"params": params}, batch, HALF, method="loss_sums")

    of = jax.jit(functools.partial(loss_and_gradients, objective), static_argnums=3)
    expected, wanted = of(params, {}, batch, 1)
    parts, found = of(params, {}, batch, 4)
    np.testing.assert_allclose(parts.tiny_sum, expected.tiny_sum, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, wanted)
    placed = partitioner(data=2, fsdp=2, tensor=2)
    with placed.activate():
        split = jax.jit(objective)(params, placed.put_batch(batch))
    np.testing.assert_allclose(split.tiny_sum, expected.tiny_sum, rtol=1e-4)
    np.testing.assert_allclose(split.loss_sum, expected.loss_sum, rtol=1e-4)


def test_the_encoder_runs_once_and_not_at_all_from_a_cache(monkeypatch):
    model, batch = VLM(STAGE2), stage2_batch()
    params = params_of(model, batch)
    calls, given = [], VLM.patch_tokens
    monkeypatch.setattr(VLM, "patch_tokens", lambda self, media: calls.append(1) or given(self, media))
    expected = loss_sums(model, {"params": params}, batch, HALF)
    assert len(calls) == 1
    tokens = model.apply({"params": params}, batch.media, method="patch_tokens")
    calls.clear()
    cached = loss_sums(model, {"params": params}, batch.replace(media=Features(tokens)), HALF)
    assert not calls
    np.testing.assert_allclose(cached.minimised_sum, expected.minimised_sum, rtol=1e-6)


def test_noise_of_a_quantization_still_comes_from_the_pixels():
    config = dataclasses.replace(STAGE2, quantization=WordQuantizationConfig("gumbel"))
    model, batch = VLM(config), stage2_batch()
    variables = {"params": params_of(model, batch), "training": {"step": jnp.int32(3)}}
    both = loss_sums(model, variables, batch, HALF)
    alone = loss_sums(model, variables, batch)
    np.testing.assert_allclose(both.loss_sum, alone.loss_sum, rtol=1e-5)


@pytest.mark.parametrize("adapter", ["mlp", "queries", "paper"])
def test_an_adapter_without_words_is_refused(adapter):
    with pytest.raises(UserError, match="num_words of 1 or more"):
        small.vlm(adapter).num_tiny_tokens(1)


def test_a_batch_without_the_text_is_refused_and_so_is_a_factor_below_0():
    model, batch = VLM(STAGE2), stage2_batch()
    params = params_of(model, batch)
    with pytest.raises(UserError, match="Batch.tiny"):
        loss_sums(model, {"params": params}, batch.replace(tiny=None), HALF)
    with pytest.raises(UserError, match="tiny_loss is -1"):
        ObjectiveConfig(tiny_loss=-1)


def test_the_further_reading_is_counted():
    batch = stage2_batch(rows=2)
    shapes = params_of(VLM(STAGE2), batch)
    trained = [path for path in trees.flatten(shapes) if path.startswith("adapter/")]
    count = STAGE2.flops(shapes, trained)
    with_it, without = count(batch), count(batch.replace(tiny=None))
    assert {part for part in with_it if with_it[part] != without[part]} == {"adapter/lm"}
    # What stage 1 counts for its decoder, with as many weights trained.
    handed = handed_back(shapes)
    stage1 = STAGE1.flops(handed, [p for p in trees.flatten(handed) if not p.startswith("encoder/")])
    assert with_it["adapter/lm"] - without["adapter/lm"] == stage1(small.batch(STAGE1, 2, seed=1))["decoder"]
