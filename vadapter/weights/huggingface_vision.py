"""Vision encoders saved by transformers: SigLIP and SigLIP 2, CLIP, DINOv2 with and without registers.

All give patch tokens: SigLIP's and DINOv2's after the final norm, CLIP's before it, as LLaVA reads them.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from vadapter.base.errors import UserError
from vadapter.models.vit import ViTConfig
from vadapter.weights.architecture import Architecture, Opened
from vadapter.weights.mapping import CONV, LEADING_ONES, MERGED, SAME, Layout, Rule, linear, part
from vadapter.weights.settings import Settings, find_prefix

# Defaults of transformers, for what config.json leaves out.
_COMMON = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}
_SIGLIP = _COMMON | {
    "intermediate_size": 3072,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}
_CLIP = _COMMON | {
    "intermediate_size": 3072,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_DINOV2 = _COMMON | {
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_PATCH_SIZE = {"dinov2": 14, "dinov2_with_registers": 16}

_BLOCK = "Transformer/encoderblock"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"
_MLP = f"{_BLOCK}/MlpBlock_0"


def siglip(settings: Settings, opened: Opened) -> Architecture:
    """A SigLIP tower, given its own settings: of a pair, alone, or of the multimodal Gemma 3."""
    config = _config(settings.with_defaults(_SIGLIP), opened)
    prefix = find_prefix(opened.tensors, "embeddings.patch_embedding.weight")
    rules = [
        Rule("embedding/kernel", "embeddings.patch_embedding.weight", CONV),
        Rule("embedding/bias", "embeddings.patch_embedding.bias"),
        Rule("pos_embedding", "embeddings.position_embedding.weight", LEADING_ONES),
        *_contrastive_blocks(),
        *_affine("Transformer/encoder_norm", "post_layernorm"),
    ]
    return _architecture("siglip", config, prefix, rules, ["head\\..*"])


def clip(settings: Settings, opened: Opened) -> Architecture:
    """A CLIP tower, given its own settings: of a pair or alone."""
    config = _config(
        settings.with_defaults(_CLIP),
        opened,
        class_token=True,
        pre_norm=True,
        final_norm=False,
        patch_bias=False,
    )
    prefix = find_prefix(opened.tensors, "embeddings.patch_embedding.weight")
    rules = [
        Rule("embedding/kernel", "embeddings.patch_embedding.weight", CONV),
        Rule("cls", "embeddings.class_embedding", LEADING_ONES),
        Rule("pos_embedding", "embeddings.position_embedding.weight", LEADING_ONES),
        *_affine("pre_norm", "pre_layrnorm"),  # transformers' spelling
        *_contrastive_blocks(),
    ]
    # The last norm is of the pooled class token alone.
    return _architecture("clip", config, prefix, rules, ["post_layernorm\\..*"])


def dinov2(settings: Settings, opened: Opened) -> Architecture:
    """DINOv2, with registers or without."""
    settings = settings.with_defaults(_DINOV2).with_default("patch_size", _PATCH_SIZE[settings.kind])
    settings.refuse({"qkv_bias": (True,)})
    registers = settings.kind == "dinov2_with_registers"
    hidden = int(settings.whole("hidden_size") * settings.real("mlp_ratio"))
    gate: dict[str, Any] = {}
    if settings.flag("use_swiglu_ffn"):
        # Two thirds of the hidden size, rounded up to a multiple of 8.
        hidden = (hidden * 2 // 3 + 7) // 8 * 8
        gate = {"gated": True, "activation": "silu"}
    config = _config(
        settings,
        opened,
        mlp_dim=hidden,
        class_token=True,
        layer_scale=True,
        num_registers=settings.with_default("num_register_tokens", 4).whole("num_register_tokens") if registers else 0,
        **gate,
    )
    prefix = find_prefix(opened.tensors, "embeddings.patch_embeddings.projection.weight")
    ignored = ["embeddings\\.mask_token"]  # stands for masked patches in the pretraining
    return _architecture("dinov2", config, prefix, _dinov2_rules(opened, prefix), ignored)


def _dinov2_rules(opened: Opened, prefix: str) -> list[Rule]:
    layer = "encoder.layer.{i}"
    new = f"{prefix}encoder.layer.0.attention.q_proj.weight" in opened.tensors.infos
    names = ("q_proj", "k_proj", "v_proj") if new else ("attention.query", "attention.key", "attention.value")
    query, key, value = (f"{layer}.attention.{name}" for name in names)
    out = f"{layer}.attention.{'o_proj' if new else 'output.dense'}"
    rules = [
        Rule("embedding/kernel", "embeddings.patch_embeddings.projection.weight", CONV),
        Rule("embedding/bias", "embeddings.patch_embeddings.projection.bias"),
        Rule("cls", "embeddings.cls_token"),
        Rule("registers", "embeddings.register_tokens"),
        Rule("pos_embedding", "embeddings.position_embeddings"),
        *_affine(f"{_BLOCK}/LayerNorm_0", f"{layer}.norm1"),
        *_heads(query, key, value, out),
        Rule(f"{_BLOCK}/LayerScale_0/scale", f"{layer}.layer_scale1.lambda1"),
        *_affine(f"{_BLOCK}/LayerNorm_1", f"{layer}.norm2"),
        Rule(f"{_BLOCK}/LayerScale_1/scale", f"{layer}.layer_scale2.lambda1"),
        *_affine("Transformer/encoder_norm", "layernorm"),
    ]
    if f"{prefix}encoder.layer.0.mlp.weights_in.weight" in opened.tensors.infos:
        # Gate and up are one tensor, in this order.
        return rules + [
            *_dense(f"{_MLP}/Gate", f"{layer}.mlp.weights_in", part(0, 2, linear()), part(0, 2)),
            *_dense(f"{_MLP}/Dense_0", f"{layer}.mlp.weights_in", part(1, 2, linear()), part(1, 2)),
            *_dense(f"{_MLP}/Dense_1", f"{layer}.mlp.weights_out"),
        ]
    if f"{prefix}encoder.layer.0.mlp.gate_proj.weight" in opened.tensors.infos:
        return rules + [
            *_dense(f"{_MLP}/Gate", f"{layer}.mlp.gate_proj"),
            *_dense(f"{_MLP}/Dense_0", f"{layer}.mlp.up_proj"),
            *_dense(f"{_MLP}/Dense_1", f"{layer}.mlp.down_proj"),
        ]
    return rules + [*_dense(f"{_MLP}/Dense_0", f"{layer}.mlp.fc1"), *_dense(f"{_MLP}/Dense_1", f"{layer}.mlp.fc2")]


def _contrastive_blocks() -> list[Rule]:
    """The blocks of SigLIP and CLIP, which have the same names."""
    layer = "encoder.layers.{i}"
    query, key, value, out = (f"{layer}.self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
    return [
        *_affine(f"{_BLOCK}/LayerNorm_0", f"{layer}.layer_norm1"),
        *_heads(query, key, value, out),
        *_affine(f"{_BLOCK}/LayerNorm_1", f"{layer}.layer_norm2"),
        *_dense(f"{_MLP}/Dense_0", f"{layer}.mlp.fc1"),
        *_dense(f"{_MLP}/Dense_1", f"{layer}.mlp.fc2"),
    ]


def _affine(target: str, source: str) -> list[Rule]:
    return [Rule(f"{target}/scale", f"{source}.weight"), Rule(f"{target}/bias", f"{source}.bias")]


def _dense(target: str, source: str, kernel: Layout | None = None, bias: Layout = SAME) -> list[Rule]:
    return [
        Rule(f"{target}/kernel", f"{source}.weight", kernel or linear()),
        Rule(f"{target}/bias", f"{source}.bias", bias),
    ]


def _heads(query: str, key: str, value: str, out: str) -> list[Rule]:
    return [
        *_dense(f"{_ATTENTION}/query", query, linear(), MERGED),
        *_dense(f"{_ATTENTION}/key", key, linear(), MERGED),
        *_dense(f"{_ATTENTION}/value", value, linear(), MERGED),
        *_dense(f"{_ATTENTION}/out", out, linear(2)),
    ]


def _architecture(family: str, config: ViTConfig, prefix: str, rules: list[Rule], unwanted: list[str]) -> Architecture:
    """Puts the prefix before all names; `unwanted` are regexes of what else the tower has."""
    inside = re.escape(prefix)
    ignored = [
        f"{inside}embeddings\\.position_ids",  # 0, 1, 2, ... in files of old versions
        *(f"{inside}{pattern}" for pattern in unwanted),
        # The other tower of a pair, and the maps and scale that compare the two.
        "text_model\\..*",
        "(text|visual)_projection\\.weight",
        "logit_(scale|bias)",
        "classifier\\..*",  # of a model fine-tuned on labels
        # The rest of the multimodal Gemma 3.
        "(model\\.)?(language_model|multi_modal_projector)\\..*",
        "lm_head\\.weight",
    ]
    named = tuple(Rule(rule.target, f"{prefix}{rule.source}", rule.layout) for rule in rules)
    return Architecture("vision", family, config, named, tuple(ignored))


def _config(settings: Settings, opened: Opened, **ours: Any) -> ViTConfig:
    settings.refuse({"num_channels": (3,)})
    image, patch = _square(settings, "image_size"), _square(settings, "patch_size")
    mean, std = _normalisation(settings, opened)
    fields: dict[str, Any] = {
        "image_size": image,
        "patch_size": patch,
        "width": settings.whole("hidden_size"),
        "depth": settings.whole("num_hidden_layers"),
        "num_heads": settings.whole("num_attention_heads"),
        "mlp_dim": ours.get("mlp_dim") or settings.whole("intermediate_size"),
        "activation": settings.activation("hidden_act"),
        "norm_eps": settings.real("layer_norm_eps"),
        "drop_edges": image % patch != 0,
        "mean": mean,
        "std": std,
    }
    return ViTConfig(**fields | ours)


def _square(settings: Settings, name: str) -> int:
    value = settings.get(name)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise settings.error(name, value, "one whole number, as images and patches are square here,")
    return value


def _normalisation(settings: Settings, opened: Opened) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels: of the image processor's file, or the family's."""
    file = "preprocessor_config.json"
    processor: Mapping[str, Any] = opened.extra.get(file) or {}
    if "image_mean" not in processor:
        # Newer versions keep it with the processor's other parts.
        file = "processor_config.json"
        processor = (opened.extra.get(file) or {}).get("image_processor") or {}

    def three(name: str, family: str) -> tuple[float, ...]:
        value = processor.get(name) or settings.get(family)
        numbers = isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)
        if not numbers:
            raise UserError(f"{file} of {settings.where}: expected three numbers for {name} and found {value!r}.")
        return tuple(float(x) for x in value)

    factor, rescaled = processor.get("rescale_factor") or 1 / 255, processor.get("do_rescale", True)
    if not rescaled or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise UserError(
            f"{file} of {settings.where}: expected pixels to be brought to 0..1 (rescale_factor 1/255), and found "
            f"rescale_factor {factor}, do_rescale {rescaled}. Take another checkpoint of this family."
        )
    if not processor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return three("image_mean", "mean"), three("image_std", "std")
