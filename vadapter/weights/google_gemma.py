"""Gemma's tensors in Google's own names: the Orbax checkpoints of Gemma 1, 2 and 3, and big_vision's .npz files.

The official checkpoints have flat keys (`transformer/layer_0/attn/q_einsum` over `w`), what the library saves is
nested; both read as the same slash paths. The gate is number 0 of `gating_einsum` and the linear half is number 1, and
each of the two is (D, F) in older models and (F, D) in newer ones.
"""

import re
from collections.abc import Iterator
from typing import Any

from vadapter.base.errors import UserError
from vadapter.models.decoder import DecoderConfig
from vadapter.weights import big_vision_vit, published_sizes
from vadapter.weights.checkpoint import BIG_VISION, GEMMA
from vadapter.weights.family import Place
from vadapter.weights.mapping import LAYER, SAME, Layout, Rule, entry, transposed

PATTERNS = {
    GEMMA: re.compile(r"((?:params/)?(?:transformer/)?)embedder/input_embedding"),
    BIG_VISION: re.compile(big_vision_vit.TOP + r"(?:llm/)?)embedder/input_embedding"),
}
STACKED = re.compile(r"(.*)stacked_layers/.*")
# Not wanted with the decoder of an Orbax checkpoint: the vision encoder, its projection (an adapter takes its place),
# and what a training run has beside its parameters.
_BESIDE = (
    r"(params/)?(SigLiPFromPatches_0|vision_encoder)/.*",
    r".*embedder/mm_.*",
    r"(opt_state|collections)/.*|step",
)
_HEADS_FIRST = transposed(1, 0, 2)  # (N, D, H) to (D, N, H)


def has_post_norms(place: Place) -> bool:
    """Whether there are norms on the results: in Gemma 2 and 3."""
    return _Table(place).has("post_ffw_norm/scale")


def has_qk_norm(place: Place) -> bool:
    """Whether there are norms on queries and keys: in Gemma 3."""
    return _Table(place).has("attn/_query_norm/scale")


def config(place: Place, variant: str | None) -> DecoderConfig:
    """Returns the configuration.

    Args:
        place: where the decoder is.
        variant: published size whose settings hold for every size of the family; None where they depend on it.

    Raises:
        UserError: it is no Gemma 1, 2 or 3, or of a size that is not published while no variant is given.
    """
    return published_sizes.decoder(_Table(place).found(), place.variant, place.tensors.where, variant)


def rules(place: Place, config: DecoderConfig) -> Iterator[Rule]:
    """Returns the table."""
    return _Table(place).rules()


def ignored(place: Place, config: DecoderConfig) -> tuple[str, ...]:
    """Returns what is known beside the decoder."""
    if place.checkpoint.kind == GEMMA:
        return _BESIDE
    return big_vision_vit.beside(place, "llm/", "img/")


class _Table:
    """The names of one checkpoint: several spellings are in use."""

    def __init__(self, place: Place):
        self._tensors, self._root = place.tensors, place.prefix
        self._stacked = f"{place.prefix}layers/pre_attention_norm/scale" in place.tensors.infos
        single = f"layer_{LAYER}/" if place.checkpoint.kind == GEMMA else f"layers/{LAYER}/"
        self._layer = place.prefix + ("layers/" if self._stacked else single)
        self._merged = self.has("attn/qkv_einsum")

    def _name(self, name: str) -> str | None:
        """Full name of a layer's tensor, which may be a module of its own with the weight `w`."""
        for full in (self._layer + name, f"{self._layer}{name}/w"):
            if full.replace(LAYER, "0") in self._tensors.infos:
                return full
        return None

    def has(self, name: str) -> bool:
        """Whether a layer has a tensor of that name."""
        return self._name(name) is not None

    def _shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of one layer's tensor."""
        full = self._name(name)
        shape = () if full is None else self._tensors.infos[full.replace(LAYER, "0")].shape[1 if self._stacked else 0 :]
        if len(shape) != rank:
            was = f"has the shape {shape}" if full else "is not there"
            raise UserError(
                f"{self._tensors.where} is not Gemma 1, 2 or 3: `{name}` of its first layer {was}, {rank} axes were "
                "expected. Other models of the family (Gemma 3n, Gemma 4, RecurrentGemma) are not supported."
            )
        return shape

    def found(self) -> dict[str, Any]:
        """Fields of the configuration that names and shapes tell."""
        if self._merged:
            _, heads, width, head_dim = self._shape("attn/qkv_einsum", 4)
            kv_heads = heads
        else:
            heads, width, head_dim = self._shape("attn/q_einsum", 3)
            kv_heads = self._shape("attn/kv_einsum", 4)[1]
        return {
            "vocab_size": self._tensors.infos[f"{self._root}embedder/input_embedding"].shape[0],
            "width": width,
            "depth": self._depth(),
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "mlp_dim": self._shape("mlp/linear", 2)[0],
            "norm": "rms_plus_one",
            "post_norms": self.has("post_ffw_norm/scale"),
            "qk_norm": self.has("attn/_query_norm/scale"),
        }

    def _depth(self) -> int:
        if self._stacked:
            return self._tensors.infos[f"{self._layer}pre_attention_norm/scale"].shape[0]
        each = re.compile(re.escape(self._layer).replace(re.escape(LAYER), r"(\d+)") + ".*")
        return 1 + max(int(match.group(1)) for name in self._tensors.infos if (match := each.fullmatch(name)))

    def rules(self) -> Iterator[Rule]:
        """The lines of the mapping."""
        yield Rule("embedder/embedding", f"{self._root}embedder/input_embedding")
        yield Rule("final_norm/scale", f"{self._root}final_norm/scale")
        if self._merged:
            sources = [("query", "qkv_einsum", 0, 3), ("key", "qkv_einsum", 1, 3), ("value", "qkv_einsum", 2, 3)]
        else:
            yield self._rule("attention/query/kernel", "attn/q_einsum", _HEADS_FIRST)
            sources = [("key", "kv_einsum", 0, 2), ("value", "kv_einsum", 1, 2)]
        for ours, theirs, index, of in sources:
            yield self._rule(f"attention/{ours}/kernel", f"attn/{theirs}", entry(index, of, _HEADS_FIRST))
        yield self._rule("attention/out/kernel", "attn/attn_vec_einsum")
        width_last = self._shape("mlp/gating_einsum", 3)[1:] == self._shape("mlp/linear", 2)
        for index, ours in enumerate(("gate", "up")):
            layout = entry(index, 2, transposed(1, 0) if width_last else SAME)
            yield self._rule(f"mlp/{ours}/kernel", "mlp/gating_einsum", layout)
        yield self._rule("mlp/down/kernel", "mlp/linear")
        for ours, theirs in (
            ("pre_attention_norm", "pre_attention_norm"),
            ("post_attention_norm", "post_attention_norm"),
            ("pre_mlp_norm", "pre_ffw_norm"),
            ("post_mlp_norm", "post_ffw_norm"),
            ("attention/query_norm", "attn/_query_norm"),
            ("attention/key_norm", "attn/_key_norm"),
        ):
            yield self._rule(f"{ours}/scale", f"{theirs}/scale")

    def _rule(self, target: str, name: str, layout: Layout = SAME) -> Rule:
        return Rule(f"layers/{target}", self._name(name) or self._layer + name, layout)
