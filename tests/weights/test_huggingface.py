"""Models of transformers: ours compute what it computes, and what we cannot compute is refused."""

import dataclasses
import re

import numpy as np
import pytest

from tests.weights import families, published_decoders
from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models import variants
from vadapter.weights.recognise import recognise

TOLERANCE = 1e-4
ANCHORS = (
    "model.embed_tokens.weight",
    "vision_model.embeddings.patch_embedding.weight",
    "embeddings.patch_embeddings.projection.weight",
    "embeddings.patch_embeddings.weight",
    "embeddings.patch_embed.weight",
)


def source(family, **changes):
    settings = families.config(family)
    return families.opened({**settings, **changes}, families.tensors(family))


def described(settings, **extra):
    """A source of which only config.json matters."""
    return families.opened(settings, {name: np.zeros(1, np.float32) for name in ANCHORS}, **extra)


@pytest.mark.parametrize("family", families.TEXT)
def test_logits_and_text_are_those_of_transformers(family):
    config, params, _ = families.load(source(family), "decoder")
    golden = families.outputs(family)
    tokens, mask, generated = golden["tokens"], golden["mask"], golden["generated"]
    ours = families.logits(config, params, tokens, mask)
    np.testing.assert_allclose(ours, golden["logits"], rtol=0, atol=TOLERANCE)
    # Rows are padded on the left and on the right, and read by prefill and then token by token.
    text = families.generate(config, params, tokens, mask, generated.shape[1])
    np.testing.assert_array_equal(text, generated)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("gemma2", {"window": 5}),
        ("gemma2", {"attention_softcap": None}),
        ("gemma2", {"query_scale": None}),
        ("gemma3_text", {"window": 3}),
        ("gemma3_text", {"rope_local_base": None}),
        ("gemma3_text", {"rope_scaling": None}),
        ("gemma3_text", {"attention_pattern": ("local", "global")}),
        ("qwen2_window", {"attention_pattern": ("global",)}),
        ("mistral", {"window": 5}),
        ("llama3", {"rope_scaling": None}),
        ("smollm3", {"rope_pattern": (True,)}),
        ("smollm3", {"rope_pattern": (False, True)}),
        ("olmo2", {"norm_eps": 1e-2}),
        ("granite", {"embedding_multiplier": 1.0}),
        ("granite", {"query_scale": None}),
        ("granite", {"residual_multiplier": 1.0}),
        ("granite", {"logits_multiplier": 1.0}),
        ("phi3", {"window": 4}),
        ("phi4_mini", {"rope_dim": 12, "rope_scaling": None}),
        ("qwen2_yarn", {"rope_scaling": None}),
    ],
)
def test_the_golden_files_notice_a_wrong_setting(family, change):
    config, params, _ = families.load(source(family), "decoder")
    golden = families.outputs(family)
    ours = families.logits(dataclasses.replace(config, **change), params, golden["tokens"], golden["mask"])
    assert np.abs(ours - golden["logits"]).max() > 10 * TOLERANCE


def test_gemma3_has_two_parts():
    with pytest.raises(UserError, match=r"encoder \(siglip\) and decoder \(gemma3\).*part"):
        recognise(source("gemma3"))
    assert recognise(source("gemma3"), "encoder").family == "siglip"
    with pytest.raises(UserError, match="no decoder"):
        recognise(source("siglip"), "decoder")
    with pytest.raises(UserError, match="leave out variant"):
        recognise(source("siglip"), variant="siglip_b_16_224")


# How the names of other versions of transformers, and of other classes, differ from those of the golden files.
NAMES = {
    "gemma3": [
        (r"language_model\.model\.", "model.language_model."),
        (r"vision_tower\.", "model.vision_tower.vision_model."),
        (r"multi_modal", "model.multi_modal"),
    ],
    "qwen2": [(r"model\.", "")],
    "siglip_vision": [("", "vision_model.")],
    "clip_vision": [("", "vision_model.")],
    "siglip2_naflex": [(r"vision_model\.", "")],
    "dinov2": [("", "dinov2.")],
    "dinov3": [(r"layer\.", "model.layer.")],
    "aimv2": [("", "vision_model.")],
    "dinov2_with_registers": [
        (r"(.*)\.attention\.attention\.(query|key|value)\b", lambda m: f"{m[1]}.attention.{m[2][0]}_proj"),
        (r"(.*)\.attention\.output\.dense", r"\1.attention.o_proj"),
    ],
}


@pytest.mark.parametrize("family", NAMES)
def test_names_of_other_versions(family):
    def renamed(name):
        for pattern, new in NAMES[family]:
            name = re.sub(f"^{pattern}", new, name)
        return name

    arrays = families.tensors(family)
    other = {renamed(name): x for name, x in arrays.items()}
    assert arrays.keys() != other.keys()
    # What old versions also saved.
    if family == "gemma3":
        other["lm_head.weight"] = other["model.language_model.embed_tokens.weight"]
    if family == "qwen2":
        other["layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    if family == "clip_vision":
        other["vision_model.embeddings.position_ids"] = np.arange(17)[None]
        other["visual_projection.weight"] = np.zeros((16, 32), np.float32)
    if family == "aimv2":
        other["vision_model.head.cls_token"] = np.zeros((1, 1, 32), np.float32)
    if family == "dinov2":
        other["classifier.weight"] = np.zeros((10, 64), np.float32)
    for part in ("encoder", "decoder") if family == "gemma3" else (None,):
        wanted = families.load(families.opened(families.config(family), arrays), part)[1]
        found = trees.flatten(families.load(families.opened(families.config(family), other), part)[1])
        for path, x in trees.flatten(wanted).items():
            np.testing.assert_array_equal(found[path], x, err_msg=path)


TIED = "gemma2"


def with_head(change):
    """A tied model whose file has a head, made by `change` of the table."""
    arrays = families.tensors(TIED)
    arrays["lm_head.weight"] = change(arrays["model.embed_tokens.weight"])
    return arrays


def test_a_tied_model_may_be_saved_as_its_head_alone():
    wanted = families.load(source(TIED))[1]
    arrays = with_head(np.copy)
    del arrays["model.embed_tokens.weight"]
    config, params, found = families.load(families.opened(families.config(TIED), arrays))
    assert config.tied_head and not found.notes
    for path, x in trees.flatten(wanted).items():
        np.testing.assert_array_equal(trees.flatten(params)[path], x, err_msg=path)


def test_a_tied_model_with_another_head_is_read_as_transformers_reads_it():
    arrays = with_head(lambda table: 2 * table)
    config, params, found = families.load(families.opened(families.config(TIED), arrays))
    assert not config.tied_head
    np.testing.assert_array_equal(params["head"]["embedding"], arrays["lm_head.weight"])
    np.testing.assert_array_equal(params["embedder"]["embedding"], arrays["model.embed_tokens.weight"])
    assert "lm_head.weight differs" in " ".join(found.notes)
    same = families.load(families.opened(families.config(TIED), with_head(np.copy)))
    assert same[0].tied_head and not same[2].notes


@pytest.mark.parametrize(("window", "pattern"), [(8, ("local",)), (None, ("global",))])
def test_all_layers_of_mistral_have_the_window_or_none(window, pattern):
    config = recognise(source("mistral", sliding_window=window)).config
    assert (config.window, config.attention_pattern) == (window, pattern)


@pytest.mark.parametrize("name", published_decoders.DECODERS)
def test_published_decoders_are_our_variants(name):
    assert recognise(described(published_decoders.DECODERS[name]), "decoder").config == variants.decoder(name)


def test_newer_files_nest_the_rotary_parameters():
    old = families.config("gemma3_text")
    new = {name: value for name, value in old.items() if not name.startswith(("rope", "sliding_window_pattern"))}
    new["layer_types"] = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    new["layer_types"] = new["layer_types"][: old["num_hidden_layers"]]
    new["rope_parameters"] = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert recognise(described(new)).config == recognise(described(old)).config

    old = families.config("llama3")
    new = {name: value for name, value in old.items() if not name.startswith("rope")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    assert recognise(described(new)).config == recognise(described(old)).config


def test_local_layers_are_where_layer_types_says():
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    config = recognise(described({**families.config("qwen3"), "layer_types": kinds, "sliding_window": 8})).config
    assert (config.local_layers, config.window) == ((False, True, True), 8)


def test_pixels_are_normalised_as_the_processor_says():
    settings = families.config("siglip_vision")
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]

    def normalisation(**extra):
        config = recognise(described(settings, **extra)).config
        return config.mean, config.std

    assert normalisation() == ((0.5,) * 3, (0.5,) * 3)
    found = {"image_mean": mean, "image_std": std}
    assert normalisation(preprocessor_config=found) == (tuple(mean), tuple(std))
    assert normalisation(processor_config={"image_processor": found}) == (tuple(mean), tuple(std))
    assert normalisation(preprocessor_config={**found, "do_normalize": False}) == ((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(UserError, match="three numbers"):
        normalisation(preprocessor_config={"image_mean": [0.5]})
    with pytest.raises(UserError, match="rescale_factor"):
        normalisation(preprocessor_config={**found, "rescale_factor": 1 / 127.5})
    with pytest.raises(UserError, match="rescale_factor"):
        normalisation(preprocessor_config={**found, "rescale_factor": "1/255"})


def test_a_window_that_smollm3_does_not_use_is_none():
    assert recognise(source("smollm3", sliding_window=4, layer_types=None)).config.local_layers == (False,) * 5


def test_layers_without_rotation_are_given_by_name_or_by_interval():
    old = families.config("smollm3")
    listed = recognise(described({**old, "no_rope_layers": [0, 1, 1, 1, 1]})).config
    assert listed.rope_layers == (False, True, True, True, True)
    del old["no_rope_layers"]
    assert recognise(described({**old, "no_rope_layer_interval": 3})).config.rope_layers == (
        True,
        True,
        False,
        True,
        True,
    )


def test_the_factors_of_short_contexts_are_taken_and_that_is_said():
    found = recognise(source("phi4_mini"))
    scaling = found.config.rope_scaling
    assert scaling.factors == (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
    assert scaling.original_length == 64
    assert scaling.magnitude == pytest.approx(np.sqrt(1 + np.log(32) / np.log(64)))
    assert "up to 64 tokens were taken" in " ".join(found.notes)
    # A window that no row outgrows is none; a smaller one would be of layers that are stretched.
    assert found.config.local_layers == (False,) * 3
    with pytest.raises(UserError, match="stretching of layers with a sliding window"):
        recognise(source("phi4_mini", sliding_window=32))


def test_newer_files_of_phi_nest_the_rotary_parameters():
    old = families.config("phi4_mini")
    new = {name: x for name, x in old.items() if name not in ("rope_theta", "rope_scaling", "partial_rotary_factor")}
    new["rope_parameters"] = {
        **{name: x for name, x in old["rope_scaling"].items() if name != "type"},
        "rope_type": "longrope",
        "rope_theta": old["rope_theta"],
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 64,
    }
    assert recognise(described(new)).config == recognise(described(old)).config
    su = {**old, "rope_scaling": {**old["rope_scaling"], "type": "su"}}
    assert recognise(described(su)).config == recognise(described(old)).config


def test_fused_tensors_are_accounted_for():
    def refused(change, message):
        arrays = families.tensors("phi4_mini")
        change(arrays)
        with pytest.raises(UserError, match=message):
            families.load(families.opened(families.config("phi4_mini"), arrays))

    name = "model.layers.1.self_attn.qkv_proj.weight"
    refused(lambda x: x.pop(name), rf"(?s)missing.*{name} \(for layers/attention/query/kernel\)")
    refused(lambda x: x.update({name: x[name][:-1]}), rf"(?s)mis-shaped.*{name} has the shape \(127, 64\).*\(128, 64\)")
    refused(lambda x: x.update({name.replace("qkv", "q"): x[name]}), "(?s)unused.*q_proj.weight")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama3", {"model_type": "gpt2"}, "'gpt2'.*gemma3_text.*llama.*mistral.*siglip"),
        ("siglip", {"model_type": "siglip2"}, "'siglip2_vision_model' in vision_config"),
        ("siglip2_naflex", {"vision_config": {"num_patches": 200}}, "square of a whole number for num_patches.*200"),
        ("llama3", {"quantization_config": {"bits": 4}}, "quantization_config.*not quantised"),
        ("llama3", {"attention_bias": True}, "attention_bias to True"),
        ("llama3", {"mlp_bias": True}, "mlp_bias to True"),
        ("llama3", {"hidden_act": "mish"}, "hidden_act.*'mish'"),
        ("llama3", {"hidden_act": ["silu"]}, r"hidden_act and found \['silu'\]"),
        ("llama3", {"rope_scaling": {"rope_type": ["yarn"]}}, "rope_type"),
        ("llama3", {"rope_scaling": None, "rope_parameters": 500_000}, "a dictionary for rope_parameters"),
        ("llama3", {"rope_scaling": None, "rope_parameters": {"full_attention": 1}}, "a dictionary for full_attention"),
        ("llama3", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama3", {"hidden_size": "32"}, "whole number above 0 for hidden_size and found '32'"),
        ("llama3", {"rope_scaling": {**families.config("llama3")["rope_scaling"], "mscale": 1}}, "mscale"),
        ("qwen3", {"rope_scaling": {**YARN, "mscale": 1.0}}, "mscale"),
        ("qwen3", {"rope_scaling": {**YARN, "truncate": False}}, "truncate to False"),
        ("qwen3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "found 'dynamic'"),
        ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "5 numbers, 1 for a layer that rotates"),
        ("smollm3", {"use_sliding_window": True}, "use_sliding_window to True"),
        ("olmo2", {"attention_bias": True}, "attention_bias to True"),
        ("granite", {"residual_multiplier": None}, "number above 0 for residual_multiplier"),
        ("granite", {"mlp_bias": True}, "mlp_bias to True"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias to True"),
        ("phi3", {"hidden_act": "gelu_pytorch"}, "hidden_act and found 'gelu_pytorch'"),
        ("phi4_mini", {"partial_rotary_factor": 0.7}, "partial_rotary_factor and found 0.7"),
        ("phi4_mini", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "list of 6 numbers"),
        ("gemma", {"hidden_act": "relu"}, "hidden_act to relu"),
        ("qwen2_window", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "sliding window"),
        ("qwen3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e6}}, "each kind of layer"),
        ("dinov2", {"qkv_bias": False}, "qkv_bias"),
        ("dinov2", {"num_channels": 4}, "num_channels"),
        ("dinov3", {"rope_scaling": {"rope_type": "linear"}}, "rope_scaling"),
        ("dinov3", {"key_bias": None}, "true or false for key_bias"),
        ("dinov3", {"patch_size": [8, 16]}, "square"),
        ("aimv2", {"hidden_act": "mish"}, "hidden_act.*'mish'"),
        ("siglip_vision", {"image_size": [30, 60]}, "square"),
        ("siglip", {"vision_config": {"model_type": "vit"}}, "'siglip_vision_model' in vision_config"),
    ],
)
def test_what_we_cannot_compute_is_refused(family, changes, message):
    with pytest.raises(UserError, match=message):
        recognise(source(family, **changes))


def test_weights_of_another_model_are_refused():
    with pytest.raises(UserError, match=r"named \.\.\.embed_tokens.weight"):
        recognise(families.opened(families.config("llama3"), families.tensors("clip")))
    with pytest.raises(UserError, match="config.json"):
        recognise(families.opened(None, families.tensors("clip")))
    arrays = families.tensors("qwen3")
    arrays["model.layers.0.self_attn.o_proj.bias"] = np.zeros(32, np.float32)
    with pytest.raises(UserError, match="(?s)unused.*o_proj.bias"):
        families.load(families.opened(families.config("qwen3"), arrays))
    untied = families.tensors("qwen3")
    del untied["lm_head.weight"]
    with pytest.raises(UserError, match="(?s)missing.*lm_head.weight"):
        families.load(families.opened(families.config("qwen3"), untied))


def test_a_written_folder_is_the_model(tmp_path):
    from vadapter.weights.checkpoint import open_checkpoint

    config, params, _ = families.load(open_checkpoint(str(families.write_folder("clip", tmp_path / "clip"))))
    golden = families.outputs("clip")
    ours = families.patches(config, params, golden["frames"])
    np.testing.assert_allclose(ours, golden["patches"], rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def parity():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.weights import parity

    return parity


@pytest.mark.parity
@pytest.mark.parametrize("family", families.FAMILIES)
def test_transformers_agrees_live(family, parity):
    theirs = parity.live(family)
    for name, x in families.outputs(family).items():
        np.testing.assert_allclose(theirs[name], x, rtol=0, atol=TOLERANCE, err_msg=name)
    for part, found in parity.compare(family, theirs).items():
        assert found.apart < TOLERANCE, part
        assert found.same in (None, found.tokens), part


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gemma3", "qwen3", "siglip", "dinov2_giant", "dinov3"])
def test_what_save_pretrained_shards_is_read(family, parity, tmp_path):
    from vadapter.weights.checkpoint import open_checkpoint

    parity.load(family, families.write_folder(family, tmp_path / "one")).save_pretrained(
        tmp_path / "shards", max_shard_size="20KB"
    )
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for part in ("encoder", "decoder") if family == "gemma3" else (None,):
        config, params, _ = families.load(open_checkpoint(str(tmp_path / "shards")), part)
        wanted_config, wanted, _ = families.load(source(family), part)
        assert config == wanted_config
        for path, x in trees.flatten(wanted).items():
            np.testing.assert_array_equal(trees.flatten(params)[path], x, err_msg=path)
