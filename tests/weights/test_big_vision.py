import dataclasses

import jax
import ml_dtypes
import numpy as np
import pytest

from tests.models import small
from tests.weights import gemma_layout
from tests.weights.arrays import Arrays, assert_same, imported, opened, random_params
from vadapter.base.errors import UserError
from vadapter.models import variants
from vadapter.models.vit import ViT
from vadapter.weights.checkpoint import open_checkpoint
from vadapter.weights.recognise import parameter_shapes, recognise

VIT = small.vit(position_grid=2, dtype="bfloat16")
GEMMA = gemma_layout.config()
OLD = {
    "LayerNorm_0": "LayerNorm_0",
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
}


def vit_file(params, layout="scanned"):
    """A ViT's parameters under big_vision's names: `scanned`, `single` layers, or the `old` numbers of modules."""
    arrays = {}
    for path, x in params.items():
        block = path.removeprefix("Transformer/encoderblock/")
        if block == path or layout == "scanned":
            arrays[path] = x
            continue
        module, leaf = block.split("/", 1)
        for i, layer in enumerate(x):
            arrays[f"Transformer/encoderblock_{i}/{OLD[module] if layout == 'old' else module}/{leaf}"] = layer
    return arrays


def under(prefix, arrays):
    return {prefix + name: x for name, x in arrays.items()}


def noise(*shape):
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


HEADS = {
    "MAPHead_0/probe": noise(1, 1, 32),
    "MAPHead_0/LayerNorm_0/scale": noise(32),
    "head/kernel": noise(32, 5),
    "head/bias": noise(5),
    "pre_logits/kernel": noise(32, 32),
}
TEXT = {
    "txt/Embed_0/embedding": noise(7, 32),
    "txt/pos_embedding": noise(1, 3, 32),
    "txt/Encoder_0/encoderblock_0/LayerNorm_0/scale": noise(32),
    "txt/head/kernel": noise(32, 32),
    "t": noise(1),
    "b": noise(1),
}


@pytest.mark.parametrize("layout", ["scanned", "single", "old"])
@pytest.mark.parametrize("top", ["", "params/", "opt/target/"])
def test_plain_vit(layout, top):
    params = random_params(VIT)
    beside = {"params/": {"opt/0/mu/embedding/kernel": noise(3), "chrono/x": noise()}, "opt/target/": {}}
    beside["opt/target/"] = {"opt/state/step": noise(), "extra/accum": noise()}
    source = opened("big_vision", under(top, {**vit_file(params, layout), **HEADS}) | beside.get(top, {}))
    found = recognise(source)
    assert (found.part, found.family, found.config) == ("encoder", "vit", VIT)
    assert_same(imported(found, source.tensors), params)


@pytest.mark.parametrize("layout", ["scanned", "single"])
def test_siglip_without_its_text_tower(layout):
    params = random_params(VIT)
    source = opened("big_vision", under("params/", under("img/", {**vit_file(params, layout), **HEADS}) | TEXT))
    found = recognise(source)
    assert (found.part, found.family, found.config) == ("encoder", "siglip", VIT)
    assert_same(imported(found, source.tensors), params)


def test_more_than_nine_layers_keep_their_order():
    params = random_params(dataclasses.replace(VIT, depth=12))
    source = opened("big_vision", vit_file(params, "single"))
    assert_same(imported(recognise(source), source.tensors), params)


@pytest.mark.parametrize("name", ["Transformer/pos_embedding", "Transformer/posembed_input/pos_embedding"])
def test_positions_that_count_the_class_token(name):
    config = dataclasses.replace(VIT, class_token=True)
    params = random_params(config)
    arrays = vit_file(params, "old")
    arrays[name] = arrays.pop("pos_embedding")
    source = opened("big_vision", arrays)
    found = recognise(source)
    assert found.config == config
    assert_same(imported(found, source.tensors), params)


def test_a_class_token_without_a_position_gets_zeros():
    config = dataclasses.replace(VIT, class_token=True)
    params = random_params(config)
    params["pos_embedding"][:, 0] = 0
    source = opened("big_vision", {**vit_file(params), "pos_embedding": params["pos_embedding"][:, 1:]})
    found = recognise(source)
    assert found.config == config
    assert_same(imported(found, source.tensors), params)


def test_a_published_size_has_its_image_size():
    config = variants.encoder("so400m_14_384", position_resampling="bilinear_aligned")
    shapes = parameter_shapes(config)
    empty = {path: np.broadcast_to(np.float32(0), x.shape) for path, x in shapes.items()}
    source = opened("big_vision", under("img/", empty))
    assert recognise(source).config == recognise(source, variant="so400m_14_224").config == config


def test_patch_tokens_are_those_of_the_encoder_written_out():
    """One layer of big_vision's ViT in numpy, straight from the file's arrays."""
    config = dataclasses.replace(VIT, depth=1, dtype="float32", image_size=8, patch_size=4)
    params = random_params(config, seed=3)
    a = vit_file({path: 0.2 * x for path, x in params.items()}, "single")
    source = opened("big_vision", a)
    found = recognise(source)
    frame = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    vit = ViT(dataclasses.replace(found.config, dtype="float32"))
    tree = imported(found, source.tensors)
    got = jax.jit(vit.apply)({"params": gemma_layout.nested(tree)}, frame)
    pixels = frame[0] / 127.5 - 1
    patches = pixels.reshape(2, 4, 2, 4, 3).transpose(0, 2, 1, 3, 4).reshape(4, 48)
    x = patches @ a["embedding/kernel"].reshape(48, 32) + a["embedding/bias"] + a["pos_embedding"][0]
    block = "Transformer/encoderblock_0/"

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * a[f"{name}/scale"] + a[f"{name}/bias"]

    def heads(x, name):
        name = f"{block}MultiHeadDotProductAttention_0/{name}"
        return np.einsum("pd,dnh->pnh", x, a[f"{name}/kernel"]) + a[f"{name}/bias"]

    y = norm(x, f"{block}LayerNorm_0")
    logits = np.einsum("pnh,qnh->npq", heads(y, "query"), heads(y, "key")) / np.sqrt(8)
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    y = np.einsum("npq,qnh->pnh", weights, heads(y, "value"))
    out = f"{block}MultiHeadDotProductAttention_0/out"
    x = x + np.einsum("pnh,nhd->pd", y, a[f"{out}/kernel"]) + a[f"{out}/bias"]
    y = norm(x, f"{block}LayerNorm_1")
    mlp = f"{block}MlpBlock_0/"
    y = gemma_layout.gelu(y @ a[f"{mlp}Dense_0/kernel"] + a[f"{mlp}Dense_0/bias"])
    x = x + y @ a[f"{mlp}Dense_1/kernel"] + a[f"{mlp}Dense_1/bias"]
    np.testing.assert_allclose(got[0], norm(x, "Transformer/encoder_norm"), atol=1e-4)


def paligemma(vit_params, params, scanned=True):
    img = {**vit_file(vit_params), "head/kernel": noise(32, 16), "head/bias": noise(16)}
    return under("params/", under("img/", img) | under("llm/", gemma_layout.big_vision(params, scanned)))


@pytest.mark.parametrize("scanned", [True, False])
@pytest.mark.parametrize("kind", ["multi_query", "grouped", "multi_head"])
def test_paligemma_has_both_parts(scanned, kind):
    config = gemma_layout.config(num_kv_heads={"multi_query": 1, "grouped": 2, "multi_head": 4}[kind])
    vit_params, params = random_params(VIT), random_params(config)
    source = opened("big_vision", paligemma(vit_params, params, scanned))
    with pytest.raises(UserError, match="part: encoder or decoder"):
        recognise(source)
    vision, decoder = (recognise(source, part) for part in ("encoder", "decoder"))
    assert (vision.family, vision.config) == ("siglip", VIT)
    assert_same(imported(vision, source.tensors), vit_params)
    assert (decoder.family, decoder.config) == ("gemma", config)
    assert_same(imported(decoder, source.tensors), params)


def test_paligemma_2_has_the_settings_of_gemma_2():
    config = gemma_layout.config(num_kv_heads=2, post_norms=True)
    params = random_params(config)
    source = opened("big_vision", paligemma(random_params(VIT), params))
    decoder = recognise(source, "decoder")
    assert decoder.family == "gemma2"
    assert decoder.config == dataclasses.replace(
        config,
        attention_pattern=("local", "global"),
        window=4096,
        attention_softcap=50.0,
        final_softcap=30.0,
    )
    assert_same(imported(decoder, source.tensors), params)


def test_a_variant_gives_the_settings_and_says_which_part_is_meant():
    source = opened("big_vision", paligemma(random_params(VIT), random_params(GEMMA)))
    only = recognise(source, variant="so400m_14_224")
    assert (only.part, only.config) == ("encoder", VIT)
    only = recognise(source, variant="gemma_7b")
    assert (only.part, only.config) == ("decoder", GEMMA)
    with pytest.raises(UserError, match="post_norms False \\(not True\\)"):
        recognise(source, variant="gemma2_2b")
    with pytest.raises(UserError, match="class_token False \\(not True\\)"):
        recognise(source, variant="clip_l_14_224")
    with pytest.raises(UserError, match="'gemma_3b' is unknown"):
        recognise(source, variant="gemma_3b")
    with pytest.raises(UserError, match="'gemma_7b' is one of a decoder, and part is 'encoder'"):
        recognise(source, "encoder", "gemma_7b")


def test_bf16_stays_bf16():
    params = {path: x.astype(ml_dtypes.bfloat16) for path, x in random_params(GEMMA).items()}
    source = opened("big_vision", gemma_layout.big_vision(params))
    found = imported(recognise(source), source.tensors)
    assert {x.dtype for x in found.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert_same(found, params)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_from_a_file(tmp_path, save):
    vit_params, params = random_params(VIT), random_params(GEMMA)
    params = {path: x.astype(ml_dtypes.bfloat16) for path, x in params.items()}  # numpy stores these as void
    save(tmp_path / "pt_224.bf16.npz", **paligemma(vit_params, params))
    source = open_checkpoint(str(tmp_path / "pt_224.bf16.npz"))
    assert_same(imported(recognise(source, "encoder"), source.tensors), vit_params)
    assert_same(imported(recognise(source, "decoder"), source.tensors), params)


def test_the_tensors_of_one_layer_of_paligemma_compute_what_our_layer_computes():
    params = random_params(GEMMA, seed=5)
    arrays = gemma_layout.big_vision({path: 0.3 * x for path, x in params.items()})
    source = opened("big_vision", under("llm/", arrays))
    found = recognise(source)
    tree = imported(found, source.tensors)
    gemma_layout.check_forward(found.config, tree, lambda i, name: arrays[f"layers/{name}"][i], arrays)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pos_embedding": None}, "sincos2d"),
        ({"pos_embedding": noise(1, 5, 32)}, "5 position embeddings"),
        ({"embedding/kernel": noise(192, 32)}, "NaFlex"),
    ],
)
def test_other_vits_are_refused(change, message):
    arrays = {**vit_file(random_params(VIT)), **change}
    with pytest.raises(UserError, match=message):
        recognise(opened("big_vision", {name: x for name, x in arrays.items() if x is not None}))


def test_other_files_are_refused():
    with pytest.raises(UserError, match="Expected one of these: .*a ViT"):
        recognise(opened("big_vision", {"params/x": noise(2)}))
    hybrid = {"embedding/kernel": noise(1, 1, 3, 32), "pos_embedding": noise(1, 4, 32)}
    with pytest.raises(UserError, match="hybrids"):
        recognise(opened("big_vision", hybrid))


def test_a_tensor_that_nobody_knows_is_named():
    arrays = {**vit_file(random_params(VIT)), "Transformer/encoderblock/LayerScale_0/scale": noise(2, 32)}
    with pytest.raises(UserError, match="LayerScale_0"):
        imported(recognise(opened("big_vision", arrays)), Arrays(arrays))
