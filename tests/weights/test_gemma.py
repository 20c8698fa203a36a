import dataclasses

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.models import small
from tests.weights import gemma_layout
from tests.weights.arrays import assert_same, imported, opened, random_params
from tests.weights.test_big_vision import noise, under, vit_file
from vadapter.base.errors import UserError
from vadapter.models import variants
from vadapter.models.positions import RopeScaling
from vadapter.weights.checkpoint import open_checkpoint
from vadapter.weights.mapping import map_tensors
from vadapter.weights.recognise import parameter_shapes, recognise

GEMMA1 = gemma_layout.config()
GEMMA2 = gemma_layout.config(
    num_kv_heads=2,
    post_norms=True,
    attention_pattern=("local", "global"),
    window=4096,
    attention_softcap=50.0,
    final_softcap=30.0,
)
GEMMA3 = gemma_layout.config(
    num_kv_heads=2,
    post_norms=True,
    qk_norm=True,
    attention_pattern=("local",) * 5 + ("global",),
    window=1024,
    rope_base=1_000_000.0,
    rope_local_base=10_000.0,
    rope_scaling=RopeScaling("linear", factor=8.0),
)


@pytest.mark.parametrize("width_last", [True, False])
@pytest.mark.parametrize("module", ["", "/w"])
@pytest.mark.parametrize("root", ["transformer/", "", "params/"])
@pytest.mark.parametrize("config, family", [(GEMMA1, "gemma"), (GEMMA2, "gemma2"), (GEMMA3, "gemma3")])
def test_every_layout_gives_the_same_parameters(config, family, root, module, width_last):
    params = random_params(config)
    beside = {"opt_state/0/mu": noise(2), "step": noise()} if root == "params/" else {}
    source = opened("gemma", gemma_layout.orbax(params, width_last, module, root) | beside)
    found = recognise(source, variant="gemma3_4b" if family == "gemma3" else None)
    assert (found.part, found.family, found.config) == ("decoder", family, config)
    assert_same(imported(found, source.tensors), params)


def test_multi_head_attention_is_one_tensor():
    config = gemma_layout.config(num_kv_heads=4)
    params = random_params(config)
    source = opened("gemma", gemma_layout.orbax(params))
    assert "transformer/layer_1/attn/qkv_einsum/w" in source.tensors.infos
    assert_same(imported(recognise(source), source.tensors), params)


@pytest.mark.parametrize("width_last", [True, False])
def test_the_tensors_compute_what_our_decoder_computes(width_last):
    params = {path: 0.3 * x for path, x in random_params(GEMMA1, seed=1).items()}
    arrays = gemma_layout.orbax(params, width_last, root="")
    source = opened("gemma", arrays)
    found = recognise(source)
    tree = imported(found, source.tensors)
    gemma_layout.check_forward(found.config, tree, lambda i, name: arrays[f"layer_{i}/{name}"], arrays)


def shapes_only(c):
    """A checkpoint of a published size, of arrays that take no memory."""
    kv = {"q_einsum": (c.num_heads, c.width, c.head_dim), "kv_einsum": (2, c.num_kv_heads, c.width, c.head_dim)}
    if c.num_kv_heads == c.num_heads:
        kv = {"qkv_einsum": (3, c.num_heads, c.width, c.head_dim)}
    norms = ("pre_attention_norm", "pre_ffw_norm", *(("post_attention_norm", "post_ffw_norm") if c.post_norms else ()))
    layer = {
        **{f"attn/{name}/w": shape for name, shape in kv.items()},
        "attn/attn_vec_einsum/w": (c.num_heads, c.head_dim, c.width),
        **{f"attn/{name}/scale": (c.head_dim,) for name in (("_query_norm", "_key_norm") if c.qk_norm else ())},
        "mlp/gating_einsum/w": (2, c.mlp_dim, c.width),
        "mlp/linear/w": (c.mlp_dim, c.width),
        **{f"{name}/scale": (c.width,) for name in norms},
    }
    shapes = {f"layer_{i}/{name}": shape for i in range(c.depth) for name, shape in layer.items()}
    shapes |= {"embedder/input_embedding": (c.vocab_size, c.width), "final_norm/scale": (c.width,)}
    return {f"transformer/{name}": np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", [name for name in variants.DECODERS if name.startswith("gemma")])
def test_published_sizes_are_found_by_their_shapes(name):
    # As Google publishes them: the tables have rows of padding (Gemma 2), or lack the ids of images (Gemma 3).
    rows = 256_128 if name.startswith("gemma2") else variants.decoder(name).vocab_size
    config = variants.decoder(name, vocab_size=rows)
    source = opened("gemma", shapes_only(config))
    found = recognise(source)
    assert found.config == config
    assert map_tensors(source.tensors, found.rules, parameter_shapes(found.config), found.ignored)


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_from_files(tmp_path, flat, ocdbt):
    params = random_params(GEMMA2)
    # Google's checkpoints are dicts of two levels, those of the library are nested all the way.
    arrays = gemma_layout.orbax(params, flat, module="/w" if flat else "", root="transformer/" if flat else "")
    tree = {}
    for name, x in arrays.items():
        *module, leaf = name.rsplit("/", 1) if flat else name.split("/")
        inner = tree
        for key in module:
            inner = inner.setdefault(key, {})
        inner[leaf] = x
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt)
    ocp.Checkpointer(handler).save(tmp_path / "gemma2-2b", tree)
    source = open_checkpoint(str(tmp_path / "gemma2-2b"))
    assert source.kind == "gemma"
    assert_same(imported(recognise(source), source.tensors), params)


def multimodal(vit_root, root):
    vit_params, params = random_params(dataclasses.replace(small.vit(), dtype="bfloat16")), random_params(GEMMA3)
    projection = {"embedder/mm_input_projection/w": noise(32, 32), "embedder/mm_soft_embedding_norm/scale": noise(32)}
    arrays = under(vit_root, vit_file(vit_params, "single")) | under(root, projection)
    return vit_params, params, arrays | gemma_layout.orbax(params, True, root=root)


@pytest.mark.parametrize(
    "vit_root, root",
    [("SigLiPFromPatches_0/siglip_encoder/", "transformer/"), ("vision_encoder/siglip_encoder/", "")],
)
def test_the_vision_encoder_of_gemma_3(vit_root, root):
    vit_params, params, arrays = multimodal(vit_root, root)
    source = opened("gemma", arrays)
    vision = recognise(source, "encoder", "so400m_14_224")
    assert (vision.family, vision.config.image_size) == ("siglip", 16)
    assert_same(imported(vision, source.tensors), vit_params)
    decoder = recognise(source, "decoder", "gemma3_4b")
    assert decoder.config == GEMMA3
    assert_same(imported(decoder, source.tensors), params)


def test_gemma_3_of_another_size_needs_a_variant():
    source = opened("gemma", gemma_layout.orbax(random_params(GEMMA3)))
    with pytest.raises(UserError, match="sizes that are not published.*variant"):
        recognise(source)
    with pytest.raises(UserError, match="qk_norm True \\(not False\\)"):
        recognise(source, variant="gemma2_2b")


def test_the_sizes_of_another_published_model_are_refused():
    source = opened("gemma", shapes_only(variants.decoder("gemma3_1b")))
    with pytest.raises(UserError, match="the sizes of gemma3_1b, not of gemma3_4b"):
        recognise(source, variant="gemma3_4b")


def test_other_models_are_refused():
    arrays = gemma_layout.orbax(random_params(GEMMA1))
    stacked = {name.replace("layer_0/", "stacked_layers/attention_type_0/"): x for name, x in arrays.items()}
    with pytest.raises(UserError, match="stacked_layers"):
        recognise(opened("gemma", stacked))
    linear = {name: x for name, x in arrays.items() if not name.endswith("mlp/linear")}
    with pytest.raises(UserError, match="not Gemma 1, 2 or 3.*`mlp/linear`"):
        recognise(opened("gemma", linear))
    with pytest.raises(UserError, match="no model that can be imported"):
        recognise(opened("gemma", {"x": noise(2)}))


def test_a_tensor_that_nobody_knows_is_named():
    arrays = gemma_layout.orbax(random_params(GEMMA1)) | {"transformer/layer_0/skip_scale": noise(1)}
    source = opened("gemma", arrays)
    with pytest.raises(UserError, match="transformer/layer_0/skip_scale"):
        imported(recognise(source), source.tensors)
