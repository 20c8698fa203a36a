"""SigLIP and SigLIP 2 of fixed resolution: alone, in a pair with a text tower, or under a language model."""

import re
from collections.abc import Iterator

from vadapter.models.vit import ViTConfig
from vadapter.weights import big_vision_vit
from vadapter.weights.checkpoint import BIG_VISION, GEMMA
from vadapter.weights.family import Family, ModelType, Place, Refusal, TensorNames, refuse, register
from vadapter.weights.huggingface_vit import (
    DEFAULTS,
    affine,
    contrastive_blocks,
    ignored,
    picture_notes,
    under,
    vit_config,
)
from vadapter.weights.mapping import CONV, LEADING_ONES, Rule

_DEFAULTS = DEFAULTS | {
    "intermediate_size": 3072,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
}


def _config(place: Place) -> ViTConfig:
    return vit_config(place, place.settings.with_defaults(_DEFAULTS))


def _rules(place: Place, config: ViTConfig) -> Iterator[Rule]:
    rules = [
        Rule("embedding/kernel", "embeddings.patch_embedding.weight", CONV),
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
            ("embeddings.patch_embedding.weight",),
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
refuse(
    Refusal(
        ModelType(("siglip2", "siglip2_vision_model")),
        "SigLIP 2 NaFlex takes images of any aspect ratio as lists of patches; take a SigLIP 2 of fixed resolution, "
        "for example google/siglip2-so400m-patch14-384, whose model_type is 'siglip'",
    )
)
