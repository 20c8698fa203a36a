"""AIMv2: as transformers saves it, alone or in a pair with a text tower, and as Apple's own code did, alone."""

from collections.abc import Iterator
from typing import Any

from vadapter.models.vit import ViTConfig
from vadapter.weights.family import Family, ModelType, Place, register
from vadapter.weights.huggingface_vit import (
    ATTENTION,
    BLOCK,
    DEFAULTS,
    MLP,
    dense,
    heads,
    ignored,
    picture_notes,
    under,
    vit_config,
)
from vadapter.weights.mapping import CONV, LEADING_ONES, Rule, linear, part
from vadapter.weights.settings import Settings

_ANCHOR, _APPLES = "embeddings.patch_embed.weight", "preprocessor.patchifier.proj.weight"
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


def _is_apples(place: Place) -> bool:
    return f"{place.prefix}{_APPLES}" in place.tensors.infos


def _settings(place: Place) -> Settings:
    if not _is_apples(place):
        return place.settings.with_defaults(_DEFAULTS)
    # Its config.json is that of the tower, and does not say which model computes its positions.
    settings = Settings(place.checkpoint.config or {}, place.tensors.where, _DEFAULTS)
    settings.refuse({"qkv_bias": (False,), "use_bias": (False,)})
    return settings.with_default("is_native", f"{place.prefix}preprocessor.pos_embed" not in place.tensors.infos)


def _config(place: Place) -> ViTConfig:
    settings = _settings(place)
    # The code of the others reads one image size, so that another is ours to resample.
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
    return under(place.prefix, _apples_table() if _is_apples(place) else _table())


def _apples_table() -> list[Rule]:
    layer = "trunk.blocks.{i}"
    return [
        Rule("embedding/kernel", _APPLES, CONV),
        Rule("embedding/bias", "preprocessor.patchifier.proj.bias"),
        Rule("patch_norm/scale", "preprocessor.patchifier.norm.weight"),
        Rule("pos_embedding", "preprocessor.pos_embed"),
        Rule(f"{BLOCK}/LayerNorm_0/scale", f"{layer}.norm_1.weight"),
        *(
            Rule(f"{ATTENTION}/{name}/kernel", f"{layer}.attn.qkv.weight", part(index, 3, linear()))
            for index, name in enumerate(("query", "key", "value"))
        ),
        Rule(f"{ATTENTION}/out/kernel", f"{layer}.attn.proj.weight", linear(2)),
        Rule(f"{BLOCK}/LayerNorm_1/scale", f"{layer}.norm_2.weight"),
        *(
            Rule(f"{MLP}/{ours}/kernel", f"{layer}.mlp.{theirs}.weight", linear())
            for ours, theirs in {"Gate": "fc1", "Dense_0": "fc3", "Dense_1": "fc2"}.items()
        ),
        Rule("Transformer/encoder_norm/scale", "trunk.post_trunk_norm.weight"),
    ]


def _table() -> list[Rule]:
    layer = "encoder.layers.{i}"
    attention = f"{layer}.attention"
    return [
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


register(
    Family(
        "aimv2",
        "encoder",
        ModelType(("aimv2_vision_model",), (_ANCHOR, _APPLES), within={"aimv2": "vision_config"}),
        _config,
        _rules,
        # The pooling of all patches to one vector.
        lambda place, config: ignored(place, r"head\..*"),
        picture_notes,
    )
)
