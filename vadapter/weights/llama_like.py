"""Language models that transformers saves with Llama's names: a family is what sets it apart from Llama."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vadapter.models.decoder import DecoderConfig
from vadapter.weights.family import Family, ModelType, Place
from vadapter.weights.mapping import MERGED, Rule, linear, part, rows
from vadapter.weights.rotary_settings import FULL, PARTIAL, read_rope
from vadapter.weights.settings import Settings
from vadapter.weights.tensors import Tensors, blocks

# Defaults of transformers, for what config.json leaves out.
LLAMA = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "sliding_window": 4096,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
_NO = (False, None)
_ALLOWED = {
    "attention_bias": _NO,  # biases on the output map too
    "mlp_bias": _NO,
    "use_bidirectional_attention": _NO,
    PARTIAL: FULL,
    "dual_chunk_attention_config": (None,),
    "use_mrope": _NO,
}
# A name that every model has, and one that is there where the table was saved as the head alone.
_ANCHORS = ("embed_tokens.weight", "layers.0.mlp.down_proj.weight")
_HEAD = re.compile(r"(.*\.)?lm_head\.weight")


def llama_like(
    name: str,
    defaults: Mapping[str, Any],
    fields: Mapping[str, Any] | None = None,
    *,
    model_type: str | None = None,
    within: Mapping[str, str] | None = None,
    activation: str | None = "hidden_act",
    global_every: int = 1,
    local_rope: bool = False,
    partial_rope: bool = False,
    fused: bool = False,
    more: Callable[[Settings], Mapping[str, Any]] | None = None,
    allowed: Mapping[str, Sequence[Any]] | None = None,
    prompt_format: str | None = None,
) -> Family:
    """Makes the record of a decoder that differs little from Llama. Tables and settings are read as transformers does.

    Args:
        name: of the family.
        defaults: of transformers, for what config.json leaves out; `LLAMA` with the differences.
        fields: of `DecoderConfig`, the same for all sizes, for example {"qk_norm": True}.
        model_type: in config.json; default `name`.
        within: see `ModelType`.
        activation: the name of the setting; None where `fields` has the activation.
        global_every: every how many layers one is global, where config.json does not say: 1 is all layers. 0 is none:
            all layers have the sliding window, unless `sliding_window` is null.
        local_rope: local layers have a base of their own and are never stretched (Gemma 3).
        partial_rope: `partial_rotary_factor` is the share of each head that is rotated (Phi).
        fused: query, key and value are one tensor, and so are gate and up (Phi).
        more: makes more fields of `DecoderConfig` from the settings; default none.
        allowed: settings that change the results, and their values that we can compute; {} is none beyond Llama's.
        prompt_format: see `Family`.

    Returns:
        The record, to be registered.
    """
    known = {**_ALLOWED, **(allowed or {})}
    if partial_rope:
        del known[PARTIAL]
    kind = _Kind(defaults, fields or {}, activation, global_every, local_rope, partial_rope, fused, more, known)
    by = ModelType((model_type or name,), _ANCHORS, within or {})
    return Family(name, "decoder", by, kind.config, kind.rules, _ignored, kind.notes, prompt_format)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What sets a family apart: arguments of `llama_like`."""

    defaults: Mapping[str, Any]
    fields: Mapping[str, Any]
    activation: str | None
    global_every: int
    local_rope: bool
    partial_rope: bool
    fused: bool
    more: Callable[[Settings], Mapping[str, Any]] | None
    allowed: Mapping[str, Sequence[Any]]

    def config(self, place: Place) -> DecoderConfig:
        settings = place.settings.with_defaults(self.defaults)
        settings.refuse(self.allowed)
        heads = _heads(settings)
        return DecoderConfig(
            vocab_size=settings.whole("vocab_size"),
            width=settings.whole("hidden_size"),
            depth=settings.layers(),
            mlp_dim=settings.whole("intermediate_size"),
            norm_eps=settings.real("rms_norm_eps"),
            tied_head=settings.flag("tie_word_embeddings") and not _has_another_head(place),
            attention_softcap=settings.optional_real("attn_logit_softcapping"),
            final_softcap=settings.optional_real("final_logit_softcapping"),
            **heads,
            **({"activation": settings.activation(self.activation)} if self.activation else {}),
            **_positions(settings, self, heads["head_dim"]),
            **self.fields,
            **(self.more(settings) if self.more else {}),
        )

    def rules(self, place: Place, config: DecoderConfig) -> Iterator[Rule]:
        yield from _rules(place, config)
        yield from (_fused if self.fused else _separate)(f"{place.prefix}layers.{{i}}", config)

    def notes(self, place: Place, config: DecoderConfig) -> Iterator[str]:
        if place.settings.with_defaults(self.defaults).flag("tie_word_embeddings") and not config.tied_head:
            yield (
                f"By its config.json the head of {place.tensors.where} is the embedding table, but its "
                f"{_head(place.tensors)} differs from that. It was imported as a head of its own, as transformers "
                "loads it."
            )
        if (scaling := config.rope_scaling) and scaling.kind == "longrope":
            yield (
                f"{place.tensors.where} has rotary factors for short and for long contexts. Those for up to "
                f"{scaling.original_length} tokens were taken, and longer rows will be refused."
            )


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


def period(pattern: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the shortest pattern whose repetition gives this one; the last time may be cut off."""
    sizes = range(1, len(pattern) + 1)
    return tuple(pattern[: next(n for n in sizes if all(x == pattern[i % n] for i, x in enumerate(pattern)))])


def _positions(settings: Settings, kind: _Kind, head_dim: int) -> dict[str, Any]:
    """Fields that say what layers see: kinds of the layers, window, rotation."""
    rope = read_rope(settings, "full_attention", settings.real("rope_theta"), head_dim, partial=kind.partial_rope)
    fields: dict[str, Any] = {"rope_base": rope.base, "rope_scaling": rope.scaling}
    fields |= {} if rope.dim == head_dim else {"rope_dim": rope.dim}
    local = _local_layers(settings, kind)
    if not any(local):
        return fields
    window = settings.whole("sliding_window")
    if rope.scaling and rope.scaling.kind == "longrope" and window >= rope.scaling.original_length:
        return fields  # rows are shorter than the window
    fields |= {"attention_pattern": period(["local" if x else "global" for x in local]), "window": window}
    otherwise = settings.real("rope_local_base_freq") if kind.local_rope else rope.base
    local_rope = read_rope(
        settings, "sliding_attention", otherwise, head_dim, old=not kind.local_rope, partial=kind.partial_rope
    )
    if local_rope.scaling is not None:
        name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
        raise settings.error(name, settings.get(name), "no stretching of layers with a sliding window")
    return fields | {"rope_local_base": None if local_rope.base == rope.base else local_rope.base}


def _local_layers(settings: Settings, kind: _Kind) -> list[bool]:
    """Whether each layer has the sliding window: by the first of four ways in which config.json says it."""
    depth = settings.layers()
    if (words := settings.get("layer_types")) is not None:
        known = {"full_attention": False, "sliding_attention": True}
        if not isinstance(words, list) or len(words) != depth or not all(str(word) in known for word in words):
            raise settings.error("layer_types", words, f"{depth} of the words {' and '.join(known)}")
        return [known[word] for word in words]
    if "use_sliding_window" in kind.defaults:
        if not settings.flag("use_sliding_window") or settings.get("sliding_window") is None:
            return [False] * depth
        first = settings.get("max_window_layers")
        if not isinstance(first, int):
            raise settings.error("max_window_layers", first, "a whole number")
        return [i >= first for i in range(depth)]
    if not kind.global_every:
        return [settings.get("sliding_window") is not None] * depth
    period = kind.global_every
    if kind.local_rope:
        period = settings.with_default("sliding_window_pattern", period).whole("sliding_window_pattern")
    return [(i + 1) % period != 0 for i in range(depth)]


def _rules(place: Place, config: DecoderConfig) -> Iterator[Rule]:
    prefix, layer = place.prefix, f"{place.prefix}layers.{{i}}"
    table, head = f"{prefix}embed_tokens.weight", _head(place.tensors)
    # Of a tied model, some tools save the table under the name of the head alone.
    only_head = config.tied_head and table not in place.tensors.infos and head in place.tensors.infos
    yield Rule("embedder/embedding", head if only_head else table)
    yield Rule("head/embedding", head)
    yield Rule("final_norm/scale", f"{prefix}norm.weight")
    yield Rule("layers/attention/out/kernel", f"{layer}.self_attn.o_proj.weight", linear(2))
    yield Rule("layers/mlp/down/kernel", f"{layer}.mlp.down_proj.weight", linear())
    norms = {
        "attention/query_norm": "self_attn.q_norm",
        "attention/key_norm": "self_attn.k_norm",
        "pre_attention_norm": "input_layernorm",
        "pre_mlp_norm": "post_attention_layernorm",
    }
    if config.post_norms:  # with them, the norm of attention's result has the name that is pre_mlp_norm's without
        norms |= {
            "pre_mlp_norm": "pre_feedforward_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "post_mlp_norm": "post_feedforward_layernorm",
        }
    for name, source in norms.items():
        yield Rule(f"layers/{name}/scale", f"{layer}.{source}.weight")


def _separate(layer: str, config: DecoderConfig) -> Iterator[Rule]:
    for name, source in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        yield Rule(f"layers/attention/{name}/kernel", f"{layer}.self_attn.{source}.weight", linear())
        yield Rule(f"layers/attention/{name}/bias", f"{layer}.self_attn.{source}.bias", MERGED)
    for name in ("gate", "up"):
        yield Rule(f"layers/mlp/{name}/kernel", f"{layer}.mlp.{name}_proj.weight", linear())


def _fused(layer: str, config: DecoderConfig) -> Iterator[Rule]:
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for name, start in (("query", 0), ("key", query), ("value", query + key)):
        layout = rows(start, query + 2 * key, linear())
        yield Rule(f"layers/attention/{name}/kernel", f"{layer}.self_attn.qkv_proj.weight", layout)
    for i, name in enumerate(("gate", "up")):
        yield Rule(f"layers/mlp/{name}/kernel", f"{layer}.mlp.gate_up_proj.weight", part(i, 2, linear()))


def _ignored(place: Place, config: DecoderConfig) -> Iterable[str]:
    yield rf"{re.escape(place.prefix)}.*rotary_emb\.inv_freq"  # the frequencies of RoPE, in files of old versions
    yield r"(model\.)?(vision_tower|multi_modal_projector)\..*"  # of the multimodal Gemma 3
    if config.tied_head:
        yield re.escape(_head(place.tensors))  # the embedding table once more


def _head(tensors: Tensors) -> str:
    return next((name for name in tensors.infos if _HEAD.fullmatch(name)), "lm_head.weight")


def _has_another_head(place: Place) -> bool:
    """Whether the checkpoint has an embedding table and a head that are not the same."""
    infos, table, head = place.tensors.infos, f"{place.prefix}embed_tokens.weight", _head(place.tensors)
    if table not in infos or head not in infos:
        return False
    if infos[head].shape != infos[table].shape:
        return True
    read = place.tensors.read
    return any(not np.array_equal(read(table, *at), read(head, *at)) for at in blocks(infos[table]))
