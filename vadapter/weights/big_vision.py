"""big_vision's `.npz` files: ViTs, SigLIP, PaliGemma 1 and 2, and Gemma as big_vision keeps it.

A file has the parameters at its top, under `params/` (with an optax state beside them), or under `opt/target/` (with an
old Flax optimizer). In it a ViT lies at the top or in `img/`, a language model at the top or in `llm/`.
"""

import re

from vadapter.base.errors import UserError
from vadapter.weights import big_vision_vit, gemma, published
from vadapter.weights.architecture import Architecture, Opened
from vadapter.weights.mapping import LAYER

_TOP = r"(params/|opt/target/|)"
_VISION = re.compile(_TOP + r"(img/|)embedding/kernel")
_DECODER = re.compile(_TOP + r"(llm/|)embedder/input_embedding")


def architectures(opened: Opened, variant: str | None) -> list[Architecture]:
    """Recognises the vision encoder and the decoder of a big_vision file.

    Args:
        opened: the source.
        variant: the published model whose settings hold, where the sizes are not published ones. A decoder's name
            leaves the vision encoder out, and the other way round.

    Raises:
        UserError: the file has a model of a kind that we do not have.
    """
    tensors = opened.tensors
    wanted_vision, wanted_decoder = published.split(variant)
    visions = [match for name in tensors.infos if (match := _VISION.fullmatch(name))]
    decoders = [match for name in tensors.infos if (match := _DECODER.fullmatch(name))]
    found = []
    for top, tower in (match.groups() for match in visions if wanted_vision):
        siglip = any(name.startswith(f"{top}txt/") for name in tensors.infos)
        family = "siglip" if siglip or decoders else "vit"
        ignored = (
            *_beside(top),
            rf"{top}txt/.*",  # the text tower of SigLIP
            rf"{top}[tb]",  # temperature and bias of its loss
            *([rf"{top}llm/.*"] if tower else []),
        )
        found.append(big_vision_vit.vision(tensors, top + tower, variant, family, ignored))
    for top, tower in (match.groups() for match in decoders if wanted_decoder):
        root = top + tower
        layer = "layers/" if f"{root}layers/pre_attention_norm/scale" in tensors.infos else f"layers/{LAYER}/"
        ignored = (*_beside(top), *([rf"{top}img/.*"] if tower else []))
        found.append(gemma.decoder(tensors, root, layer, variant, ignored))
    if not (visions or decoders):
        raise UserError(
            f"{tensors.where} has no ViT (`embedding/kernel` at the top or in `img/`) and no Gemma "
            "(`embedder/input_embedding` at the top or in `llm/`). Other models of big_vision are not supported."
        )
    return found


def _beside(top: str) -> tuple[str, ...]:
    """State of the training run beside the parameters."""
    return (rf"(?!{top}).*",) if top else ()
