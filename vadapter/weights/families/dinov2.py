"""DINOv2, with registers or without."""

from collections.abc import Iterator
from typing import Any

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
from vadapter.weights.mapping import CONV, LAYER, Rule, linear, part

_PLAIN, _REGISTERS = "dinov2", "dinov2_with_registers"
_DEFAULTS = DEFAULTS | {
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_PATCH_SIZE = {_PLAIN: 14, _REGISTERS: 16}


def _config(place: Place) -> ViTConfig:
    settings = place.settings.with_defaults(_DEFAULTS | {"patch_size": _PATCH_SIZE[place.settings.kind]})
    settings.refuse({"qkv_bias": (True,)})
    ours: dict[str, Any] = {"position_resampling": "bicubic"}
    if settings.kind == _REGISTERS:
        registers = settings.with_default("num_register_tokens", 4).whole("num_register_tokens")
        ours = {"position_resampling": "bicubic_antialias", "num_registers": registers}
    hidden = int(settings.whole("hidden_size") * settings.real("mlp_ratio"))
    if settings.flag("use_swiglu_ffn"):
        # Two thirds of the hidden size, rounded up to a multiple of 8.
        hidden = (hidden * 2 // 3 + 7) // 8 * 8
        ours |= {"gated": True, "activation": "silu"}
    return vit_config(place, settings, mlp_dim=hidden, class_token=True, layer_scale=True, **ours)


def _rules(place: Place, config: ViTConfig) -> Iterator[Rule]:
    prefix, layer = place.prefix, "encoder.layer.{i}"
    new = f"{prefix}encoder.layer.0.attention.q_proj.weight" in place.tensors.infos
    names = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
    query, key, value = (f"{layer}.attention.{name}" for name in names)
    out = f"{layer}.attention.{'o_proj' if new else 'output.dense'}"
    rules = [
        Rule("embedding/kernel", "embeddings.patch_embeddings.projection.weight", CONV),
        Rule("embedding/bias", "embeddings.patch_embeddings.projection.bias"),
        Rule("cls", "embeddings.cls_token"),
        Rule("registers", "embeddings.register_tokens"),
        Rule("pos_embedding", "embeddings.position_embeddings"),
        *affine(f"{BLOCK}/LayerNorm_0", f"{layer}.norm1"),
        *heads(query, key, value, out),
        Rule(f"{BLOCK}/LayerScale_0/scale", f"{layer}.layer_scale1.lambda1"),
        *affine(f"{BLOCK}/LayerNorm_1", f"{layer}.norm2"),
        Rule(f"{BLOCK}/LayerScale_1/scale", f"{layer}.layer_scale2.lambda1"),
        *affine("Transformer/encoder_norm", "layernorm"),
    ]
    return under(prefix, [*rules, *_mlp(place, f"{layer}.mlp")])


def _mlp(place: Place, module: str) -> list[Rule]:
    first = f"{place.prefix}{module}".replace(LAYER, "0")
    if f"{first}.weights_in.weight" in place.tensors.infos:
        # Gate and up are one tensor, in this order.
        return [
            *dense(f"{MLP}/Gate", f"{module}.weights_in", part(0, 2, linear()), part(0, 2)),
            *dense(f"{MLP}/Dense_0", f"{module}.weights_in", part(1, 2, linear()), part(1, 2)),
            *dense(f"{MLP}/Dense_1", f"{module}.weights_out"),
        ]
    gated = {"Gate": "gate_proj", "Dense_0": "up_proj", "Dense_1": "down_proj"}
    names = gated if f"{first}.gate_proj.weight" in place.tensors.infos else {"Dense_0": "fc1", "Dense_1": "fc2"}
    return [rule for ours, theirs in names.items() for rule in dense(f"{MLP}/{ours}", f"{module}.{theirs}")]


register(
    Family(
        "dinov2",
        "encoder",
        ModelType((_PLAIN, _REGISTERS), ("embeddings.patch_embeddings.projection.weight",)),
        _config,
        _rules,
        # The token stands for masked patches in the pretraining.
        lambda place, config: ignored(place, r"embeddings\.mask_token"),
        picture_notes,
    )
)
