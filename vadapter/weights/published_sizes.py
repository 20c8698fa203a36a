"""Settings that names and shapes of tensors do not tell, from the tables of published sizes.

big_vision, t5x and Gemma's own checkpoints come without a configuration file. What a network looks like is read from
its tensors; what it computes besides (rotary base, windows, caps, activation) is that of the published model with the
same shapes, or of the one that the user names.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from vadapter.base.errors import UserError
from vadapter.models import variants
from vadapter.models.decoder import DecoderConfig
from vadapter.models.vit import ViTConfig

# Fields of a configuration that a checkpoint's tensors tell.
Found = Mapping[str, Any]

# A named variant must agree with the tensors in these; sizes are always those of the tensors.
_DECODER_KIND = (
    *("norm", "gated", "parallel_block", "pre_norms", "post_norms", "qk_norm", "qk_norm_over", "qkv_bias", "tied_head"),
)
_ENCODER_KIND = ("gated", "class_token", "num_registers", "layer_scale", "pre_norm", "final_norm", "patch_bias")


def part_of(variant: str | None) -> Literal["encoder", "decoder"] | None:
    """Returns the part that a variant is, which its name tells; None without a variant.

    Raises:
        UserError: there is no such variant.
    """
    if variant is None:
        return None
    if variant not in {**variants.ENCODERS, **variants.DECODERS}:
        raise UserError(
            f"The variant {variant!r} is unknown. Decoders: {', '.join(variants.DECODERS)}. "
            f"Encoders: {', '.join(variants.ENCODERS)}."
        )
    return "encoder" if variant in variants.ENCODERS else "decoder"


def decoder(found: Found, variant: str | None, where: str, family: str | None = None) -> DecoderConfig:
    """Completes a decoder's configuration.

    Args:
        found: what the tensors tell; `vocab_size` may differ from the published, as tables are padded and extended.
        variant: the published model whose other settings hold; None to find it by the sizes.
        where: the checkpoint, for messages.
        family: variant whose settings hold for every size of the family, used where the sizes are not published.

    Raises:
        UserError: no published size is this one, or several with different settings are; or `variant` is of another
            kind, or has other sizes while another published one has these.
    """
    known = {name: variants.decoder(name) for name in variants.DECODERS}
    same = [name for name, config in known.items() if _agrees(config, found, found.keys() - {"vocab_size"})]
    name = variant or (same[0] if len({_complete(known[n], found, True) for n in same}) == 1 else None)
    if name is None and not same:
        name = family
    if name is None:
        raise _unknown(found, same, where, variants.DECODERS)
    base = known[name] if name in known else variants.decoder(name)
    _check_kind(base, name, found, _DECODER_KIND, where)
    if same and name not in same:
        raise UserError(f"{where} has the sizes of {' and of '.join(same)}, not of {name}. Give variant {same[0]}.")
    return _complete(base, found, name in same)


def _complete(base: DecoderConfig, found: Found, same: bool) -> DecoderConfig:
    scale = base.query_scale
    if not same and scale == base.head_dim**-0.5:
        scale = None  # the rule of the family, at another head_dim
    return dataclasses.replace(base, **found, query_scale=scale)


def encoder(found: Found, variant: str | None, where: str) -> ViTConfig:
    """Completes an encoder's configuration.

    Sizes that are not published have the settings of big_vision's ViTs, if the network is of that kind.

    Args:
        found: what the tensors tell, with `grid`, the patches along each side, in place of `image_size`.
        variant: the published model whose other settings hold; None to find it by the sizes.
        where: the checkpoint, for messages.

    Raises:
        UserError: it is another kind of network than `variant` or than big_vision's ViTs, and no published size.
    """
    fields = {name: value for name, value in found.items() if name != "grid"}
    # Such weights come without the code of a family, so their table is resampled as big_vision does.
    table = {"position_grid": found["grid"], "position_resampling": "bilinear_aligned"}
    plain = {"image_size": found["grid"] * found["patch_size"], "drop_edges": False, **table}
    known = {name: variants.encoder(name) for name in variants.ENCODERS}
    same = [name for name, config in known.items() if _agrees(config, found, found.keys())]
    settings = {dataclasses.replace(known[name], **plain) for name in same}
    if variant is not None:
        base = known[variant] if variant in known else variants.encoder(variant)
        _check_kind(base, variant, found, _ENCODER_KIND, where)
    elif same and len(settings) == 1:
        base = known[same[0]]
    elif not same and not any(found.get(name) for name in ("gated", "num_registers", "layer_scale", "pre_norm")):
        base = ViTConfig(**plain, **fields)
    else:
        raise _unknown(found, same, where, variants.ENCODERS)
    if same:  # its images may have an edge that no whole patch covers
        plain |= {"image_size": known[same[0]].image_size, "drop_edges": known[same[0]].drop_edges}
    return dataclasses.replace(base, **plain, **fields)


def _agrees(config: Any, found: Found, names: Any) -> bool:
    return all(getattr(config, name) == found[name] for name in names)


def _check_kind(base: Any, variant: str, found: Found, names: tuple[str, ...], where: str) -> None:
    wrong = [name for name in names if name in found and getattr(base, name) != found[name]]
    if wrong:
        differences = ", ".join(f"{name} {found[name]} (not {getattr(base, name)})" for name in wrong)
        raise UserError(
            f"{where} is another kind of network than {variant}: its tensors say {differences}. "
            "Give the variant that these weights are of."
        )


def _unknown(found: Found, same: list[str], where: str, table: Mapping[str, Any]) -> UserError:
    sizes = ", ".join(f"{name} {value}" for name, value in found.items() if not isinstance(value, bool))
    which = f"the sizes of several published models ({', '.join(same)})" if same else "sizes that are not published"
    return UserError(
        f"{where} has {which}: {sizes}. Its tensors do not tell the other settings. Give variant, the name of the "
        f"model whose settings it has: {', '.join(same or table)}."
    )
