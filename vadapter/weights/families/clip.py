"""OpenAI's CLIP and its like: the image tower alone, or in a pair with a text tower."""

from collections.abc import Iterator

from vadapter.models.vit import ViTConfig
from vadapter.weights.family import Family, ModelType, Place, register
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
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def _config(place: Place) -> ViTConfig:
    return vit_config(
        place,
        place.settings.with_defaults(_DEFAULTS),
        position_resampling="bicubic",
        class_token=True,
        pre_norm=True,
        final_norm=False,
        patch_bias=False,
    )


def _rules(place: Place, config: ViTConfig) -> Iterator[Rule]:
    rules = [
        Rule("embedding/kernel", "embeddings.patch_embedding.weight", CONV),
        Rule("cls", "embeddings.class_embedding", LEADING_ONES),
        Rule("pos_embedding", "embeddings.position_embedding.weight", LEADING_ONES),
        *affine("pre_norm", "pre_layrnorm"),  # transformers' spelling
        *contrastive_blocks(),
    ]
    return under(place.prefix, rules)


register(
    Family(
        "clip",
        "encoder",
        ModelType(("clip_vision_model",), ("embeddings.patch_embedding.weight",), within={"clip": "vision_config"}),
        _config,
        _rules,
        # The last norm is of the pooled class token alone.
        lambda place, config: ignored(place, r"post_layernorm\..*"),
        picture_notes,
    )
)
