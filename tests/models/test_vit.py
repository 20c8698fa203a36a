import dataclasses
import logging

import jax
import numpy as np
import pytest
from flax import linen as nn

from tests.models import small
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models import serialization
from vadapter.models.position_embeddings import resample
from vadapter.models.vit import ViT

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def init(config):
    return nn.unbox(jax.jit(ViT(config).init)(jax.random.key(0), FRAMES)["params"])


def encode(config, params, frames=FRAMES):
    return np.asarray(jax.jit(ViT(config).apply)({"params": params}, frames))


def test_big_vision_names_and_shapes():
    shapes = {path: x.shape for path, x in trees.flatten(init(small.vit())).items()}
    block = "Transformer/encoderblock"
    assert shapes["embedding/kernel"] == (8, 8, 3, 32)
    assert shapes["pos_embedding"] == (1, 4, 32)
    assert shapes[f"{block}/MultiHeadDotProductAttention_0/query/kernel"] == (2, 32, 4, 8)
    assert shapes[f"{block}/MultiHeadDotProductAttention_0/out/kernel"] == (2, 4, 8, 32)
    assert shapes[f"{block}/MlpBlock_0/Dense_0/kernel"] == (2, 32, 64)
    assert shapes[f"{block}/LayerNorm_1/bias"] == (2, 32)
    assert shapes["Transformer/encoder_norm/scale"] == (32,)


def test_clip_options_add_and_remove_parameters():
    clip = trees.flatten(init(small.vit(class_token=True, pre_norm=True, final_norm=False, patch_bias=False)))
    assert clip["pos_embedding"].shape == (1, 5, 32)
    assert {"cls", "pre_norm/scale"} <= clip.keys()
    assert not {"embedding/bias", "Transformer/encoder_norm/scale"} & clip.keys()


@pytest.mark.parametrize("class_token", [False, True])
def test_patch_tokens_of_each_frame(class_token):
    config = small.vit(class_token=class_token)
    params = init(config)
    tokens = encode(config, params)
    assert tokens.shape == (3, 4, 32)
    alone = encode(config, params, FRAMES[1:2])
    np.testing.assert_allclose(alone[0], tokens[1], atol=1e-5)


def test_pixels_are_normalised_by_mean_and_std():
    params = init(small.vit())
    inverted = encode(small.vit(std=(-0.5, -0.5, -0.5)), params, 255 - FRAMES)
    np.testing.assert_allclose(inverted, encode(small.vit(), params), atol=1e-4)


def test_another_resolution_is_refused():
    with pytest.raises(UserError, match="image_size"):
        ViT(small.vit()).init(jax.random.key(0), np.zeros((1, 24, 24, 3), np.uint8))
    with pytest.raises(UserError, match="patch_size"):
        small.vit(patch_size=5)


@pytest.mark.parametrize("class_token", [False, True])
def test_a_table_of_another_grid_is_resampled_when_it_is_read(class_token):
    fields = dict(class_token=class_token, position_resampling="bicubic")
    config = small.vit(position_grid=5, **fields)
    params = init(config)
    assert params["pos_embedding"].shape == (1, 25 + class_token, 32)
    fitting = resample(np.asarray(params["pos_embedding"]), 4 + class_token, int(class_token), "bicubic")
    wanted = encode(small.vit(**fields), {**params, "pos_embedding": fitting})
    np.testing.assert_allclose(encode(config, params), wanted, atol=1e-5)
    aligned = dataclasses.replace(config, position_resampling="bilinear_aligned")
    assert np.abs(encode(aligned, params) - wanted).max() > 1e-3


def test_a_configuration_of_before_keeps_its_table():
    record = serialization.to_json(small.vit())
    for name in ("biases", "norm", "positions", "position_grid", "position_resampling", "rope_base", "patch_norm"):
        del record[name]
    del record["resize"]
    assert serialization.from_json(record) == small.vit()


def test_images_of_few_patches_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        small.vit(image_size=24, position_grid=6).make()
        assert not caplog.records
        for _ in range(2):
            small.vit(image_size=24, position_grid=7).make()
    assert [r.getMessage() for r in caplog.records if "7 x 7 patches and sees 3 x 3" in r.getMessage()]
    assert len(caplog.records) == 1 and "image_size of 32" in caplog.text


@pytest.mark.parametrize("positions", ["rotary", "sines"])
def test_positions_without_a_table_are_of_any_size(positions):
    config = small.vit(positions=positions, class_token=True, num_registers=2)
    params = init(config)
    assert "pos_embedding" not in params
    # One picture whose patches are all the same, but for their places.
    tokens = encode(config, params, np.full((1, 16, 16, 3), 100, np.uint8))[0]
    larger = dataclasses.replace(config, image_size=40)
    assert encode(larger, params, np.full((1, 40, 40, 3), 100, np.uint8)).shape == (1, 25, 32)
    if positions == "sines":
        assert np.abs(tokens - tokens[0]).max() > 1e-2


def test_rotary_positions_tell_places_apart():
    config = small.vit(positions="rotary", rope_base=10.0, depth=1)
    params = init(config)
    swapped = FRAMES.copy()
    swapped[:, :8], swapped[:, 8:] = FRAMES[:, 8:], FRAMES[:, :8]
    tokens, others = encode(config, params), encode(config, params, swapped)
    assert np.abs(others[:, [2, 3, 0, 1]] - tokens).max() > 1e-3


def test_only_the_named_maps_have_a_bias():
    paths = trees.flatten(init(small.vit(biases=("query", "out"), norm="rms", patch_norm=True))).keys()
    found = {path.split("/")[-2] for path in paths if path.endswith("/bias") and "encoderblock" in path}
    assert found == {"query", "out"}
    assert "patch_norm/scale" in paths


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": "rotary", "position_grid": 4}, "rotary positions have none"),
        ({"positions": "rotary", "num_heads": 16}, "a multiple of 4 channels .a head., and these are 2"),
        ({"positions": "fourier"}, "positions 'fourier'"),
        ({"position_resampling": "nearest"}, "position_resampling 'nearest'"),
        ({"biases": ("keys",)}, "'keys' is unknown"),
    ],
)
def test_settings_that_make_no_vit_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        small.vit(**fields)


DINOV2 = dict(class_token=True, num_registers=3, layer_scale=True, gated=True, activation="silu")


def test_dinov2_options_add_parameters():
    shapes = {path: x.shape for path, x in trees.flatten(init(small.vit(**DINOV2))).items()}
    assert shapes["registers"] == (1, 3, 32)
    assert shapes["pos_embedding"] == (1, 5, 32)
    assert shapes["Transformer/encoderblock/LayerScale_1/scale"] == (2, 32)
    assert shapes["Transformer/encoderblock/MlpBlock_0/Gate/kernel"] == (2, 32, 64)


def test_registers_change_the_patches_and_are_not_returned():
    config = small.vit(**DINOV2)
    params = init(config)
    tokens = encode(config, params)
    assert tokens.shape == (3, 4, 32)
    others = {**params, "registers": np.random.default_rng(1).normal(size=(1, 3, 32)).astype(np.float32)}
    assert np.abs(encode(config, others) - tokens).max() > 1e-3


def test_layers_scaled_by_nothing_add_nothing():
    config = small.vit(layer_scale=True, final_norm=False)
    params = init(config)
    blocks = params["Transformer"]["encoderblock"]
    none = {name: {"scale": blocks[name]["scale"] * 0} for name in ("LayerScale_0", "LayerScale_1")}
    without = {**params, "Transformer": {"encoderblock": {**blocks, **none}}}
    shallow = dataclasses.replace(config, depth=1)
    of_one = jax.tree.map(lambda x: x[:1], without["Transformer"])
    np.testing.assert_array_equal(encode(config, without), encode(shallow, {**without, "Transformer": of_one}))


def test_pixels_beyond_the_last_whole_patch_are_not_read():
    config = small.vit(image_size=16, patch_size=6, drop_edges=True)
    assert config.num_patches == 4
    params = init(config)
    changed = FRAMES.copy()
    changed[:, 12:] = changed[:, :, 12:] = 0
    np.testing.assert_array_equal(encode(config, params, changed), encode(config, params))
