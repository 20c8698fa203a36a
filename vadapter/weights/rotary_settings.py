"""The rotary position embeddings that config.json of transformers describes: base, stretch, and channels rotated."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vadapter.models.positions import RopeScaling
from vadapter.weights.settings import Settings

PARTIAL = "partial_rotary_factor"
FULL = (1, None)
_LENGTH = "original_max_position_embeddings"
_KNOWN = {"rope_theta", "rope_type", "type", PARTIAL, _LENGTH, "factor"}
_TYPES = {
    "default": _KNOWN,
    "linear": _KNOWN,
    "llama3": _KNOWN | {"low_freq_factor", "high_freq_factor"},
    "yarn": _KNOWN | {"beta_fast", "beta_slow", "attention_factor", "truncate"},
    "longrope": _KNOWN | {"short_factor", "long_factor", "attention_factor"},
}


@dataclasses.dataclass(frozen=True)
class Rope:
    """How layers of one kind rotate queries and keys.

    Attributes:
        base: of the frequencies.
        scaling: their stretch; None without one.
        dim: channels of a head that are rotated.
    """

    base: float
    scaling: RopeScaling | None
    dim: int


def read_rope(
    settings: Settings, layers: str, base: float, head_dim: int, *, old: bool = True, partial: bool = False
) -> Rope:
    """Reads the rotation of a kind of layer.

    transformers 5 has `rope_parameters`, for each kind of layer or for all; versions before have `rope_theta` and
    `rope_scaling`.

    Args:
        settings: of the model.
        layers: the kind of layer as config.json calls it: `full_attention` or `sliding_attention`.
        base: the base where the parameters do not say it.
        head_dim: channels of a head.
        old: whether `rope_scaling` holds for such layers; not for layers with a base of their own.
        partial: whether the model may rotate a part of each head only.

    Raises:
        UserError: a parameter is odd, or asks for what we do not have.
    """
    found = _section(settings, layers, old)
    kind = found.get("rope_type", found.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its name in the first files of Phi-3
    rope = Settings(found, settings.where, {"rope_theta": base, "rope_type": kind, PARTIAL: settings.get(PARTIAL)})
    if not partial:
        rope.refuse({PARTIAL: FULL})
    if not isinstance(kind, str) or kind not in _TYPES:
        raise rope.error("rope_type", kind, f"one of {', '.join(_TYPES)}")
    if unknown := sorted(found.keys() - _TYPES[kind]):
        raise rope.error(unknown[0], found[unknown[0]], f"no such setting of the rotary type {kind!r}")
    dim = int(head_dim * (rope.optional_real(PARTIAL) or 1.0)) if partial else head_dim
    if dim > head_dim or dim % 2:
        raise rope.error(PARTIAL, rope.get(PARTIAL), f"a share of {head_dim} channels that is an even number of them")
    return Rope(rope.real("rope_theta"), _scaling(settings, rope, kind, dim), dim)


def _section(settings: Settings, layers: str, old: bool) -> Mapping[str, Any]:
    name = "rope_scaling" if old and settings.get("rope_scaling") else "rope_parameters"
    found = settings.get(name) or {}
    if not isinstance(found, Mapping):
        raise settings.error(name, found, "a dictionary")
    if name == "rope_scaling":
        return found
    if any(kind in found for kind in ("full_attention", "sliding_attention")):
        found = found.get(layers) or {}
        if not isinstance(found, Mapping):
            raise settings.error(name, found, f"a dictionary for {layers}")
    elif found and not old:
        raise settings.error(name, found, "parameters for each kind of layer")
    return found


def _scaling(settings: Settings, rope: Settings, kind: str, dim: int) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", factor=rope.real("factor"))
    if kind == "longrope":
        return _longrope(settings, rope, dim)
    if kind == "yarn":
        return _yarn(settings, rope)
    return RopeScaling(
        "llama3",
        factor=rope.real("factor"),
        low_freq_factor=rope.real("low_freq_factor"),
        high_freq_factor=rope.real("high_freq_factor"),
        original_length=rope.with_default(_LENGTH, settings.get("max_position_embeddings")).whole(_LENGTH),
    )


def _yarn(settings: Settings, rope: Settings) -> RopeScaling:
    rope.refuse({"truncate": (True, None)})
    length = rope.with_default(_LENGTH, settings.get("max_position_embeddings")).whole(_LENGTH)
    factor = rope.optional_real("factor") or settings.whole("max_position_embeddings") / length
    magnitude = rope.optional_real("attention_factor")
    return RopeScaling(
        "yarn",
        factor=factor,
        low_freq_factor=rope.optional_real("beta_slow") or 1.0,
        high_freq_factor=rope.optional_real("beta_fast") or 32.0,
        original_length=length,
        magnitude=(1 + 0.1 * math.log(factor) if factor > 1 else 1.0) if magnitude is None else magnitude,
    )


def _longrope(settings: Settings, rope: Settings, dim: int) -> RopeScaling:
    """The factors of short contexts. Which set holds depends on the length of the text; a frozen model has one."""
    factors = rope.get("short_factor")
    numbers = isinstance(factors, list) and all(type(x) in (int, float) and x > 0 for x in factors)
    if not numbers or len(factors) != dim // 2:
        raise rope.error("short_factor", factors, f"a list of {dim // 2} numbers above 0")
    # Where it is given twice, transformers takes that of the model.
    given = settings if settings.get(_LENGTH) is not None else rope
    length = given.with_default(_LENGTH, settings.get("max_position_embeddings")).whole(_LENGTH)
    magnitude = rope.optional_real("attention_factor")
    if magnitude is None:
        factor = rope.optional_real("factor") or settings.whole("max_position_embeddings") / length
        magnitude = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    return RopeScaling(
        "longrope", original_length=length, factors=tuple(float(x) for x in factors), magnitude=magnitude
    )
