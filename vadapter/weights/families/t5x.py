"""Checkpoints of t5x: models with our own names trained by it, and decoder-only networks in the style of its examples.

A tree in our names is taken as it is. The names of t5x's `decoder_only` example are known as well: the example itself,
which has T5's relative position biases and logits that are not scaled, and networks with rotary positions in its style.
"""

import dataclasses
import math
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

from vadapter.base.errors import UserError
from vadapter.models import variants
from vadapter.models.decoder import DecoderConfig
from vadapter.models.vit import ViTConfig
from vadapter.weights import published_sizes
from vadapter.weights.checkpoint import T5X
from vadapter.weights.family import Family, Place, Refusal, TensorNames, refuse, register
from vadapter.weights.mapping import LAYER, SAME, Layout, Rule, Shape, transposed
from vadapter.weights.tensors import Tensors

# Where the parameters are in a train state. The group is left open for what stands after it.
_TOP = r"((?:optimizer/)?(?:target/|params/)?"
_OWN_ENCODER = re.compile(_TOP + r"encoder/)Transformer/encoderblock/LayerNorm_0/scale")
_OWN_DECODER = re.compile(_TOP + r"decoder/)layers/attention/query/kernel")
_EXAMPLE = re.compile(_TOP + r")decoder/(layers_0|layers|decoder)/self_attention/query/kernel")
_BIASES = "decoder/relpos_bias/rel_embedding"
_ENCODER_DECODER = re.compile(r"(.*(?:^|/))((encoder/(layers_0|encoder)/attention|encoder_decoder_attention)/.*)")
# Kernels of t5x have one axis for the inputs and one for the outputs.
_JOINED_OUTPUTS = Layout(lambda s: (s[0], math.prod(s[1:])), lambda x, shape: x.reshape(shape))
_JOINED_INPUTS = Layout(lambda s: (math.prod(s[:-1]), s[-1]), lambda x, shape: x.reshape(shape))


class _Shapes(dict[str, Shape]):
    """Shapes of a checkpoint's tensors; one that is asked for and is not there makes the checkpoint incomplete."""

    def __init__(self, tensors: Tensors):
        super().__init__({name: info.shape for name, info in tensors.infos.items()})
        self._where = tensors.where

    def __missing__(self, name: str) -> Shape:
        raise UserError(
            f"{self._where} lacks {name}, which models with its other tensors have. Use a complete checkpoint."
        )


def _beside(top: str) -> tuple[str, ...]:
    """The optimizer's state and the step, beside the parameters."""
    return (rf"(?!{top}).*",) if top else (r"state/.*|step",)


# ---- our own names


def _own_rules(place: Place, config: Any) -> Iterator[Rule]:
    """Everything is taken as it is."""
    return (
        Rule(name.removeprefix(place.prefix), name) for name in place.tensors.infos if name.startswith(place.prefix)
    )


def _own_ignored(place: Place, config: Any) -> tuple[str, ...]:
    """The other parts of the model, and what is beside it."""
    *before, tree = place.prefix.removesuffix("/").split("/")
    top = "".join(f"{name}/" for name in before)
    return (*_beside(top), rf"{top}(?!{tree}/)(encoder|decoder|adapter)/.*")


def _own_decoder_config(place: Place) -> DecoderConfig:
    found = _own_decoder(_Shapes(place.tensors), place.prefix, place.tensors.where)
    return published_sizes.decoder(found, place.variant, place.tensors.where)


def _own_encoder_config(place: Place) -> ViTConfig:
    found = _own_encoder(_Shapes(place.tensors), place.prefix, place.tensors.where)
    return published_sizes.encoder(found, place.variant, place.tensors.where)


def _own_decoder(shapes: Mapping[str, Shape], root: str, where: str) -> dict[str, Any]:
    if f"{root}embedder/embedding" not in shapes:
        raise UserError(
            f"{where} has a decoder without {root}embedder/embedding: a language model that served as an adapter has "
            "no embeddings. Use the checkpoint that it was made of."
        )
    if f"{root}relative_bias/embedding" in shapes:
        raise UserError(
            f"{where} has relative position biases in vadapter's own names, which do not tell how logits are scaled. "
            "Import the checkpoint that it was made of, or make a run of it (python -m vadapter.contrib to_run)."
        )
    vocab_size, width = shapes[f"{root}embedder/embedding"]
    layers = f"{root}layers/"
    pre_attention, pre_mlp, post_mlp = (f"{layers}{n}_norm/scale" for n in ("pre_attention", "pre_mlp", "post_mlp"))
    after_only = post_mlp in shapes and pre_attention not in shapes and pre_mlp not in shapes
    query_norm = f"{layers}attention/query_norm/scale"
    depth, _, num_heads, head_dim = shapes[f"{layers}attention/query/kernel"]
    found = {
        "vocab_size": vocab_size,
        "width": width,
        "depth": depth,
        "num_heads": num_heads,
        "num_kv_heads": shapes[f"{layers}attention/key/kernel"][2],
        "head_dim": head_dim,
        "mlp_dim": shapes[f"{layers}mlp/up/kernel"][2],
        "gated": f"{layers}mlp/gate/kernel" in shapes,
        "parallel_block": not after_only and _is_parallel(shapes, pre_attention, pre_mlp, where),
        "pre_norms": not after_only,
        "post_norms": post_mlp in shapes,
        "qk_norm": query_norm in shapes,
        "qk_norm_over": "all_heads" if query_norm in shapes and shapes[query_norm][-1] != head_dim else "head",
        "qkv_bias": f"{layers}attention/query/bias" in shapes,
        "tied_head": f"{root}head/embedding" not in shapes,
    }
    return found | ({"norm": "layer"} if f"{root}final_norm/bias" in shapes else {})


def _own_encoder(shapes: Mapping[str, Shape], root: str, where: str) -> dict[str, Any]:
    block = f"{root}Transformer/encoderblock/"
    patch_size, _, _, width = shapes[f"{root}embedding/kernel"]
    class_token = f"{root}cls" in shapes
    patches = shapes[f"{root}pos_embedding"][1] - class_token
    if math.isqrt(patches) ** 2 != patches:
        raise UserError(f"{where} has positions for {patches} patches, which are not a square grid.")
    return {
        "patch_size": patch_size,
        "width": width,
        "depth": shapes[f"{block}LayerNorm_0/scale"][0],
        "num_heads": shapes[f"{block}MultiHeadDotProductAttention_0/query/kernel"][2],
        "mlp_dim": shapes[f"{block}MlpBlock_0/Dense_0/kernel"][2],
        "grid": math.isqrt(patches),
        "positions": "learned",
        "class_token": class_token,
        "num_registers": shapes.get(f"{root}registers", (1, 0))[1],
        "layer_scale": f"{block}LayerScale_0/scale" in shapes,
        "gated": f"{block}MlpBlock_0/Gate/kernel" in shapes,
        "pre_norm": f"{root}pre_norm/scale" in shapes,
        "final_norm": f"{root}Transformer/encoder_norm/scale" in shapes,
        "patch_bias": f"{root}embedding/bias" in shapes,
    }


def _is_parallel(names: Container[str], pre_attention: str, pre_mlp: str, where: str) -> bool:
    """Whether attention and MLP read the same norm (PaLM): it is there, and the MLP has none of its own.

    Raises:
        UserError: there is no norm before the attention. Such blocks lack that of the MLP as PaLM's do, but are no
            parallel blocks.
    """
    if pre_attention not in names:
        raise UserError(
            f"{where} has no norm before the attention ({pre_attention}). Use a checkpoint of a decoder that has one, "
            "or, in vadapter's own names, one that has norms on the results of attention and MLP instead (OLMo 2)."
        )
    return pre_mlp not in names


# ---- the names of t5x's `decoder_only` example


def _example_config(place: Place) -> DecoderConfig:
    shapes, top, variant, where = _Shapes(place.tensors), place.prefix, place.variant, place.tensors.where
    biases = f"{top}{_BIASES}"
    if biases not in shapes and any("relpos_bias" in name for name in shapes):
        raise UserError(
            f"{where} has relative position biases (`relpos_bias`) in other places than {biases}, where t5x's "
            "decoder-only example has those of all layers. Networks with biases of their own in each layer are not "
            "supported."
        )
    if biases in shapes and variant is not None:
        raise UserError(
            f"{where} has relative position biases (`relpos_bias`), which {variant} does not have. Leave variant out."
        )
    if biases not in shapes and variant is None:
        raise UserError(
            f"{where} has the names of t5x's decoder-only example and no `relpos_bias`: what it computes in place "
            "of it is not known. Give variant, the name of the model that it computes: rotary positions, factor on "
            f"the attention logits (t5x's own layers have none), activation. Known: {', '.join(variants.DECODERS)}."
        )
    layers = _layers(shapes, top, width=shapes[_embedding(place)][1])
    if not {"mlp/wi/kernel", "mlp/wi_1/kernel"} & layers.one.keys():
        raise UserError(
            f"{where} has layers without `mlp/wi` and `mlp/wi_1`; networks with other MLPs than those of t5x's "
            "examples are not supported."
        )
    if variant is None:
        return _example_itself(place, shapes, layers)
    found = _example_fields(place, shapes, layers, variants.decoder(variant).head_dim)
    return published_sizes.decoder(found, variant, where)


def _embedding(place: Place) -> str:
    names = (f"{place.prefix}{at}token_embedder/embedding" for at in ("", "decoder/"))
    if found := next((name for name in names if name in place.tensors.infos), None):
        return found
    raise UserError(
        f"{place.tensors.where} lacks `token_embedder/embedding`, which a decoder-only network of t5x has. Use a "
        "complete checkpoint."
    )


@dataclasses.dataclass(frozen=True)
class _Layers:
    """Where the layers are: one by one under `layers_{i}/`, or stacked on an axis.

    Attributes:
        root: what comes before the name of a layer's tensor.
        one: shapes of one layer's tensors, by name.
        depth: how many layers there are.
        axis: that of the layers where they are stacked: the second by default in t5x (`param_scan_axis`).
    """

    root: str
    one: Mapping[str, Shape]
    depth: int
    axis: int = 0

    def rule(self, target: str, name: str, layout: Layout = SAME) -> Rule:
        return Rule(f"layers/{target}", self.root + name, layout, self.axis)


def _layers(shapes: Mapping[str, Shape], top: str, width: int) -> _Layers:
    first = f"{top}decoder/layers_0/"
    if one := {name[len(first) :]: shape for name, shape in shapes.items() if name.startswith(first)}:
        numbers = (re.match(rf"{top}decoder/layers_(\d+)/", name) for name in shapes)
        return _Layers(f"{top}decoder/layers_{LAYER}/", one, 1 + max(int(m.group(1)) for m in numbers if m))
    query = "self_attention/query/kernel"
    root = next(f"{top}decoder/{at}/" for at in ("layers", "decoder") if f"{top}decoder/{at}/{query}" in shapes)
    axis = 1 if shapes[root + query][0] == width else 0
    stacked = {name[len(root) :]: shape for name, shape in shapes.items() if name.startswith(root)}
    one = {name: (*shape[:axis], *shape[axis + 1 :]) for name, shape in stacked.items()}
    return _Layers(root, one, stacked[query][axis], axis)


def _example_fields(place: Place, shapes: Mapping[str, Shape], layers: _Layers, head_dim: int) -> dict[str, Any]:
    """Fields of the configuration. `head_dim` is that of kernels which do not tell it."""
    query = layers.one["self_attention/query/kernel"]
    key = layers.one.get("self_attention/key/kernel", query)
    if len(query) == 3:
        head_dim = query[2]
    gated = "mlp/wi_1/kernel" in layers.one
    vocab_size, width = shapes[_embedding(place)]
    norms = ("pre_self_attention_layer_norm/scale", "pre_mlp_layer_norm/scale")
    return {
        "vocab_size": vocab_size,
        "width": width,
        "depth": layers.depth,
        "num_heads": math.prod(query[1:]) // head_dim,
        "num_kv_heads": max(1, math.prod(key[1:]) // head_dim),
        "head_dim": head_dim,
        "mlp_dim": layers.one[f"mlp/{'wi_1' if gated else 'wi'}/kernel"][1],
        "norm": "rms",
        "gated": gated,
        "parallel_block": _is_parallel(layers.one, *norms, place.tensors.where),
        "tied_head": f"{place.prefix}decoder/logits_dense/kernel" not in shapes,
    }


def _example_itself(place: Place, shapes: Mapping[str, Shape], layers: _Layers) -> DecoderConfig:
    """The configuration of t5x's own `decoder_only` network, all of which its tensors tell but for the activation.

    That is the one of its gin files: gelu with a gate. Without a gate it is relu, the default of its configuration.
    """
    biases, query = shapes[f"{place.prefix}{_BIASES}"], layers.one["self_attention/query/kernel"]
    if len(biases) != 2 or math.prod(query[1:]) % biases[0]:
        raise UserError(
            f"{place.tensors.where} has relative position biases of the shape {biases}; expected (heads, buckets) of "
            "all layers together."
        )
    found = _example_fields(place, shapes, layers, math.prod(query[1:]) // biases[0])
    return DecoderConfig(
        **found,
        activation="gelu_tanh" if found["gated"] else "relu",
        rope_pattern=(False,),
        query_scale=1.0,
        relative_buckets=biases[1],
        logits_multiplier=found["width"] ** -0.5 if found["tied_head"] else 1.0,
    )


def _example_rules(place: Place, config: DecoderConfig) -> Iterator[Rule]:
    top, embedding = place.prefix, _embedding(place)
    layers = _layers(_Shapes(place.tensors), top, config.width)
    yield Rule("embedder/embedding", embedding)
    yield Rule("final_norm/scale", f"{top}decoder/decoder_norm/scale")
    if config.relative_buckets is not None:
        yield Rule("relative_bias/embedding", top + _BIASES)
    yield Rule("head/embedding", f"{top}decoder/logits_dense/kernel", transposed(1, 0))
    yield layers.rule("pre_attention_norm/scale", "pre_self_attention_layer_norm/scale")
    yield layers.rule("pre_mlp_norm/scale", "pre_mlp_layer_norm/scale")
    joined = len(layers.one["self_attention/query/kernel"]) == 2
    for name in ("query", "key", "value", "out"):
        layout = (_JOINED_INPUTS if name == "out" else _JOINED_OUTPUTS) if joined else SAME
        yield layers.rule(f"attention/{name}/kernel", f"self_attention/{name}/kernel", layout)
    gated = "mlp/wi_1/kernel" in layers.one
    for ours, theirs in (("gate", "wi_0"), ("up", "wi_1" if gated else "wi"), ("down", "wo")):
        yield layers.rule(f"mlp/{ours}/kernel", f"mlp/{theirs}/kernel")


register(
    Family(
        "vadapter",
        "encoder",
        TensorNames({T5X: _OWN_ENCODER}, "an encoder in vadapter's own names (`encoder/Transformer`)"),
        _own_encoder_config,
        _own_rules,
        _own_ignored,
    )
)
register(
    Family(
        "vadapter",
        "decoder",
        TensorNames({T5X: _OWN_DECODER}, "a decoder in vadapter's own names (`decoder/layers/attention`)"),
        _own_decoder_config,
        _own_rules,
        _own_ignored,
    )
)
register(
    Family(
        "t5x",
        "decoder",
        TensorNames({T5X: _EXAMPLE}, "a decoder-only network in t5x's names (`decoder/layers_0/self_attention`)"),
        _example_config,
        _example_rules,
        lambda place, config: _beside(place.prefix),
    )
)
refuse(
    Refusal(
        TensorNames({T5X: _ENCODER_DECODER}, "T5"),
        "it is an encoder-decoder T5, whose decoder reads its encoder by cross-attention; here the decoder reads "
        "visual tokens among the text. Use a decoder-only language model",
    )
)
