import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from vadapter.base.errors import UserError
from vadapter.models.vlm import VLM, VLMConfig
from vadapter.partitioning import MeshConfig, Partitioner, init_params, make_mesh

ONE = Partitioner(make_mesh(MeshConfig(), jax.devices()[:1]))
MANY = Partitioner(make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))


def init(config, batch):
    return nn.unbox(jax.jit(VLM(config).init)(jax.random.key(0), batch)["params"])


def hidden(config, params, batch):
    return np.asarray(jax.jit(VLM(config).apply)({"params": params}, batch))


def test_images_matter_and_only_their_own_row():
    config = small.vlm()
    batch = small.batch(config, rows=2)
    params = init(config, batch)
    media = batch.media.copy()
    media[0] = 255 - media[0]
    change = np.abs(hidden(config, params, batch.replace(media=media)) - hidden(config, params, batch)).max(axis=(1, 2))
    assert change[0] > 1e-4
    assert change[1] == 0


def test_media_index_says_which_medium_fills_a_slot():
    config = small.vlm()
    batch = small.batch(config, rows=2, media=2)
    params = init(config, batch)
    tokens = config.num_visual_tokens(1)
    index = batch.media_index
    swapped_index = np.where(index >= 0, (index + tokens) % (2 * tokens), -1)
    swapped = batch.replace(media=batch.media[:, ::-1], media_index=swapped_index)
    np.testing.assert_allclose(hidden(config, params, swapped), hidden(config, params, batch), atol=1e-5)
    np.testing.assert_raises(
        AssertionError,
        np.testing.assert_allclose,
        hidden(config, params, batch.replace(media_index=swapped_index)),
        hidden(config, params, batch),
        atol=1e-5,
    )


def test_a_still_image_counts_as_its_own_copies():
    config = small.vlm("perceiver", num_frames=2)
    still = small.batch(config)
    params = init(config, still)
    copies = still.replace(media=np.repeat(still.media, 2, axis=2))
    np.testing.assert_allclose(hidden(config, params, still), hidden(config, params, copies), atol=1e-5)


def test_a_still_image_is_encoded_once():
    config = small.vlm("perceiver", num_frames=2)
    still = small.batch(config)
    model = VLM(config)
    params = init(config, still)

    def flops(batch):
        compiled = (
            jax.jit(lambda p, m: model.apply({"params": p}, m, method="encode")).lower(params, batch.media).compile()
        )
        return compiled.cost_analysis()["flops"]

    copies = still.replace(media=np.repeat(still.media, 2, axis=2))
    assert flops(still) < 0.6 * flops(copies)


def test_a_language_model_needs_no_media():
    config = VLMConfig(small.decoder(tied_head=False))
    batch = small.batch(config, media=0)
    params = init(config, batch)
    assert set(params) == {"decoder"}
    assert hidden(config, params, batch).shape == (8, 4, 32)
    logits = VLM(config).apply({"params": params}, batch, method="logits")
    assert logits.shape == (8, 4, 64)


def test_the_loss_is_that_of_the_logits():
    config = VLMConfig(small.decoder(logits_multiplier=4.0, final_softcap=3.0))
    batch = small.batch(config, media=0)
    params = init(config, batch)
    sums = VLM(config).apply({"params": params}, batch, method="loss_sums")
    losses = -jax.nn.log_softmax(VLM(config).apply({"params": params}, batch, method="logits"))
    losses = np.take_along_axis(np.asarray(losses), batch.target_ids[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(sums.loss_sum, (losses * batch.target_weights).sum(), rtol=1e-5)


def test_encoder_and_adapter_come_together():
    with pytest.raises(UserError, match="encoder and adapter"):
        VLMConfig(small.decoder(), encoder=small.vit())


def loss_and_gradients(config, params, batch, partitioner):
    model = VLM(config)

    def loss(params, batch):
        return (model.apply({"params": params}, batch) ** 2).mean()

    with partitioner.activate():
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params, partitioner.put_batch(batch)))


@pytest.mark.slow
def test_parameters_do_not_depend_on_the_mesh():
    config = small.vlm("perceiver")
    batch = small.batch(config)
    sharded = init_params(VLM(config), batch, jax.random.key(0), MANY)
    alone = init_params(VLM(config), batch, jax.random.key(0), ONE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), sharded, alone)
    kernel = sharded["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["perceiver", "paper", "queries", "pooler_reused"])
def test_sharded_equals_unsharded(adapter):
    check_sharded(small.vlm(adapter))


@pytest.mark.slow
def test_sharded_decoders_equal_unsharded_ones():
    norms = {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_over": "all_heads"}
    pattern = {"attention_pattern": ("local", "global"), "window": 3, "rope_pattern": (True, False), "rope_dim": 6}
    check_sharded(small.vlm(decoder=small.decoder(**norms, **pattern)))


def check_sharded(config):
    batch = small.batch(config)
    params = init_params(VLM(config), batch, jax.random.key(0), MANY)
    found = loss_and_gradients(config, params, batch, MANY)
    expected = loss_and_gradients(config, jax.device_get(params), batch, ONE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), found, expected)
