"""LLaVA's layout in transformers: a folder that stock `LlavaForConditionalGeneration` loads, with no code in it.

Names, settings and the projector are those of transformers' LLaVA. It reads the last hidden states of the vision tower,
which by default have not passed its last norm; `tie_last_hidden_states` of the vision configuration says that they
have. A vision transformer of another family than CLIP or SigLIP becomes a plain ViT if it computes the same: factors of
layers (DINOv2) are multiplied into the maps before them.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vadapter.base import resizing
from vadapter.base.errors import UserError
from vadapter.models.adapters import MlpConfig
from vadapter.models.decoder import DecoderConfig
from vadapter.models.vit import BIASES, ViTConfig
from vadapter.models.vlm import VLMConfig
from vadapter.sharing import parameters
from vadapter.sharing.chat_template import IMAGE
from vadapter.sharing.transformers_folder import Text

_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu", "silu": "silu"}
# By class_token, pre_norm and patch_bias.
_KINDS = {
    (True, True, False): "clip_vision_model",
    (True, False, True): "vit",
    (False, False, True): "siglip_vision_model",
}
_GENERATION = "generation_config.json"
_POSITIONS = 131072  # what the configuration asks for; no table has as many rows

_BLOCK, _LAYER = r"encoder\.Transformer\.encoderblock\.(\d+)\.", r"decoder\.layers\.(\d+)\."
_ATTENTION = "MultiHeadDotProductAttention_0"
_SAME = {
    r"adapter\.dense_0\.": "multi_modal_projector.linear_1.",
    r"adapter\.dense_1\.": "multi_modal_projector.linear_2.",
    r"decoder\.embedder\.": "language_model.model.embed_tokens.",
    r"decoder\.head\.": "language_model.lm_head.",
    r"decoder\.final_norm\.": "language_model.model.norm.",
    _LAYER + r"attention\.(query|key)_norm\.": lambda m: (
        f"language_model.model.layers.{m[1]}.self_attn.{m[2][0]}_norm."
    ),
    _LAYER + r"attention\.(query|key|value|out)\.": (
        lambda m: f"language_model.model.layers.{m[1]}.self_attn.{m[2][0]}_proj."
    ),
    _LAYER + r"mlp\.(gate|up|down)\.": r"language_model.model.layers.\1.mlp.\2_proj.",
    _LAYER + r"pre_attention_norm\.": r"language_model.model.layers.\1.input_layernorm.",
}
_NORMS = {  # of a language model: with norms before its parts alone, and with norms around them
    False: {"pre_mlp_norm": "post_attention_layernorm"},
    True: {
        "post_attention_norm": "post_attention_layernorm",
        "pre_mlp_norm": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    },
}
_CLIP_LIKE = {
    r"encoder\.embedding\.": "vision_tower.embeddings.patch_embedding.",
    r"encoder\.pos_embedding": "vision_tower.embeddings.position_embedding.weight",
    r"encoder\.cls": "vision_tower.embeddings.class_embedding",
    r"encoder\.pre_norm\.": "vision_tower.pre_layrnorm.",  # sic
    r"encoder\.Transformer\.encoder_norm\.": "vision_tower.post_layernorm.",
    _BLOCK + r"LayerNorm_0\.": r"vision_tower.encoder.layers.\1.layer_norm1.",
    _BLOCK + r"LayerNorm_1\.": r"vision_tower.encoder.layers.\1.layer_norm2.",
    _BLOCK + _ATTENTION + r"\.(query|key|value)\.": (
        lambda m: f"vision_tower.encoder.layers.{m[1]}.self_attn.{m[2][0]}_proj."
    ),
    _BLOCK + _ATTENTION + r"\.out\.": r"vision_tower.encoder.layers.\1.self_attn.out_proj.",
    _BLOCK + r"MlpBlock_0\.Dense_0\.": r"vision_tower.encoder.layers.\1.mlp.fc1.",
    _BLOCK + r"MlpBlock_0\.Dense_1\.": r"vision_tower.encoder.layers.\1.mlp.fc2.",
}
_PLAIN = {
    r"encoder\.embedding\.": "vision_tower.embeddings.patch_embeddings.projection.",
    r"encoder\.pos_embedding": "vision_tower.embeddings.position_embeddings",
    r"encoder\.cls": "vision_tower.embeddings.cls_token",
    r"encoder\.Transformer\.encoder_norm\.": "vision_tower.layernorm.",
    _BLOCK + r"LayerNorm_0\.": r"vision_tower.encoder.layer.\1.layernorm_before.",
    _BLOCK + r"LayerNorm_1\.": r"vision_tower.encoder.layer.\1.layernorm_after.",
    _BLOCK + _ATTENTION + r"\.(query|key|value)\.": r"vision_tower.encoder.layer.\1.attention.attention.\2.",
    _BLOCK + _ATTENTION + r"\.out\.": r"vision_tower.encoder.layer.\1.attention.output.dense.",
    _BLOCK + r"MlpBlock_0\.Dense_0\.": r"vision_tower.encoder.layer.\1.intermediate.dense.",
    _BLOCK + r"MlpBlock_0\.Dense_1\.": r"vision_tower.encoder.layer.\1.output.dense.",
}


def check(model: VLMConfig, resize: str, max_tiles: int, where: str) -> None:
    """Refuses a model that LLaVA's classes cannot compute.

    Args:
        model: that `transformers_folder.check` lets in, without LoRA.
        resize: of its pictures.
        max_tiles: most tiles behind one.
        where: the folder, for the message.

    Raises:
        UserError: with all that stands in the way.
    """
    reasons = [*_adapter_reasons(model), *_encoder_reasons(model.encoder), *_decoder_reasons(model.decoder)]
    if resizing.parse(resize).mode not in ("stretch", "center_crop"):
        reasons.append(f"pictures are resized by {resize!r}, and not by 'stretch' or 'center_crop'")
    if max_tiles:
        reasons.append(f"pictures have up to {max_tiles} tiles behind them")
    if model.num_frames > 1:
        reasons.append("it reads videos")
    if model.quantization is not None:
        reasons.append("its soft tokens are quantized")
    if reasons:
        raise UserError(
            f"{where} does not fit LLaVA's layout: {'; '.join(reasons)}. Export it with --format=transformers, which "
            "brings a modelling file of its own."
        )


def _adapter_reasons(model: VLMConfig) -> Iterator[str]:
    adapter, width = model.adapter, model.decoder.width
    if not isinstance(adapter, MlpConfig):
        yield f"the adapter is a {type(adapter).__name__.removesuffix('Config')}, and not linear or an MLP"
    elif adapter.pixel_shuffle > 1:
        yield "the adapter maps squares of patches (pixel_shuffle)"
    elif adapter.depth > 2 or (adapter.depth == 2 and (adapter.hidden_dim or width) > width):
        yield "the adapter is an MLP that is deeper than 2 or wider than the language model"


def _encoder_reasons(encoder: Any) -> Iterator[str]:
    assert isinstance(encoder, ViTConfig)
    plain = {"positions": "learned", "gated": False, "norm": "layer", "num_registers": 0, "patch_norm": False}
    for name, expected in plain.items():
        if getattr(encoder, name) != expected:
            yield f"the encoder has {name} {getattr(encoder, name)}"
    if set(encoder.biases) != set(BIASES):
        yield "the encoder has maps without a bias"
    if encoder.activation not in _ACTIVATIONS:
        yield f"the encoder's activation is {encoder.activation}"
    if (encoder.class_token, encoder.pre_norm, encoder.patch_bias) not in _KINDS:
        yield "the encoder is like none of CLIP, SigLIP and ViT in its class_token, pre_norm and patch_bias"


def _decoder_reasons(decoder: DecoderConfig) -> Iterator[str]:
    gemma, scaling = decoder.norm == "rms_plus_one", decoder.rope_scaling
    wanted: dict[str, Any] = {
        **{"gated": True, "parallel_block": False, "pre_norms": True, "causal": True, "rope_dim": None},
        **{"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_multiplier": 1.0},
        **{"attention_softcap": None, "final_softcap": None, "relative_buckets": None},
        **{"post_norms": gemma, "scale_embedding": gemma},
    }
    for name, expected in wanted.items():
        if getattr(decoder, name, expected) != expected:
            yield f"the language model has {name} {getattr(decoder, name)}"
    if decoder.norm not in ("rms", "rms_plus_one") or decoder.activation not in _ACTIVATIONS:
        yield f"the language model has the norm {decoder.norm} and the activation {decoder.activation}"
    if not all(decoder.rope_pattern) or (scaling and scaling.kind not in ("linear", "llama3")):
        yield "the language model has layers without rotary positions, or stretches them by yarn or longrope"
    if gemma and not decoder.qk_norm:
        yield "the language model is a Gemma before the third"
    if decoder.qk_norm and (decoder.qk_norm_over != "head" or decoder.qkv_bias):
        yield "the language model norms queries and keys as neither Qwen 3 nor Gemma 3 do"
    if not gemma and "local" in decoder.attention_pattern:
        yield "the language model has layers with a window"
    scalar = (decoder.query_scale or decoder.head_dim**-0.5) ** -2
    if not math.isclose(scalar, round(scalar) if gemma else decoder.head_dim, rel_tol=1e-6):
        yield f"the language model has query_scale {decoder.query_scale}"


def config(model: VLMConfig, text: Text, dtype: str) -> dict[str, Any]:
    """Returns the content of `config.json`. Arguments as of `transformers_folder.config`."""
    adapter, encoder = model.adapter, model.encoder
    assert isinstance(adapter, MlpConfig) and isinstance(encoder, ViTConfig)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": dtype,
        "vision_config": {**_vision(encoder), "dtype": dtype},
        "text_config": {**_text(model.decoder), "vocab_size": rows(model, text), "dtype": dtype},
        "image_token_index": text.tokenizer.image_id,
        "image_seq_length": encoder.num_patches,
        "projector_hidden_act": "gelu" if adapter.depth == 2 else "linear",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": _strategy(encoder),
        "multimodal_projector_bias": True,
        "tie_word_embeddings": model.decoder.tied_head,
    }


def rows(model: VLMConfig, text: Text) -> int:
    """Returns how many rows the tables need: those of the marks may lie behind the vocabulary."""
    return max(model.decoder.vocab_size, text.tokenizer.image_id + 1, text.tokenizer.video_id + 1)


def _strategy(encoder: ViTConfig) -> str:
    return "default" if encoder.class_token else "full"  # without the first token, or all


def _kind(encoder: ViTConfig) -> str:
    return _KINDS[encoder.class_token, encoder.pre_norm, encoder.patch_bias]


def _vision(encoder: ViTConfig) -> dict[str, Any]:
    kind = _kind(encoder)
    return {
        "model_type": kind,
        "hidden_size": encoder.width,
        "intermediate_size": encoder.mlp_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "hidden_act": _ACTIVATIONS[encoder.activation],
        "layer_norm_eps": encoder.norm_eps,
        "tie_last_hidden_states": encoder.final_norm,
        **({"vision_use_head": False} if kind == "siglip_vision_model" else {}),
        **({"qkv_bias": True} if kind == "vit" else {}),
    }


def _text(decoder: DecoderConfig) -> dict[str, Any]:
    gemma = decoder.norm == "rms_plus_one"
    kind = "gemma3_text" if gemma else "qwen3" if decoder.qk_norm else "qwen2" if decoder.qkv_bias else "llama"
    scaling, rope = decoder.rope_scaling, {"rope_type": "default", "rope_theta": decoder.rope_base}
    if scaling:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
            rope |= {"original_max_position_embeddings": scaling.original_length}
    made = {
        "model_type": kind,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_dim,
        "num_hidden_layers": decoder.depth,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "rms_norm_eps": decoder.norm_eps,
        "max_position_embeddings": _POSITIONS,
        "tie_word_embeddings": decoder.tied_head,
        "rope_parameters": rope,
        "hidden_activation" if gemma else "hidden_act": _ACTIVATIONS[decoder.activation],
    }
    if gemma:
        pattern = decoder.attention_pattern
        kinds = {"local": "sliding_attention", "global": "full_attention"}
        local = {"rope_type": "default", "rope_theta": decoder.rope_local_base or decoder.rope_base}
        made |= {
            "query_pre_attn_scalar": round((decoder.query_scale or decoder.head_dim**-0.5) ** -2),
            "layer_types": [kinds[pattern[i % len(pattern)]] for i in range(decoder.depth)],
            "sliding_window": decoder.window or _POSITIONS,
            "rope_parameters": {"full_attention": rope, "sliding_attention": local},
        }
    return made


def processor(model: VLMConfig, resize: str) -> dict[str, dict[str, Any]]:
    """Returns the contents of `preprocessor_config.json` and `processor_config.json`."""
    encoder, found = model.encoder, resizing.parse(resize)
    assert isinstance(encoder, ViTConfig)
    square = {"height": encoder.image_size, "width": encoder.image_size}
    crops = found.mode == "center_crop"
    pictures = {
        # That of Pillow: torchvision's gives other pixels.
        "image_processor_type": "CLIPImageProcessorPil" if crops else "SiglipImageProcessorPil",
        "processor_class": "LlavaProcessor",
        "do_resize": True,
        "size": {"shortest_edge": round(encoder.image_size * found.shorter)} if crops else square,
        "resample": resizing.FILTERS.index(found.filter),
        **({"do_center_crop": True, "crop_size": square} if crops else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }
    whole = {
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE,
        "patch_size": encoder.patch_size,
        "num_additional_image_tokens": int(encoder.class_token),
        "vision_feature_select_strategy": _strategy(encoder),
    }
    return {"preprocessor_config.json": pictures, "processor_config.json": whole}


def files(model: VLMConfig, text: Text) -> dict[str, str]:
    """Returns the files of the tokenizer by name; rows of the tables behind the vocabulary are never said."""
    behind = list(range(model.decoder.vocab_size, rows(model, text)))
    generation = {**json.loads(text.files[_GENERATION]), **({"suppress_tokens": behind} if behind else {})}
    return {**text.files, _GENERATION: json.dumps(generation, indent=2) + "\n"}


def tensors(model: VLMConfig, params: Mapping[str, np.ndarray], table: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the parameters by their names in transformers.

    Args:
        model: that `check` lets in.
        params: as of `parameters.torch_tensors`.
        table: rows of the tables of words; those behind the vocabulary are 0.
    """
    encoder, adapter, width = model.encoder, model.adapter, model.decoder.width
    assert isinstance(encoder, ViTConfig) and isinstance(adapter, MlpConfig)
    kind = _kind(encoder)
    names = {**_SAME, **(_PLAIN if kind == "vit" else _CLIP_LIKE)}
    around = _NORMS[model.decoder.post_norms]
    names |= {_LAYER + rf"{ours}\.": rf"language_model.model.layers.\1.{name}." for ours, name in around.items()}
    for ours, x in parameters.torch_tensors(model, _without_factors(params)):
        name = _renamed(ours, names)
        if name.startswith("vision_tower.") and kind != "vit":
            x = x[0] if ours == "encoder.pos_embedding" else x.reshape(-1) if ours == "encoder.cls" else x
        if ours in ("decoder.embedder.weight", "decoder.head.weight"):
            x = np.concatenate([x, np.zeros((table - len(x), width), x.dtype)])
        if ours.startswith("adapter.") and adapter.depth == 2:  # a narrow one has channels of 0 beside it
            x = np.pad(x, _to_width(ours, x, width))
        yield name, x
    dtype = params["adapter/dense_0/kernel"].dtype
    if adapter.depth == 1:  # LLaVA's projector has a second map
        yield "multi_modal_projector.linear_2.weight", np.eye(width, dtype=dtype)
        yield "multi_modal_projector.linear_2.bias", np.zeros(width, dtype)
    norm = "vision_tower.layernorm" if kind == "vit" else "vision_tower.post_layernorm"
    if not encoder.final_norm:  # it is there, and nothing of it is read
        yield f"{norm}.weight", np.ones(encoder.width, dtype)
        yield f"{norm}.bias", np.zeros(encoder.width, dtype)
    if kind == "vit":  # likewise
        yield "vision_tower.pooler.dense.weight", np.zeros((encoder.width,) * 2, dtype)
        yield "vision_tower.pooler.dense.bias", np.zeros(encoder.width, dtype)


def _to_width(name: str, x: np.ndarray, width: int) -> list[tuple[int, int]]:
    """How much the first map's outputs and the second one's inputs lack."""
    lacking = [(0, 0)] * x.ndim
    if name.startswith("adapter.dense_0."):
        lacking[0] = (0, width - x.shape[0])
    elif name == "adapter.dense_1.weight":
        lacking[1] = (0, width - x.shape[1])
    return lacking


def _renamed(ours: str, names: Mapping[str, Any]) -> str:
    for pattern, theirs in names.items():
        if match := re.match(pattern, ours):
            return str(theirs(match) if callable(theirs) else match.expand(theirs)) + ours[match.end() :]
    raise AssertionError(ours)


def _without_factors(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters with the factors of the layers multiplied into the maps before them."""
    found = dict(params)
    block = f"encoder/{ViTConfig.stack}"
    for factors, last in (("LayerScale_0", f"{_ATTENTION}/out"), ("LayerScale_1", "MlpBlock_0/Dense_1")):
        if (path := f"{block}/{factors}/scale") in found:
            scale = np.asarray(found.pop(path))
            for name in ("kernel", "bias"):
                x = np.asarray(found[f"{block}/{last}/{name}"])
                found[f"{block}/{last}/{name}"] = x * scale.reshape(len(scale), *(1,) * (x.ndim - 2), -1)
    return found
