"""DINOv3's ViTs, which read images of any size: rotary positions in place of a table."""

from collections.abc import Iterator

from vadapter.models.vit import ViTConfig
from vadapter.weights.family import Family, ModelType, Place, register
from vadapter.weights.huggingface_vit import (
    BLOCK,
    DEFAULTS,
    MLP,
    affine,
    dense,
    heads,
    ignored,
    picture_notes,
    under,
    vit_config,
)
from vadapter.weights.mapping import CONV, Rule

_ANCHOR = "embeddings.patch_embeddings.weight"
# What says whether a map has a bias, by our name of the map.
_BIASES = {
    "query": "query_bias",
    "key": "key_bias",
    "value": "value_bias",
    "out": "proj_bias",
    "mlp": "mlp_bias",
}
_DEFAULTS = DEFAULTS | {
    "hidden_size": 384,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "rope_theta": 100.0,
    "num_register_tokens": 0,
    "use_gated_mlp": False,
    **{theirs: ours != "key" for ours, theirs in _BIASES.items()},
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


def _config(place: Place) -> ViTConfig:
    settings = place.settings.with_defaults(_DEFAULTS)
    settings.refuse({"rope_scaling": (None,), "rope_parameters": (None,)})
    return vit_config(
        place,
        settings,
        positions="rotary",
        rope_base=settings.real("rope_theta"),
        biases=tuple(ours for ours, theirs in _BIASES.items() if settings.flag(theirs)),
        gated=settings.flag("use_gated_mlp"),
        class_token=True,
        num_registers=settings.whole("num_register_tokens") if settings.get("num_register_tokens") != 0 else 0,
        layer_scale=True,
    )


def _rules(place: Place, config: ViTConfig) -> Iterator[Rule]:
    published = f"{place.prefix}layer.0.norm1.weight" in place.tensors.infos
    layer = "layer.{i}" if published else "model.layer.{i}"
    rules = [
        Rule("embedding/kernel", _ANCHOR, CONV),
        Rule("embedding/bias", "embeddings.patch_embeddings.bias"),
        Rule("cls", "embeddings.cls_token"),
        Rule("registers", "embeddings.register_tokens"),
        *affine(f"{BLOCK}/LayerNorm_0", f"{layer}.norm1"),
        *heads(*(f"{layer}.attention.{name}_proj" for name in "qkvo")),
        Rule(f"{BLOCK}/LayerScale_0/scale", f"{layer}.layer_scale1.lambda1"),
        *affine(f"{BLOCK}/LayerNorm_1", f"{layer}.norm2"),
        *dense(f"{MLP}/Gate", f"{layer}.mlp.gate_proj"),
        *dense(f"{MLP}/Dense_0", f"{layer}.mlp.up_proj"),
        *dense(f"{MLP}/Dense_1", f"{layer}.mlp.down_proj"),
        Rule(f"{BLOCK}/LayerScale_1/scale", f"{layer}.layer_scale2.lambda1"),
        *affine("Transformer/encoder_norm", "norm"),
    ]
    return under(place.prefix, rules)


register(
    Family(
        "dinov3",
        "encoder",
        ModelType(("dinov3_vit",), (_ANCHOR,)),
        _config,
        _rules,
        # The token stands for masked patches in the pretraining; without registers their tensor is empty.
        lambda place, config: ignored(place, r"embeddings\.(mask_token|register_tokens)"),
        picture_notes,
    )
)
