"""Vision encoders of transformers, at the image size of their pretraining and at others.

Names of tensors, refusals and the live comparison are in `test_huggingface`, with those of the decoders.
"""

import dataclasses
import re

import numpy as np
import pytest

from tests.weights import families, published_decoders, published_encoders
from tests.weights.test_huggingface import TOLERANCE, described, source
from vadapter.base import trees
from vadapter.models import variants
from vadapter.weights.recognise import recognise


@pytest.mark.parametrize("family", families.ENCODERS)
def test_patch_tokens_are_those_of_transformers(family):
    config, params, _ = families.load(source(family), "encoder")
    golden = families.outputs(family)
    for name, frames in families.frames_of(golden).items():
        ours = families.patches(config, params, frames)
        np.testing.assert_allclose(ours, golden[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("siglip", {"position_resampling": "bicubic_antialias"}),
        ("clip", {"position_resampling": "bilinear_aligned"}),
        ("dinov2", {"position_resampling": "bicubic_antialias"}),
        ("dinov2_with_registers", {"position_resampling": "bicubic"}),
        ("siglip2_naflex", {"position_resampling": "bicubic_antialias"}),
        ("dinov3", {"rope_base": 10.0}),
        ("dinov3_7b", {"norm_eps": 1e-2}),
        ("aimv2_native", {"activation": "gelu"}),
    ],
)
def test_the_golden_files_notice_a_wrong_setting(family, change):
    config, params, _ = families.load(source(family), "encoder")
    golden = families.outputs(family)
    ours = families.patches(dataclasses.replace(config, **change), params, golden["frames_2"])
    assert np.abs(ours - golden["patches_2"]).max() > 10 * TOLERANCE


def test_naflex_is_read_on_square_pictures_and_says_so():
    config, _, found = families.load(source("siglip2_naflex"))
    assert (config.image_size, config.position_grid, config.patch_size) == (16, 4, 4)
    assert "square, of 16 pixels or of the encoder.image_size" in " ".join(found.notes)


def apples(name):
    """Names of Apple's own code."""
    for theirs, pattern in {
        "preprocessor.patchifier.proj": r"embeddings\.patch_embed",
        "preprocessor.patchifier.norm": r"embeddings\.rms_norm",
        "trunk.blocks": r"encoder\.layers",
        "attn.proj": r"attention\.out_proj",
        "mlp.fc1": r"ffn\.gate_proj",
        "mlp.fc2": r"ffn\.down_proj",
        "mlp.fc3": r"ffn\.up_proj",
        "norm_": r"rms_norm(?=\d)",
        "trunk.post_trunk_norm": "^rms_norm",
    }.items():
        name = re.sub(pattern, theirs, name)
    return name


@pytest.mark.parametrize("family", ["aimv2", "aimv2_native"])
def test_aimv2_as_apples_own_code_saves_it(family):
    arrays = {name: x for name, x in families.tensors(family).items() if not name.startswith("head.")}
    wanted_config, wanted, _ = families.load(source(family))
    for i in range(wanted_config.depth):
        parts = [arrays.pop(f"encoder.layers.{i}.attention.{name}_proj.weight") for name in "qkv"]
        arrays[f"trunk.blocks.{i}.attn.qkv.weight"] = np.concatenate(parts)
    if family == "aimv2":
        arrays["preprocessor.pos_embed"] = arrays.pop("embeddings.position_embedding.weight")[None]
    hidden = ("architectures", "is_native", "mlp_bias", "hidden_act")
    settings = {name: x for name, x in families.config(family).items() if name not in hidden}
    opened = families.opened(
        {**settings, "model_type": "aimv2", "use_bias": False}, {apples(name): x for name, x in arrays.items()}
    )
    config, params, _ = families.load(opened)
    assert config == wanted_config
    for path, x in trees.flatten(wanted).items():
        np.testing.assert_array_equal(trees.flatten(params)[path], x, err_msg=path)


def test_gate_and_up_of_the_giant_dinov2_may_be_two_tensors():
    arrays = families.tensors("dinov2_giant")
    wanted = families.load(families.opened(families.config("dinov2_giant"), arrays))[1]
    for name in [name for name in arrays if ".weights_" in name]:
        x = arrays.pop(name)
        if "weights_out" in name:
            arrays[name.replace("weights_out", "down_proj")] = x
        else:
            gate, up = np.split(x, 2)
            arrays |= {name.replace("weights_in", "gate_proj"): gate, name.replace("weights_in", "up_proj"): up}
    found = trees.flatten(families.load(families.opened(families.config("dinov2_giant"), arrays))[1])
    for path, x in trees.flatten(wanted).items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)


@pytest.mark.parametrize("name", published_encoders.ENCODERS)
def test_published_encoders_are_our_variants(name):
    opened = described(published_encoders.ENCODERS[name])
    assert recognise(opened, "encoder").config == variants.encoder(name)


def test_the_encoder_of_gemma3_is_so400m_at_896_pixels():
    config = recognise(described(published_decoders.DECODERS["gemma3_4b"]), "encoder").config
    assert config == variants.encoder("so400m_14_896")
