"""AIMv2, as transformers saves it: the image tower alone, or in a pair with a text tower."""

from collections.abc import Iterator
from typing import Any

from vadapter.models.vit import ViTConfig
from vadapter.weights.family import Family, ModelType, Place, register
from vadapter.weights.huggingface_vit import BLOCK, DEFAULTS, MLP, dense, heads, ignored, under, vit_config
from vadapter.weights.mapping import CONV, LEADING_ONES, Rule

_ANCHOR = "embeddings.patch_embed.weight"
_DEFAULTS = DEFAULTS | {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "intermediate_size": 2816,
    "patch_size": 14,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "qkv_bias": False,
    "mlp_bias": False,
    "is_native": False,
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def _config(place: Place) -> ViTConfig:
    settings = place.settings.with_defaults(_DEFAULTS)
    ours: dict[str, Any] = {"positions": "sines"} if settings.flag("is_native") else {"position_resampling": "bicubic"}
    biases = ("query", "key", "value", "out") if settings.flag("qkv_bias") else ()
    return vit_config(
        place,
        settings,
        norm="rms",
        norm_eps=settings.real("rms_norm_eps"),
        patch_norm=True,
        gated=True,
        biases=(*biases, "mlp") if settings.flag("mlp_bias") else biases,
        **ours,
    )


def _rules(place: Place, config: ViTConfig) -> Iterator[Rule]:
    layer = "encoder.layers.{i}"
    attention = f"{layer}.attention"
    rules = [
        Rule("embedding/kernel", _ANCHOR, CONV),
        Rule("embedding/bias", "embeddings.patch_embed.bias"),
        Rule("patch_norm/scale", "embeddings.rms_norm.weight"),
        Rule("pos_embedding", "embeddings.position_embedding.weight", LEADING_ONES),
        Rule(f"{BLOCK}/LayerNorm_0/scale", f"{layer}.rms_norm1.weight"),
        *heads(*(f"{attention}.{name}_proj" for name in ("q", "k", "v", "out"))),
        Rule(f"{BLOCK}/LayerNorm_1/scale", f"{layer}.rms_norm2.weight"),
        *dense(f"{MLP}/Gate", f"{layer}.ffn.gate_proj"),
        *dense(f"{MLP}/Dense_0", f"{layer}.ffn.up_proj"),
        *dense(f"{MLP}/Dense_1", f"{layer}.ffn.down_proj"),
        Rule("Transformer/encoder_norm/scale", "rms_norm.weight"),
    ]
    return under(place.prefix, rules)


register(
    Family(
        "aimv2",
        "encoder",
        ModelType(("aimv2_vision_model",), (_ANCHOR,), within={"aimv2": "vision_config"}),
        _config,
        _rules,
        # The pooling of all patches to one vector.
        lambda place, config: ignored(place, r"head\..*"),
    )
)
