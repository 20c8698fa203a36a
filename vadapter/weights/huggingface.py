"""Models saved by transformers: config.json says the family by its `model_type`, and each family has its table.

Vision encoders are in `huggingface_vision.py`, language models in `huggingface_text.py`.
"""

from collections.abc import Callable

from vadapter.base.errors import UserError
from vadapter.weights import huggingface_text as text
from vadapter.weights import huggingface_vision as vision
from vadapter.weights.architecture import Architecture, Opened
from vadapter.weights.settings import Settings

_Recogniser = Callable[[Settings, Opened], list[Architecture]]


def _alone(recognise: Callable[[Settings, Opened], Architecture]) -> _Recogniser:
    return lambda settings, opened: [recognise(settings, opened)]


def _pair(recognise: Callable[[Settings, Opened], Architecture], tower: str) -> _Recogniser:
    # The text tower of a contrastive pair is no language model: the vision tower is all that there is to import.
    return lambda settings, opened: [recognise(settings.nested("vision_config", tower), opened)]


def _gemma3(settings: Settings, opened: Opened) -> list[Architecture]:
    """The multimodal Gemma 3: a SigLIP tower, a projection and a decoder."""
    inner = settings.nested("text_config", "gemma3_text")
    if "tie_word_embeddings" in settings.given:
        inner = inner.with_default("tie_word_embeddings", settings.given["tie_word_embeddings"])
    tower = settings.nested("vision_config", "siglip_vision_model")
    return [vision.siglip(tower, opened), text.decoder(inner, opened)]


_FAMILIES: dict[str, _Recogniser] = {
    "siglip": _pair(vision.siglip, "siglip_vision_model"),
    "siglip_vision_model": _alone(vision.siglip),
    "clip": _pair(vision.clip, "clip_vision_model"),
    "clip_vision_model": _alone(vision.clip),
    "dinov2": _alone(vision.dinov2),
    "dinov2_with_registers": _alone(vision.dinov2),
    "gemma3": _gemma3,
    **{kind: _alone(text.decoder) for kind in text.FAMILIES},
}
# Models that look like one of ours, and why they are not.
_REFUSED = {
    "siglip2": "SigLIP 2 NaFlex takes images of any aspect ratio as lists of patches; take a SigLIP 2 of fixed "
    "resolution, for example google/siglip2-so400m-patch14-384, whose model_type is 'siglip'",
}
_REFUSED["siglip2_vision_model"] = _REFUSED["siglip2"]


def architectures(opened: Opened, variant: str | None = None) -> list[Architecture]:
    """Recognises the models of a Hugging Face folder.

    Args:
        opened: the folder; its `config` is config.json.
        variant: must be None, as config.json says the shapes.

    Returns:
        One architecture for each part: both for the multimodal Gemma 3, else one.

    Raises:
        UserError: there is no config.json, or it describes a model that we do not have, or has a setting that we do
            not; or a variant was given.
    """
    where = opened.tensors.where
    if opened.config is None:
        raise UserError(
            f"{where} has tensors of Hugging Face's kind and no config.json, which says what they are. "
            "Put the config.json of the model beside them."
        )
    if variant is not None:
        raise UserError(f"The config.json of {where} says the model's shape; leave out --variant {variant}.")
    kind = opened.config.get("model_type")
    if kind in _REFUSED:
        raise UserError(f"{where} is a {kind!r}, which cannot be imported: {_REFUSED[kind]}.")
    if kind not in _FAMILIES:
        found = opened.config.get("architectures") or "no architectures"
        raise UserError(
            f"{where} has the model_type {kind!r} ({found}), which is not one that can be imported. "
            f"These are: {', '.join(sorted(_FAMILIES))}."
        )
    settings = Settings(opened.config, where)
    settings.refuse({"quantization_config": (None,)}, "Take the checkpoint that is not quantised")
    return _FAMILIES[kind](settings, opened)
