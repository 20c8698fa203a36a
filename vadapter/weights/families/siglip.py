"""SigLIP, SigLIP 2 and its NaFlex: alone, in a pair with a text tower, or under a language model."""

import math
import re
from collections.abc import Iterator

from vadapter.models.vit import ViTConfig
from vadapter.weights import big_vision_vit
from vadapter.weights.checkpoint import BIG_VISION, GEMMA
from vadapter.weights.family import Family, ModelType, Place, TensorNames, register
from vadapter.weights.huggingface_vit import (
    DEFAULTS,
    affine,
    contrastive_blocks,
    ignored,
    picture_notes,
    under,
    vit_config,
)
from vadapter.weights.mapping import CONV, LEADING_ONES, Layout, Rule, linear

_ANCHOR = "embeddings.patch_embedding.weight"
_DEFAULTS = DEFAULTS | {
    "intermediate_size": 3072,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


def _config(place: Place) -> ViTConfig:
    return vit_config(place, place.settings.with_defaults(_DEFAULTS), position_resampling="bicubic")


def _naflex_config(place: Place) -> ViTConfig:
    settings = place.settings.with_defaults(_DEFAULTS | {"num_patches": 256})
    grid = math.isqrt(settings.whole("num_patches"))
    if grid**2 != settings.whole("num_patches"):
        raise settings.error("num_patches", settings.get("num_patches"), "the square of a whole number")
    # The size of its pictures is not the model's; this one reads the table as it is.
    settings = settings.with_default("image_size", grid * settings.whole("patch_size"))
    return vit_config(place, settings, position_resampling="bilinear_antialias")


def _naflex_notes(place: Place, config: ViTConfig) -> Iterator[str]:
    yield (
        "SigLIP 2 NaFlex was trained on pictures of any shape. Here they are square, of "
        f"{config.image_size} pixels or of the encoder.image_size of the run; `resize` says how they become square."
    )


def _rules(place: Place, config: ViTConfig) -> Iterator[Rule]:
    return _table(place, CONV)


def _table(place: Place, patch: Layout) -> Iterator[Rule]:
    rules = [
        Rule("embedding/kernel", _ANCHOR, patch),
        Rule("embedding/bias", "embeddings.patch_embedding.bias"),
        Rule("pos_embedding", "embeddings.position_embedding.weight", LEADING_ONES),
        *contrastive_blocks(),
        *affine("Transformer/encoder_norm", "post_layernorm"),
    ]
    return under(place.prefix, rules)


register(
    Family(
        "siglip",
        "encoder",
        ModelType(
            ("siglip_vision_model",),
            (_ANCHOR,),
            # The text tower of the pair is no language model: this tower is all that there is to import.
            within={"siglip": "vision_config", "gemma3": "vision_config"},
        ),
        _config,
        _rules,
        lambda place, config: ignored(place, r"head\..*"),
        picture_notes,
    )
)
# The image towers of SigLIP and PaliGemma as big_vision keeps them, and that of Google's Gemma 3.
register(
    Family(
        "siglip",
        "encoder",
        TensorNames(
            {
                BIG_VISION: big_vision_vit.PATTERN,
                GEMMA: re.compile(
                    r"((?:params/)?(?:SigLiPFromPatches_0|vision_encoder)/siglip_encoder/)embedding/kernel"
                ),
            },
            "SigLIP (`embedding/kernel` in `img/` or `siglip_encoder/`)",
            only=lambda place: place.checkpoint.kind == GEMMA or big_vision_vit.in_pair(place),
        ),
        big_vision_vit.config,
        big_vision_vit.rules,
        big_vision_vit.ignored,
    )
)
register(
    Family(
        "siglip2_naflex",
        "encoder",
        ModelType(("siglip2_vision_model",), (_ANCHOR,), within={"siglip2": "vision_config"}),
        _naflex_config,
        # The pixels of a patch come as one vector: row by row, the colours of a pixel together.
        lambda place, config: _table(place, linear(3)),
        lambda place, config: ignored(place, r"head\..*"),
        _naflex_notes,
    )
)
