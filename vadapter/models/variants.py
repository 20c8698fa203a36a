"""Published sizes as tables, and the two functions that look them up.

A table entry has the fields in which a model differs from its family; the families have the rest. The figures are those
of the published configuration files; the tests compare the parameter counts with the published ones.

The paper's own language models (PaLM2 "tiny", "1B", "8B") are not published. `palm_*` have PaLM's kind of block (arXiv
2204.02311) in sizes that match what the paper says. Its names do not count the embedding table ("1B" is 1.6B in all,
"8B" is 9.7B), so `palm_108m` has 108M parameters in its layers, which are what an adapter has of it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vadapter.base.errors import UserError
from vadapter.base.trees import nearest
from vadapter.models.decoder import DecoderConfig
from vadapter.models.positions import RopeScaling
from vadapter.models.vit import ViTConfig

__all__ = ["DECODERS", "ENCODERS", "decoder", "encoder"]

Fields = Mapping[str, Any]

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_CLIP: Fields = {
    "activation": "quick_gelu",
    "norm_eps": 1e-5,
    "class_token": True,
    "pre_norm": True,
    "final_norm": False,
    "patch_bias": False,
    "mean": _CLIP_MEAN,
    "std": _CLIP_STD,
}
_IMAGENET: Fields = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_DINOV2: Fields = {"activation": "gelu", "class_token": True, "layer_scale": True, **_IMAGENET}
_DINOV3: Fields = _DINOV2 | {
    "biases": ("query", "value", "out", "mlp"),
    "norm_eps": 1e-5,
    "positions": "rotary",
    "num_registers": 4,
}
_SWIGLU: Fields = {"activation": "silu", "gated": True}
_AIMV2: Fields = _SWIGLU | {
    "biases": (),
    "norm": "rms",
    "norm_eps": 1e-5,
    "patch_norm": True,
    "mean": _CLIP_MEAN,
    "std": _CLIP_STD,
}
# Width, depth, heads and MLP.
_AIMV2_SIZES = {
    "large": (1024, 24, 8, 2816),
    "huge": (1536, 24, 12, 4096),
    "1b": (2048, 24, 16, 5632),
    "3b": (3072, 24, 24, 8192),
}


def _vit(image_size: int, patch_size: int, width: int, depth: int, num_heads: int, mlp_dim: int) -> dict[str, Any]:
    return {
        "image_size": image_size,
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_dim": mlp_dim,
    }


def _table(image_size: int, patch_size: int, *sizes: int, resampling: str = "bicubic") -> dict[str, Any]:
    """A ViT whose table of positions stays that of this image size, whatever `image_size` is chosen."""
    grid = {"position_grid": image_size // patch_size, "position_resampling": resampling}
    return _vit(image_size, patch_size, *sizes) | grid


ENCODERS: Mapping[str, Fields] = {
    # The paper's: CoCa's at 288 pixels, 256 patches. Sizes of "Scaling Vision Transformers" (arXiv 2106.04560).
    "vit_b": _vit(288, 18, 768, 12, 12, 3072),
    "vit_l": _vit(288, 18, 1024, 24, 16, 4096),
    "vit_g": _vit(288, 18, 1408, 40, 16, 6144),
    # SigLIP (arXiv 2303.15343) and SigLIP 2 (arXiv 2502.14786), without the pooling head.
    # A 384-pixel image has 27 x 27 whole patches of 14 pixels, 378 pixels in all; the rest is not read.
    "so400m_14_224": _table(224, 14, 1152, 27, 16, 4304),
    "so400m_14_384": _table(384, 14, 1152, 27, 16, 4304) | {"drop_edges": True},
    "so400m_14_448": _table(448, 14, 1152, 27, 16, 4304),  # PaliGemma, without the projection
    "so400m_14_896": _table(896, 14, 1152, 27, 16, 4304),  # PaliGemma, multimodal Gemma 3
    "so400m_16_256": _table(256, 16, 1152, 27, 16, 4304),
    "so400m_16_384": _table(384, 16, 1152, 27, 16, 4304),
    "so400m_16_512": _table(512, 16, 1152, 27, 16, 4304),
    "siglip_b_16_224": _table(224, 16, 768, 12, 12, 3072),
    "siglip_b_16_256": _table(256, 16, 768, 12, 12, 3072),
    "siglip_b_16_384": _table(384, 16, 768, 12, 12, 3072),
    "siglip_b_16_512": _table(512, 16, 768, 12, 12, 3072),
    "siglip2_b_32_256": _table(256, 32, 768, 12, 12, 3072),
    "siglip_l_16_256": _table(256, 16, 1024, 24, 16, 4096),
    "siglip_l_16_384": _table(384, 16, 1024, 24, 16, 4096),
    "siglip2_l_16_512": _table(512, 16, 1024, 24, 16, 4096),
    "siglip2_g_16_256": _table(256, 16, 1536, 40, 16, 6144),
    "siglip2_g_16_384": _table(384, 16, 1536, 40, 16, 6144),
    # SigLIP 2 NaFlex on square pictures. It was trained on grids of many shapes and sizes.
    "siglip2_b_16_naflex": _table(256, 16, 768, 12, 12, 3072, resampling="bilinear_antialias"),
    "siglip2_so400m_16_naflex": _table(256, 16, 1152, 27, 16, 4304, resampling="bilinear_antialias"),
    # OpenAI's CLIP, patch tokens of the last layer. LLaVA reads those of the layer before: depth=23.
    "clip_l_14_224": _table(224, 14, 1024, 24, 16, 4096) | _CLIP,
    "clip_l_14_336": _table(336, 14, 1024, 24, 16, 4096) | _CLIP,
    # DINOv2 (arXiv 2304.07193), patch tokens after the final norm.
    "dinov2_s": _table(518, 14, 384, 12, 6, 1536) | _DINOV2,
    "dinov2_b": _table(518, 14, 768, 12, 12, 3072) | _DINOV2,
    "dinov2_l": _table(518, 14, 1024, 24, 16, 4096) | _DINOV2,
    "dinov2_g": _table(518, 14, 1536, 40, 24, 4096) | _DINOV2 | _SWIGLU,
    # DINOv3 (arXiv 2508.10104), which has no image size of its own.
    "dinov3_vits16": _vit(224, 16, 384, 12, 6, 1536) | _DINOV3,
    "dinov3_vits16plus": _vit(224, 16, 384, 12, 6, 1536) | _DINOV3 | _SWIGLU,
    "dinov3_vitb16": _vit(224, 16, 768, 12, 12, 3072) | _DINOV3,
    "dinov3_vitl16": _vit(224, 16, 1024, 24, 16, 4096) | _DINOV3,
    "dinov3_vith16plus": _vit(224, 16, 1280, 32, 20, 5120) | _DINOV3 | _SWIGLU,
    "dinov3_vit7b16": _vit(224, 16, 4096, 40, 32, 8192) | _DINOV3 | _SWIGLU | {"biases": ("out", "mlp")},
    # AIMv2 (arXiv 2411.14402), without the pooling head; `native` has no image size of its own.
    **{
        f"aimv2_{name}_patch14_{image_size}": _table(image_size, 14, *sizes) | _AIMV2
        for name, sizes in _AIMV2_SIZES.items()
        for image_size in (224, 336, 448)
    },
    "aimv2_large_patch14_native": _vit(224, 14, *_AIMV2_SIZES["large"]) | _AIMV2 | {"positions": "sines"},
}

_PALM: Fields = {
    "vocab_size": 256_000,
    "num_kv_heads": 1,
    "head_dim": 256,
    "norm": "layer_no_bias",
    "activation": "silu",
    "parallel_block": True,
    "scale_embedding": True,
}
_GEMMA1: Fields = {"vocab_size": 256_000, "norm": "rms_plus_one", "scale_embedding": True, "head_dim": 256}
_GEMMA2: Fields = _GEMMA1 | {
    "post_norms": True,
    "attention_pattern": ("local", "global"),
    "window": 4096,
    "query_scale": 256**-0.5,
    "attention_softcap": 50.0,
    "final_softcap": 30.0,
}
_GEMMA3: Fields = _GEMMA1 | {
    "vocab_size": 262_144,
    "post_norms": True,
    "qk_norm": True,
    "attention_pattern": ("local",) * 5 + ("global",),
    "window": 512,
    "query_scale": 256**-0.5,
    "rope_base": 1_000_000.0,
    "rope_local_base": 10_000.0,
}
# The multimodal sizes: 64 more ids (for images), a longer window, and a context stretched from 32k to 128k.
_GEMMA3_LARGE: Fields = _GEMMA3 | {
    "vocab_size": 262_208,
    "window": 1024,
    "rope_scaling": RopeScaling("linear", factor=8.0),
}
# The small sizes are tied and have a smaller table.
_QWEN25: Fields = {
    "vocab_size": 152_064,
    "num_kv_heads": 8,
    "head_dim": 128,
    "activation": "silu",
    "qkv_bias": True,
    "rope_base": 1_000_000.0,
    "tied_head": False,
}
_QWEN25_SMALL: Fields = _QWEN25 | {"vocab_size": 151_936, "num_kv_heads": 2, "tied_head": True}
_QWEN3: Fields = {
    "vocab_size": 151_936,
    "num_kv_heads": 8,
    "head_dim": 128,
    "activation": "silu",
    "qk_norm": True,
    "rope_base": 1_000_000.0,
}
_LLAMA2: Fields = {
    "vocab_size": 32_000,
    "head_dim": 128,
    "norm_eps": 1e-5,
    "activation": "silu",
    "tied_head": False,
}
_LLAMA3: Fields = {
    "vocab_size": 128_256,
    "num_kv_heads": 8,
    "norm_eps": 1e-5,
    "activation": "silu",
    "rope_base": 500_000.0,
    "rope_scaling": RopeScaling("llama3", factor=32.0),
}
_SMOLLM2: Fields = {
    "vocab_size": 49_152,
    "head_dim": 64,
    "norm_eps": 1e-5,
    "activation": "silu",
    "rope_base": 100_000.0,
}
_SMOLLM3: Fields = {
    "vocab_size": 128_256,
    "activation": "silu",
    "rope_pattern": (True, True, True, False),
    "rope_base": 5_000_000.0,
}
_OLMO2: Fields = {
    "vocab_size": 100_352,
    "head_dim": 128,
    "activation": "silu",
    "pre_norms": False,
    "post_norms": True,
    "qk_norm": True,
    "qk_norm_over": "all_heads",
    "rope_base": 500_000.0,
    "tied_head": False,
}
# Global layers are stretched from 8k to 64k.
_OLMO3: Fields = _OLMO2 | {
    "vocab_size": 100_278,
    "attention_pattern": ("local",) * 3 + ("global",),
    "window": 4096,
    "rope_scaling": RopeScaling(
        "yarn", factor=8.0, high_freq_factor=32.0, original_length=8192, magnitude=1 + 0.1 * math.log(8)
    ),
}
_GRANITE33: Fields = {
    "vocab_size": 49_159,
    "num_kv_heads": 8,
    "norm_eps": 1e-5,
    "activation": "silu",
    "rope_base": 10_000_000.0,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
}
_PHI: Fields = {"norm_eps": 1e-5, "activation": "silu", "tied_head": False}
# For rows of up to 4,096 slots: nothing is stretched, but the magnitude is that of the whole context, 32 times as long.
_PHI4_MINI_ROPE = RopeScaling(
    "longrope",
    original_length=4096,
    factors=(1.0,) * 48,
    magnitude=math.sqrt(1 + math.log(32) / math.log(4096)),
)


def _shape(width: int, depth: int, num_heads: int, mlp_dim: int, **more: Any) -> dict[str, Any]:
    return {"width": width, "depth": depth, "num_heads": num_heads, "mlp_dim": mlp_dim, **more}


DECODERS: Mapping[str, Fields] = {
    "palm_108m": _PALM | _shape(768, 12, 4, 3072),
    "palm_1b": _PALM | _shape(2048, 18, 8, 8192),
    "palm_8b": _PALM | _shape(4096, 34, 24, 16_384),
    "gemma_2b": _GEMMA1 | _shape(2048, 18, 8, 16_384, num_kv_heads=1),
    "gemma_7b": _GEMMA1 | _shape(3072, 28, 16, 24_576, num_kv_heads=16),
    "gemma2_2b": _GEMMA2 | _shape(2304, 26, 8, 9216, num_kv_heads=4),
    "gemma2_9b": _GEMMA2 | _shape(3584, 42, 16, 14_336, num_kv_heads=8),
    # The 27B sizes scale their queries by width / heads, not by the head dimension.
    "gemma2_27b": _GEMMA2 | _shape(4608, 46, 32, 36_864, num_kv_heads=16, head_dim=128, query_scale=144**-0.5),
    "gemma3_270m": _GEMMA3 | _shape(640, 18, 4, 2048, num_kv_heads=1),
    "gemma3_1b": _GEMMA3 | _shape(1152, 26, 4, 6912, num_kv_heads=1),
    "gemma3_4b": _GEMMA3_LARGE | _shape(2560, 34, 8, 10_240, num_kv_heads=4),
    "gemma3_12b": _GEMMA3_LARGE | _shape(3840, 48, 16, 15_360, num_kv_heads=8),
    "gemma3_27b": _GEMMA3_LARGE | _shape(5376, 62, 32, 21_504, num_kv_heads=16, head_dim=128, query_scale=168**-0.5),
    "qwen2.5_0.5b": _QWEN25_SMALL | _shape(896, 24, 14, 4864, head_dim=64),
    "qwen2.5_1.5b": _QWEN25_SMALL | _shape(1536, 28, 12, 8960),
    "qwen2.5_3b": _QWEN25_SMALL | _shape(2048, 36, 16, 11_008),
    "qwen2.5_7b": _QWEN25 | _shape(3584, 28, 28, 18_944, num_kv_heads=4),
    # norm_eps is 1e-6 in the instruct versions of these three.
    "qwen2.5_14b": _QWEN25 | _shape(5120, 48, 40, 13_824, norm_eps=1e-5),
    "qwen2.5_32b": _QWEN25 | _shape(5120, 64, 40, 27_648, norm_eps=1e-5),
    "qwen2.5_72b": _QWEN25 | _shape(8192, 80, 64, 29_568, norm_eps=1e-5),
    "qwen3_0.6b": _QWEN3 | _shape(1024, 28, 16, 3072),
    "qwen3_1.7b": _QWEN3 | _shape(2048, 28, 16, 6144),
    "qwen3_4b": _QWEN3 | _shape(2560, 36, 32, 9728),
    "qwen3_8b": _QWEN3 | _shape(4096, 36, 32, 12_288, tied_head=False),
    "qwen3_14b": _QWEN3 | _shape(5120, 40, 40, 17_408, tied_head=False),
    "qwen3_32b": _QWEN3 | _shape(5120, 64, 64, 25_600, tied_head=False),
    "llama2_7b": _LLAMA2 | _shape(4096, 32, 32, 11_008, num_kv_heads=32),
    "llama2_13b": _LLAMA2 | _shape(5120, 40, 40, 13_824, num_kv_heads=40),
    "llama3_8b": _LLAMA3 | _shape(4096, 32, 32, 14_336, head_dim=128, tied_head=False, rope_scaling=None),
    "llama3.2_1b": _LLAMA3 | _shape(2048, 16, 32, 8192, head_dim=64),
    "llama3.2_3b": _LLAMA3 | _shape(3072, 28, 24, 8192, head_dim=128),
    "llama3.1_8b": _LLAMA3
    | _shape(4096, 32, 32, 14_336, head_dim=128, tied_head=False, rope_scaling=RopeScaling("llama3", factor=8.0)),
    "llama3.1_70b": _LLAMA3
    | _shape(8192, 80, 64, 28_672, head_dim=128, tied_head=False, rope_scaling=RopeScaling("llama3", factor=8.0)),
    "smollm2_135m": _SMOLLM2 | _shape(576, 30, 9, 1536, num_kv_heads=3),
    "smollm2_360m": _SMOLLM2 | _shape(960, 32, 15, 2560, num_kv_heads=5),
    "smollm2_1.7b": _SMOLLM2 | _shape(2048, 24, 32, 8192, num_kv_heads=32, rope_base=130_000.0),
    "smollm3_3b": _SMOLLM3 | _shape(2048, 36, 16, 11_008, num_kv_heads=4, head_dim=128),
    "olmo2_1b": _OLMO2 | _shape(2048, 16, 16, 8192, num_kv_heads=16),
    "olmo2_7b": _OLMO2 | _shape(4096, 32, 32, 11_008, num_kv_heads=32),
    "olmo2_13b": _OLMO2 | _shape(5120, 40, 40, 13_824, num_kv_heads=40),
    "olmo2_32b": _OLMO2 | _shape(5120, 64, 40, 27_648, num_kv_heads=8),
    "olmo3_7b": _OLMO3 | _shape(4096, 32, 32, 11_008, num_kv_heads=32),
    "olmo3_32b": _OLMO3 | _shape(5120, 64, 40, 27_648, num_kv_heads=8),
    "granite3.3_2b": _GRANITE33 | _shape(2048, 40, 32, 8192, head_dim=64, query_scale=1 / 64, logits_multiplier=1 / 8),
    "granite3.3_8b": _GRANITE33
    | _shape(4096, 40, 32, 12_800, head_dim=128, query_scale=1 / 128, logits_multiplier=1 / 16),
    "phi3_mini_4k": _PHI
    | _shape(3072, 32, 32, 8192, num_kv_heads=32, head_dim=96, vocab_size=32_064)
    | {"attention_pattern": ("local",), "window": 2047},
    "phi4": _PHI | _shape(5120, 40, 40, 17_920, num_kv_heads=10, head_dim=128, vocab_size=100_352, rope_base=250_000.0),
    "phi4_mini": _PHI
    | _shape(3072, 32, 24, 8192, num_kv_heads=8, head_dim=128, vocab_size=200_064, tied_head=True)
    | {"rope_dim": 96, "rope_scaling": _PHI4_MINI_ROPE},
}


def encoder(variant: str | None = None, **fields: Any) -> ViTConfig:
    """Returns a vision encoder's configuration.

    Args:
        variant: a name of `ENCODERS`, or None to give every field.
        **fields: fields of `ViTConfig`, over those of the variant.

    Raises:
        UserError: the variant or a field is unknown, or a field without default is missing.
    """
    return _make(ViTConfig, "encoder", ENCODERS, variant, fields)


def decoder(variant: str | None = None, **fields: Any) -> DecoderConfig:
    """Returns a language model's configuration.

    Args:
        variant: a name of `DECODERS`, or None to give every field.
        **fields: fields of `DecoderConfig`, over those of the variant.

    Raises:
        UserError: the variant or a field is unknown, or a field without default is missing.
    """
    return _make(DecoderConfig, "decoder", DECODERS, variant, fields)


def _make(kind: type, what: str, table: Mapping[str, Fields], variant: str | None, fields: Fields) -> Any:
    if variant is not None and variant not in table:
        raise UserError(
            f"There is no {what} variant {variant!r}; the nearest is {nearest(variant, table, n=1)[0]}. "
            f"The variants are: {', '.join(table)}."
        )
    known = [field.name for field in dataclasses.fields(kind)]
    if unknown := sorted(fields.keys() - set(known)):
        raise UserError(
            f"{what} was given {', '.join(unknown)}, which {kind.__name__} does not have; "
            f"the nearest fields are: {', '.join(nearest(unknown[0], known))}."
        )
    # gin can give lists; configurations are hashable.
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    chosen = {**(table[variant] if variant else {}), **given}
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in chosen]:
        raise UserError(
            f"{what} needs {', '.join(missing)}. Give these, or a variant that has them: {', '.join(table)}."
        )
    return kind(**chosen)
