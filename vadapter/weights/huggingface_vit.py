"""ViTs that transformers saves: what SigLIP, CLIP, the DINOs and AIMv2 have in common.

All give patch tokens: after the final norm, but CLIP's before it, as LLaVA reads them.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vadapter.base.errors import UserError
from vadapter.models.vit import ViTConfig
from vadapter.weights import image_processor
from vadapter.weights.family import Place
from vadapter.weights.mapping import MERGED, SAME, Layout, Rule, linear
from vadapter.weights.settings import Settings

# Defaults of transformers, for what config.json leaves out.
DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
}

BLOCK = "Transformer/encoderblock"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
MLP = f"{BLOCK}/MlpBlock_0"


def vit_config(place: Place, settings: Settings, **ours: Any) -> ViTConfig:
    """Reads a configuration.

    A table of positions stays that of the pretraining's image size, whatever size a run chooses.

    Args:
        place: where the model is.
        settings: its settings over the family's defaults, among them `mean` and `std` of the pixels.
        ours: fields of the configuration that the family has in its own way.

    Raises:
        UserError: a setting is missing, odd, or of a model that we do not have.
    """
    settings.refuse({"num_channels": (3,)})
    image, patch = _square(settings, "image_size"), _square(settings, "patch_size")
    mean, std = _normalisation(settings, *image_processor.settings(place.checkpoint))
    fields: dict[str, Any] = {
        "image_size": image,
        "patch_size": patch,
        "width": settings.whole("hidden_size"),
        "depth": settings.layers(),
        "num_heads": settings.whole("num_attention_heads"),
        "mlp_dim": ours.get("mlp_dim") or settings.whole("intermediate_size"),
        "activation": settings.activation("hidden_act"),
        "norm_eps": ours.get("norm_eps") or settings.real("layer_norm_eps"),
        "position_grid": image // patch if ours.get("positions", "learned") == "learned" else None,
        "drop_edges": image % patch != 0,
        "mean": mean,
        "std": std,
        "resize": image_processor.resize(place.checkpoint),
    }
    return ViTConfig(**fields | ours)


def _square(settings: Settings, name: str) -> int:
    value = settings.get(name)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise settings.error(name, value, "one whole number, as images and patches are square here,")
    return value


def picture_notes(place: Place, config: ViTConfig) -> Iterator[str]:
    """Says where a run makes pictures in another way than the published one."""
    return image_processor.notes(place.checkpoint, config.image_size)


def _normalisation(
    settings: Settings, file: str, processor: Mapping[str, Any]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pixels: of the image processor's file, or the family's."""

    def three(name: str, family: str) -> tuple[float, ...]:
        value = processor.get(name) or settings.get(family)
        numbers = isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(x, int | float) for x in value)
        if not numbers:
            raise UserError(f"{file} of {settings.where}: expected three numbers for {name} and found {value!r}.")
        return tuple(float(x) for x in value)

    factor, rescaled = processor.get("rescale_factor") or 1 / 255, processor.get("do_rescale", True)
    usual = isinstance(factor, int | float) and math.isclose(factor, 1 / 255, rel_tol=1e-3)
    if not rescaled or not usual:
        raise UserError(
            f"{file} of {settings.where}: expected pixels to be brought to 0..1 (rescale_factor 1/255), and found "
            f"rescale_factor {factor}, do_rescale {rescaled}. Take another checkpoint of this family."
        )
    if not processor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return three("image_mean", "mean"), three("image_std", "std")


def under(prefix: str, rules: Iterable[Rule]) -> Iterator[Rule]:
    """Puts a prefix before the names of the tensors of all rules."""
    return (Rule(rule.target, f"{prefix}{rule.source}", rule.layout) for rule in rules)


def ignored(place: Place, *unwanted: str) -> tuple[str, ...]:
    """Returns what is known and not wanted; `unwanted` are regexes of what else the tower itself has."""
    inside = re.escape(place.prefix)
    return (
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
    )


def contrastive_blocks() -> list[Rule]:
    """The blocks of SigLIP and CLIP, which have the same names."""
    layer = "encoder.layers.{i}"
    query, key, value, out = (f"{layer}.self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
    return [
        *affine(f"{BLOCK}/LayerNorm_0", f"{layer}.layer_norm1"),
        *heads(query, key, value, out),
        *affine(f"{BLOCK}/LayerNorm_1", f"{layer}.layer_norm2"),
        *dense(f"{MLP}/Dense_0", f"{layer}.mlp.fc1"),
        *dense(f"{MLP}/Dense_1", f"{layer}.mlp.fc2"),
    ]


def affine(target: str, source: str) -> list[Rule]:
    """Scale and bias of a norm."""
    return [Rule(f"{target}/scale", f"{source}.weight"), Rule(f"{target}/bias", f"{source}.bias")]


def dense(target: str, source: str, kernel: Layout | None = None, bias: Layout = SAME) -> list[Rule]:
    """Kernel and bias of a linear map."""
    return [
        Rule(f"{target}/kernel", f"{source}.weight", kernel or linear()),
        Rule(f"{target}/bias", f"{source}.bias", bias),
    ]


def heads(query: str, key: str, value: str, out: str) -> list[Rule]:
    """The four maps of attention, by the names of their modules."""
    return [
        *dense(f"{ATTENTION}/query", query, linear(), MERGED),
        *dense(f"{ATTENTION}/key", key, linear(), MERGED),
        *dense(f"{ATTENTION}/value", value, linear(), MERGED),
        *dense(f"{ATTENTION}/out", out, linear(2)),
    ]
