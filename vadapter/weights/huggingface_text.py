"""Language models saved by transformers: Gemma 1 to 3, Qwen 2.5 and 3, Llama 2 and 3."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vadapter.models.decoder import DecoderConfig
from vadapter.models.positions import RopeScaling
from vadapter.weights.architecture import Architecture, Opened
from vadapter.weights.mapping import MERGED, Rule, linear
from vadapter.weights.settings import Settings, find_prefix


@dataclasses.dataclass(frozen=True)
class _Family:
    """What sets a family apart.

    Attributes:
        name: ours.
        defaults: of transformers, for what config.json leaves out.
        fields: of `DecoderConfig`, the same for all sizes.
        activation: the name of the setting; None where `fields` has it.
        period: every how many layers one is global, where config.json does not say; 1 is all.
        local_rope: local layers have a base of their own and are never stretched (Gemma 3).
        allowed: settings that change the results, and the values that we can do.
    """

    name: str
    defaults: Mapping[str, Any]
    fields: Mapping[str, Any]
    activation: str | None = "hidden_act"
    period: int = 1
    local_rope: bool = False
    allowed: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


_NO, _FULL = (False, None), (1, None)
_ALLOWED = {
    "attention_bias": _NO,  # biases on the output map too
    "mlp_bias": _NO,
    "use_bidirectional_attention": _NO,
    "partial_rotary_factor": _FULL,
    "dual_chunk_attention_config": (None,),
    "use_mrope": _NO,
}
_COMMON = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
}
_GEMMA = _COMMON | {
    "vocab_size": 256_000,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
}
_GEMMA2 = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
}
_QWEN = _COMMON | {
    "vocab_size": 151_936,
    "hidden_size": 4096,
    "intermediate_size": 22_016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
_GEMMA_FIELDS = {"norm": "rms_plus_one", "scale_embedding": True}

FAMILIES: Mapping[str, _Family] = {
    "gemma": _Family(
        "gemma",
        _GEMMA
        | {
            "hidden_size": 3072,
            "intermediate_size": 24_576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
        },
        {**_GEMMA_FIELDS, "activation": "gelu_tanh"},
        None,
        # The first files say "gelu" and mean the tanh form; so transformers reads them.
        allowed={"hidden_act": ("gelu", "gelu_pytorch_tanh", None), "hidden_activation": ("gelu_pytorch_tanh", None)},
    ),
    "gemma2": _Family(
        "gemma2",
        _GEMMA2 | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        {**_GEMMA_FIELDS, "post_norms": True},
        "hidden_activation",
        period=2,
    ),
    "gemma3_text": _Family(
        "gemma3",
        _GEMMA2 | {"vocab_size": 262_208, "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0},
        {**_GEMMA_FIELDS, "post_norms": True, "qk_norm": True},
        "hidden_activation",
        period=6,
        local_rope=True,
        # transformers has the setting and does not use it.
        allowed={"attn_logit_softcapping": (None,)},
    ),
    "qwen2": _Family("qwen2", _QWEN, {"qkv_bias": True}),
    "qwen3": _Family("qwen3", _QWEN | {"head_dim": 128}, {"qk_norm": True}),
    "llama": _Family(
        "llama",
        _COMMON
        | {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "max_position_embeddings": 2048,
        },
        {},
    ),
}


def decoder(settings: Settings, opened: Opened) -> Architecture:
    """A language model, given its own settings: alone, or the `text_config` of the multimodal Gemma 3."""
    family = FAMILIES[settings.kind]
    settings = settings.with_defaults(family.defaults)
    settings.refuse({**_ALLOWED, **family.allowed})
    tied = settings.flag("tie_word_embeddings")
    config = DecoderConfig(
        vocab_size=settings.whole("vocab_size"),
        width=settings.whole("hidden_size"),
        depth=settings.whole("num_hidden_layers"),
        mlp_dim=settings.whole("intermediate_size"),
        norm_eps=settings.real("rms_norm_eps"),
        tied_head=tied,
        attention_softcap=settings.optional_real("attn_logit_softcapping"),
        final_softcap=settings.optional_real("final_logit_softcapping"),
        **_heads(settings),
        **({"activation": settings.activation(family.activation)} if family.activation else {}),
        **_sight(settings, family),
        **family.fields,
    )
    return Architecture("decoder", family.name, config, *_table(config, opened))


def _heads(settings: Settings) -> dict[str, Any]:
    heads = settings.whole("num_attention_heads")
    fields: dict[str, Any] = {"num_heads": heads, "num_kv_heads": heads}
    if settings.get("num_key_value_heads") is not None:
        fields["num_kv_heads"] = settings.whole("num_key_value_heads")
    given = settings.get("head_dim") is not None
    fields["head_dim"] = settings.whole("head_dim") if given else settings.whole("hidden_size") // heads
    if (scalar := settings.optional_real("query_pre_attn_scalar")) is not None:
        fields["query_scale"] = scalar**-0.5
    return fields


def _sight(settings: Settings, family: _Family) -> dict[str, Any]:
    """Fields that say what layers see: kinds of the layers, window, rotation."""
    base, scaling = _rope(settings, "full_attention", settings.real("rope_theta"))
    fields: dict[str, Any] = {"rope_base": base, "rope_scaling": scaling}
    local = _local_layers(settings, family)
    if not any(local):
        return fields
    pattern = tuple("local" if is_local else "global" for is_local in local)
    period = next(p for p in range(1, len(local) + 1) if all(x == pattern[i % p] for i, x in enumerate(pattern)))
    fields |= {"attention_pattern": pattern[:period], "window": settings.whole("sliding_window")}
    otherwise = settings.real("rope_local_base_freq") if family.local_rope else base
    local_base, local_scaling = _rope(settings, "sliding_attention", otherwise, old=not family.local_rope)
    if local_scaling is not None:
        name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
        raise settings.error(name, settings.get(name), "no stretching of layers with a sliding window")
    return fields | {"rope_local_base": None if local_base == base else local_base}


def _local_layers(settings: Settings, family: _Family) -> list[bool]:
    depth = settings.whole("num_hidden_layers")
    kinds = settings.get("layer_types")
    if kinds is not None:
        words = {"full_attention": False, "sliding_attention": True}
        if not isinstance(kinds, list) or len(kinds) != depth or not all(str(kind) in words for kind in kinds):
            raise settings.error("layer_types", kinds, f"{depth} of the words {' and '.join(words)}")
        return [words[kind] for kind in kinds]
    if "use_sliding_window" in family.defaults:
        if not settings.flag("use_sliding_window") or settings.get("sliding_window") is None:
            return [False] * depth
        first = settings.get("max_window_layers")
        if not isinstance(first, int):
            raise settings.error("max_window_layers", first, "a whole number")
        return [i >= first for i in range(depth)]
    period = family.period
    if family.local_rope:
        period = settings.with_default("sliding_window_pattern", period).whole("sliding_window_pattern")
    return [(i + 1) % period != 0 for i in range(depth)]


def _rope(settings: Settings, kind: str, base: float, old: bool = True) -> tuple[float, RopeScaling | None]:
    """Returns base and stretch of the rotation for a kind of layer.

    transformers 5 has `rope_parameters`, for each kind of layer or for all; versions before have `rope_theta` and
    `rope_scaling`, which does not hold for layers with a base of their own (`old` is false).
    """
    found = settings.get("rope_scaling") if old else None
    if not found:
        found = settings.get("rope_parameters") or {}
        nested = [name for name in ("full_attention", "sliding_attention") if name in found]
        if nested:
            found = found.get(kind) or {}
        elif found and not old:
            raise settings.error("rope_parameters", found, "parameters for each kind of layer")
    if not isinstance(found, Mapping):
        raise settings.error("rope_scaling", found, "a dictionary")
    rope = Settings(found, settings.where, {"rope_theta": base, "rope_type": found.get("type", "default")})
    rope.refuse({"partial_rotary_factor": _FULL})
    known = {"rope_theta", "rope_type", "type", "partial_rotary_factor", "original_max_position_embeddings", "factor"}
    kinds = {"default": known, "linear": known, "llama3": known | {"low_freq_factor", "high_freq_factor"}}
    stretch = rope.get("rope_type")
    if stretch not in kinds:
        raise rope.error("rope_type", stretch, f"one of {', '.join(kinds)}")
    if unknown := sorted(found.keys() - kinds[stretch]):
        raise rope.error(unknown[0], found[unknown[0]], f"no such setting of the rotary type {stretch!r}")
    base = rope.real("rope_theta")
    if stretch == "default":
        return base, None
    if stretch == "linear":
        return base, RopeScaling("linear", factor=rope.real("factor"))
    length = rope.with_default("original_max_position_embeddings", settings.get("max_position_embeddings"))
    return base, RopeScaling(
        "llama3",
        factor=rope.real("factor"),
        low_freq_factor=rope.real("low_freq_factor"),
        high_freq_factor=rope.real("high_freq_factor"),
        original_length=length.whole("original_max_position_embeddings"),
    )


def _table(config: DecoderConfig, opened: Opened) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """The rules, which are the same for all families, and what is ignored."""
    prefix = find_prefix(opened.tensors, "embed_tokens.weight")
    layer = f"{prefix}layers.{{i}}"
    # With norms on the results, that of attention has the name that the norm before the MLP has without them.
    pre_mlp = "pre_feedforward_layernorm" if config.post_norms else "post_attention_layernorm"
    head = next(
        (name for name in opened.tensors.infos if re.fullmatch(r"(.*\.)?lm_head\.weight", name)), "lm_head.weight"
    )
    rules = [
        Rule("embedder/embedding", f"{prefix}embed_tokens.weight"),
        Rule("head/embedding", head),
        Rule("final_norm/scale", f"{prefix}norm.weight"),
        Rule("layers/pre_attention_norm/scale", f"{layer}.input_layernorm.weight"),
        Rule("layers/pre_mlp_norm/scale", f"{layer}.{pre_mlp}.weight"),
        Rule("layers/attention/out/kernel", f"{layer}.self_attn.o_proj.weight", linear(2)),
        Rule("layers/attention/query_norm/scale", f"{layer}.self_attn.q_norm.weight"),
        Rule("layers/attention/key_norm/scale", f"{layer}.self_attn.k_norm.weight"),
    ]
    for name, source in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        rules += [
            Rule(f"layers/attention/{name}/kernel", f"{layer}.self_attn.{source}.weight", linear()),
            Rule(f"layers/attention/{name}/bias", f"{layer}.self_attn.{source}.bias", MERGED),
        ]
    for name in ("gate", "up", "down"):
        rules.append(Rule(f"layers/mlp/{name}/kernel", f"{layer}.mlp.{name}_proj.weight", linear()))
    if config.post_norms:
        rules += [
            Rule("layers/post_attention_norm/scale", f"{layer}.post_attention_layernorm.weight"),
            Rule("layers/post_mlp_norm/scale", f"{layer}.post_feedforward_layernorm.weight"),
        ]
    ignored = [
        rf"{re.escape(prefix)}.*rotary_emb\.inv_freq",  # the frequencies of RoPE, in files of old versions
        # Tower and projection of the multimodal Gemma 3.
        r"(model\.)?(vision_tower|multi_modal_projector)\..*",
    ]
    if config.tied_head:
        ignored.append(re.escape(head))  # the embedding table once more
    return tuple(rules), tuple(ignored)
