"""The published sizes, by shapes alone: nothing is allocated."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from vadapter.base.errors import UserError
from vadapter.models import variants
from vadapter.models.decoder import Decoder
from vadapter.models.vit import ViT

# Parameters of the published checkpoints. Several totals were also added up by hand from the published configurations.
DECODERS = {
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    # The published checkpoints hold a SigLIP encoder at 896 pixels and a projection as well, which are subtracted.
    "gemma3_4b": 4_300_079_472 - 416_866_032 - (1152 * 2560 + 1152),
    "gemma3_12b": 12_187_325_040 - 416_866_032 - (1152 * 3840 + 1152),
    "gemma3_27b": 27_432_406_640 - 416_866_032 - (1152 * 5376 + 1152),
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_1.5b": 1_543_714_304,
    "qwen2.5_3b": 3_085_938_688,
    "qwen2.5_7b": 7_615_616_512,
    "qwen2.5_14b": 14_770_033_664,
    "qwen2.5_32b": 32_763_876_352,
    "qwen2.5_72b": 72_706_203_648,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama3.2_1b": 1_235_814_400,
    "llama3.2_3b": 3_212_749_824,
    "llama3.1_8b": 8_030_261_248,
    "llama3.1_70b": 70_553_706_496,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1.7b": 1_711_376_384,
    "smollm3_3b": 3_075_098_624,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo2_13b": 13_716_198_400,
    "olmo2_32b": 32_234_279_936,
    "olmo3_7b": 7_298_011_136,
    "olmo3_32b": 32_233_522_176,
    # Added up from the published configurations; the model cards round them.
    "granite3.3_2b": 2_533_539_840,
    "granite3.3_8b": 8_170_864_640,
    "phi3_mini_4k": 3_821_079_552,
    "phi4": 14_659_507_200,
    "phi4_mini": 3_836_021_760,
}
ENCODERS = {
    "so400m_14_224": 412_442_352,  # PaliGemma's vision tower
    "so400m_14_896": 416_866_032,  # Gemma 3's
    "siglip_b_16_224": 92_884_224 - 7_087_104,  # the checkpoint without its pooling head
    "clip_l_14_224": 303_179_776 - 2 * 1024,  # the checkpoint without the norm of its pooled token
    "clip_l_14_336": 303_507_456 - 2 * 1024,
    # The checkpoints without the token that masks patches.
    "dinov2_s": 22_056_576 - 384,
    "dinov2_b": 86_580_480 - 768,
    "dinov2_l": 304_368_640 - 1024,
    "dinov2_g": 1_136_480_768 - 1536,
}


def count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nn.unbox(params)))


def decoder_shapes(name: str):
    def everything(model: Decoder, tokens):
        hidden, _ = model(model.embed(tokens), jnp.ones_like(tokens), jnp.zeros_like(tokens))
        return model.logits(hidden)

    model = Decoder(variants.decoder(name))
    tokens = jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, method=everything)["params"])


def encoder_shapes(name: str, **fields):
    config = variants.encoder(name, **fields)
    frame = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
    return jax.eval_shape(lambda x: ViT(config).init(jax.random.key(0), x)["params"], frame)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_have_the_published_number_of_parameters(name):
    assert count(decoder_shapes(name)) == DECODERS[name]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_the_published_number_of_parameters(name):
    assert count(encoder_shapes(name)) == ENCODERS[name]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("siglip2_so400m_16_naflex", 413),
        ("dinov3_vits16", 21.6),
        ("dinov3_vits16plus", 28.7),
        ("dinov3_vitb16", 85.6),
        ("dinov3_vitl16", 303),
        ("dinov3_vith16plus", 840),
        ("dinov3_vit7b16", 6716),
        ("aimv2_large_patch14_224", 309),
        ("aimv2_huge_patch14_336", 681),
        ("aimv2_1b_patch14_448", 1234),
        ("aimv2_3b_patch14_224", 2720),
        ("aimv2_large_patch14_native", 309),
    ],
)
def test_newer_encoders_have_about_the_published_size(name, millions):
    assert count(encoder_shapes(name)) == pytest.approx(millions * 1e6, rel=0.005)


def test_another_image_size_has_the_same_parameters():
    for name in ("so400m_14_384", "clip_l_14_336", "dinov2_b", "dinov3_vitb16", "aimv2_large_patch14_native"):
        assert count(encoder_shapes(name, image_size=224)) == count(encoder_shapes(name))


@pytest.mark.parametrize(("name", "millions"), [("vit_b", 86), ("vit_l", 303), ("vit_g", 1000)])
def test_the_papers_encoders(name, millions):
    config = variants.encoder(name)
    assert (config.image_size, config.num_patches) == (288, 256)
    assert count(encoder_shapes(name)) == pytest.approx(millions * 1e6, rel=0.015)


@pytest.mark.parametrize(("name", "billions"), [("palm_1b", 1.60), ("palm_8b", 9.68)])
def test_the_papers_large_decoders_count_in_all(name, billions):
    assert round(count(decoder_shapes(name)) / 1e9, 2) == billions


def test_the_papers_tiny_decoder_counts_without_its_table():
    shapes = decoder_shapes("palm_108m")
    assert 107e6 < count(shapes) - count(shapes["embedder"]) < 109e6


def test_every_variant_is_a_valid_configuration():
    for name in variants.ENCODERS:
        assert variants.encoder(name).num_patches > 0
    for name in variants.DECODERS:
        config = variants.decoder(name)
        assert len(config.local_layers) == config.depth
    assert variants.encoder("so400m_14_384").num_patches == 729


def test_gemma3_sees_far_in_every_sixth_layer():
    config = variants.decoder("gemma3_1b")
    assert [i for i, local in enumerate(config.local_layers) if not local] == [5, 11, 17, 23]
    assert (config.window, config.rope_base, config.rope_local_base, config.rope_scaling) == (512, 1e6, 1e4, None)
    large = variants.decoder("gemma3_4b")
    assert large.window == 1024 and large.rope_scaling is not None and large.rope_scaling.factor == 8


def test_fields_override_the_variant():
    assert variants.decoder("qwen3_4b", depth=2, dtype="float32") == dataclasses.replace(
        variants.decoder("qwen3_4b"), depth=2, dtype="float32"
    )


def test_without_a_variant_the_fields_are_the_configuration():
    config = variants.encoder(image_size=32, patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32)
    assert config.num_patches == 16
    with pytest.raises(UserError, match="encoder needs width, depth.*vit_b"):
        variants.encoder(image_size=32, patch_size=8, num_heads=2, mlp_dim=32)


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UserError, match="nearest is gemma3_1b.*llama3.1_8b"):
        variants.decoder("gemma_3_1b")
    with pytest.raises(UserError, match="widht.*width"):
        variants.decoder("gemma3_1b", widht=3)
