import dataclasses

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax import serialization, traverse_util

from tests.models import small
from tests.weights.arrays import assert_same, imported, opened, random_params
from vadapter.base.errors import UserError
from vadapter.models import variants
from vadapter.weights.checkpoint import open_checkpoint
from vadapter.weights.recognise import recognise

BF16 = {"dtype": "bfloat16"}
PALM = small.decoder(
    norm="layer_no_bias", activation="silu", parallel_block=True, scale_embedding=True, num_kv_heads=1, **BF16
)
LLAMA = small.decoder(activation="silu", rope_base=500_000.0, tied_head=False, **BF16)
VIT = small.vit(position_grid=2, **BF16)
CLIP = small.vit(
    position_grid=2,
    class_token=True,
    pre_norm=True,
    final_norm=False,
    patch_bias=False,
    activation="quick_gelu",
    norm_eps=1e-5,
    **BF16,
)


@pytest.fixture(autouse=True)
def small_sizes_are_published(monkeypatch):
    for name, config in {"small_palm": PALM, "small_llama": LLAMA}.items():
        monkeypatch.setitem(variants.DECODERS, name, vars(config))


def under(prefix, arrays):
    return {prefix + name: x for name, x in arrays.items()}


def noise(*shape):
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


STATE = {"state/step": noise(), "state/param_states/decoder/final_norm/scale/m": noise(32)}


def example(params, joined=True, embedder="token_embedder"):
    """Our parameters under the names of t5x's decoder-only network."""
    arrays = {
        f"{embedder}/embedding": params["embedder/embedding"],
        "decoder/decoder_norm/scale": params["final_norm/scale"],
    }
    if "head/embedding" in params:
        arrays["decoder/logits_dense/kernel"] = params["head/embedding"].T
    for i in range(len(params["layers/mlp/up/kernel"])):
        of = {path.removeprefix("layers/"): x[i] for path, x in params.items() if path.startswith("layers/")}
        layer = {"pre_self_attention_layer_norm/scale": of["pre_attention_norm/scale"]}
        layer["pre_mlp_layer_norm/scale"] = of["pre_mlp_norm/scale"]
        for name in ("query", "key", "value", "out"):
            kernel = of[f"attention/{name}/kernel"]
            width = kernel.shape[-1] if name == "out" else kernel.shape[0]
            flat = kernel.reshape(-1, width) if name == "out" else kernel.reshape(width, -1)
            layer[f"self_attention/{name}/kernel"] = flat if joined else kernel
        if "mlp/gate/kernel" in of:
            layer |= {"mlp/wi_0/kernel": of["mlp/gate/kernel"], "mlp/wi_1/kernel": of["mlp/up/kernel"]}
        else:
            layer |= {"mlp/wi/kernel": of["mlp/up/kernel"]}
        layer["mlp/wo/kernel"] = of["mlp/down/kernel"]
        arrays |= under(f"decoder/layers_{i}/", layer)
    return arrays


@pytest.mark.parametrize("top", ["", "target/", "optimizer/target/"])
@pytest.mark.parametrize("config", [PALM, LLAMA])
def test_a_decoder_with_our_names_is_taken_as_it_is(config, top):
    params = random_params(config)
    source = opened("t5x", under(f"{top}decoder/", params) | STATE)
    found = recognise(source)
    assert (found.part, found.family, found.config) == ("decoder", "vadapter", config)
    assert_same(imported(found, source.tensors), params)


def test_the_parts_of_a_model_with_our_names():
    vit, decoder, adapter = random_params(VIT), random_params(PALM), {"lm/layers/x": noise(3), "queries": noise(2)}
    arrays = under("encoder/", vit) | under("decoder/", decoder) | under("adapter/", adapter)
    source = opened("t5x", under("target/", arrays) | STATE)
    with pytest.raises(UserError, match="with part"):
        recognise(source)
    vision = recognise(source, "encoder")
    assert vision.config == VIT
    assert_same(imported(vision, source.tensors), vit)
    assert_same(imported(recognise(source, "decoder"), source.tensors), decoder)


def test_a_clip_with_our_names_needs_a_variant():
    params = random_params(CLIP)
    source = opened("t5x", under("encoder/", params))
    with pytest.raises(UserError, match="Give variant"):
        recognise(source)
    found = recognise(source, variant="clip_l_14_224")
    assert found.config == dataclasses.replace(CLIP, mean=found.config.mean, std=found.config.std)
    assert found.config.mean == variants.encoder("clip_l_14_224").mean
    assert_same(imported(found, source.tensors), params)


def test_sizes_with_several_settings_need_a_variant(monkeypatch):
    monkeypatch.setitem(variants.DECODERS, "small_llama_long", vars(dataclasses.replace(LLAMA, rope_base=1e6)))
    source = opened("t5x", under("decoder/", random_params(LLAMA)))
    with pytest.raises(UserError, match="several published models \\(small_llama, small_llama_long\\)"):
        recognise(source)
    assert recognise(source, variant="small_llama_long").config.rope_base == 1e6


def test_a_language_model_that_was_an_adapter_is_refused():
    params = {path: x for path, x in random_params(PALM).items() if not path.startswith("embedder")}
    with pytest.raises(UserError, match="served as an adapter"):
        recognise(opened("t5x", under("decoder/", params)))


@pytest.mark.parametrize("changes", [{}, {"gated": False}, {"num_kv_heads": 4}, {"tied_head": True}])
@pytest.mark.parametrize("joined", [True, False])
def test_names_of_the_decoder_only_example(changes, joined, monkeypatch):
    config = dataclasses.replace(LLAMA, **changes)
    monkeypatch.setitem(variants.DECODERS, "ours", vars(config))
    params = random_params(config)
    embedder = "token_embedder" if joined else "decoder/token_embedder"
    source = opened("t5x", under("target/", example(params, joined, embedder)) | STATE)
    with pytest.raises(UserError, match="Give variant"):
        recognise(source)
    found = recognise(source, variant="ours")
    assert (found.family, found.config) == ("t5x", config)
    assert_same(imported(found, source.tensors), params)


@pytest.mark.parametrize("changes", [{}, {"gated": False, "activation": "relu"}, {"tied_head": True}])
@pytest.mark.parametrize("joined", [True, False])
def test_the_decoder_only_example_itself_needs_no_variant(changes, joined):
    multiplier = 32**-0.5 if changes.get("tied_head") else 1.0
    settings = {"rope_pattern": (False,), "query_scale": 1.0, "relative_buckets": 8, "logits_multiplier": multiplier}
    sizes = {"num_kv_heads": 4, "tied_head": False, **BF16}
    config = small.decoder(**{**sizes, **settings, **changes})
    params = random_params(config)
    arrays = example(params, joined) | {"decoder/relpos_bias/rel_embedding": params["relative_bias/embedding"]}
    source = opened("t5x", under("target/", arrays) | STATE)
    found = recognise(source)
    assert (found.family, found.config) == ("t5x", config)
    assert_same(imported(found, source.tensors), params)
    with pytest.raises(UserError, match="do not tell how logits are scaled"):
        recognise(opened("t5x", under("target/decoder/", params)))


def test_a_variant_with_other_norms_is_refused():
    source = opened("t5x", example(random_params(LLAMA)))
    with pytest.raises(UserError, match="norm rms \\(not layer_no_bias\\)"):
        recognise(source, variant="small_palm")


@pytest.mark.parametrize(
    "more, message",
    [
        ({"decoder/relpos_bias/rel_embedding": (4, 32)}, "Leave variant out"),
        ({"decoder/layers_0/relpos_bias/rel_embedding": (4, 32)}, "in each layer are not supported"),
        ({"encoder/layers_0/attention/query/kernel": (32, 32)}, "encoder-decoder T5"),
        ({"decoder/layers_0/encoder_decoder_attention/query/kernel": (32, 32)}, "encoder-decoder T5"),
    ],
)
def test_t5_is_refused(more, message):
    arrays = example(random_params(LLAMA)) | {name: noise(*shape) for name, shape in more.items()}
    with pytest.raises(UserError, match=message):
        recognise(opened("t5x", under("target/", arrays)), variant="small_llama")


def test_scalable_t5_is_refused():
    t5 = {
        "encoder/encoder/attention/query/kernel": noise(8, 2, 8),
        "decoder/decoder/self_attention/query/kernel": noise(8, 2, 8),
        "decoder/decoder/relpos_bias/rel_embedding": noise(4, 2, 32),
    }
    with pytest.raises(UserError, match="encoder-decoder T5"):
        recognise(opened("t5x", under("target/", t5)))


def stacked(single, name, axis):
    """The layers of `layers_{i}` in one tensor each."""
    arrays = {path: x for path, x in single.items() if "layers_" not in path}
    for path in single:
        if "/layers_0/" in path:
            each = [single[path.replace("layers_0", f"layers_{i}")] for i in range(LLAMA.depth)]
            arrays[path.replace("layers_0", name)] = np.stack(each, axis)
    return arrays


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["layers", "decoder"])
@pytest.mark.parametrize("joined", [True, False])
def test_layers_stacked_on_either_axis(axis, name, joined):
    params = random_params(LLAMA)
    source = opened("t5x", under("target/", stacked(example(params, joined), name, axis)))
    found = recognise(source, variant="small_llama")
    assert found.config == LLAMA
    assert_same(imported(found, source.tensors), params)


def test_an_incomplete_model_is_refused():
    arrays = under("decoder/", random_params(LLAMA))
    del arrays["decoder/layers/mlp/up/kernel"]
    with pytest.raises(UserError, match="lacks decoder/layers/mlp/up/kernel"):
        recognise(opened("t5x", arrays))
    arrays = example(random_params(LLAMA))
    del arrays["decoder/layers_1/self_attention/key/kernel"]
    source = opened("t5x", arrays)
    with pytest.raises(UserError, match="decoder/layers_1/self_attention/key/kernel"):
        imported(recognise(source, variant="small_llama"), source.tensors)


@pytest.mark.parametrize("own", [True, False])
def test_a_model_without_norms_before_is_not_read_as_palm(own):
    """It has no norm before the MLP, as PaLM, and none before the attention either."""
    params = random_params(LLAMA)
    arrays = under("decoder/", params) if own else example(params)
    arrays = {name: x for name, x in arrays.items() if "/pre_" not in name}
    with pytest.raises(UserError, match="no norm before the attention .*OLMo 2"):
        recognise(opened("t5x", arrays), variant="small_llama")


def test_norms_on_results_only_and_on_all_heads_are_seen(monkeypatch):
    olmo = dataclasses.replace(LLAMA, pre_norms=False, post_norms=True, qk_norm=True, qk_norm_over="all_heads")
    source = opened("t5x", under("decoder/", random_params(olmo)))
    with pytest.raises(UserError, match="pre_norms False \\(not True\\)"):
        recognise(source, variant="small_llama")
    monkeypatch.setitem(variants.DECODERS, "small_olmo", vars(olmo))
    assert recognise(source).config == olmo


def test_other_models_are_refused():
    with pytest.raises(UserError, match="no model that can be imported.*decoder-only"):
        recognise(opened("t5x", {"target/x/kernel": noise(2)}))
    arrays = {name: x for name, x in example(random_params(LLAMA)).items() if "token_embedder" not in name}
    with pytest.raises(UserError, match="token_embedder"):
        recognise(opened("t5x", arrays), variant="small_llama")


@pytest.mark.parametrize("own", [True, False])
def test_from_files_of_the_legacy_format(tmp_path, own):
    """A msgpack of the train state with small arrays inside, and a zarr folder for each of the others."""
    params = random_params(LLAMA)
    arrays = under("decoder/", params) if own else example(params)
    folder = tmp_path / "checkpoint_100"
    folder.mkdir()
    stored = {}
    for name, x in arrays.items():
        if x.size <= 64:
            stored[name] = x
            continue
        kvstore = {"driver": "file", "path": "target." + name.replace("/", ".")}
        stored[name] = {"driver": "zarr", "kvstore": kvstore, "metadata": {"shape": list(x.shape)}}
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/{kvstore['path']}"}}
        ts.open(spec, create=True, dtype=x.dtype, shape=x.shape).result().write(x).result()
    target = traverse_util.unflatten_dict(stored, sep="/")
    state = {"version": 3, "optimizer": {"target": target, "state": {"step": np.int32(100), "param_states": {}}}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(state))
    source = open_checkpoint(str(folder))
    assert source.kind == "t5x"
    assert_same(imported(recognise(source, variant="small_llama"), source.tensors), params)


def test_from_files_of_orbax(tmp_path):
    vit, decoder = random_params(VIT), random_params(PALM)
    arrays = under("target/encoder/", vit) | under("target/decoder/", decoder) | STATE
    tree = traverse_util.unflatten_dict(arrays, sep="/")
    ocp.PyTreeCheckpointer().save(tmp_path / "checkpoint_100" / "state", tree)
    source = open_checkpoint(str(tmp_path / "checkpoint_100"))
    assert source.kind == "t5x"
    assert_same(imported(recognise(source, "encoder"), source.tensors), vit)
    assert_same(imported(recognise(source, "decoder"), source.tensors), decoder)
