"""Gemma 1, 2 and 3 from Google's own checkpoints (Orbax); the decoder of PaliGemma has the same tensors.

The official checkpoints have flat keys (`transformer/layer_0/attn/q_einsum` over `w`), what the library saves is
nested; both read as the same slash paths. The gate is number 0 of `gating_einsum` and the linear half is number 1, and
each of the two is (D, F) in older models and (F, D) in newer ones.
"""

import re
from collections.abc import Iterator
from typing import Any

from vadapter.base.errors import UserError
from vadapter.models.decoder import DecoderConfig
from vadapter.weights import big_vision_vit, published
from vadapter.weights.architecture import Architecture, Opened
from vadapter.weights.mapping import LAYER, SAME, Rule, entry, transposed
from vadapter.weights.tensors import Tensors

# Where the transformer lies, and where the vision encoder beside it, if there is one.
_TRANSFORMER = re.compile(r"((?:params/)?(?:transformer/)?)embedder/input_embedding")
_VISION = re.compile(r"((?:params/)?(?:SigLiPFromPatches_0|vision_encoder)/siglip_encoder/)embedding/kernel")
# Not wanted with the decoder: the vision encoder, its projection (an adapter takes its place), and what a training run
# has beside its parameters.
_BESIDE = (
    r"(params/)?(SigLiPFromPatches_0|vision_encoder)/.*",
    r".*embedder/mm_.*",
    r"(opt_state|collections)/.*|step",
)
_HEADS_FIRST = transposed(1, 0, 2)  # (N, D, H) to (D, N, H)


def architectures(opened: Opened, variant: str | None) -> list[Architecture]:
    """Recognises the decoder of a Gemma checkpoint and the vision encoder of a multimodal one.

    Args:
        opened: the source.
        variant: the published model whose settings hold, where the sizes are not published ones. A decoder's name
            leaves the vision encoder out, and the other way round.

    Raises:
        UserError: it is no Gemma 1, 2 or 3, or of a size that is not published while `variant` is None.
    """
    tensors = opened.tensors
    wanted_vision, wanted_decoder = published.split(variant)
    if any("stacked_layers/" in name for name in tensors.infos):
        raise UserError(
            f"{tensors.where} has its layers stacked by kind of attention (`stacked_layers`), a layout that Google "
            "uses internally. Use a published checkpoint, or save it again with gemma's `gm.ckpts.save_params`."
        )
    found = []
    for root in _roots(tensors, _VISION) if wanted_vision else ():
        ignored = (r"(params/)?transformer/.*", r"(params/)?(embedder|layer_\d+|final_norm)/.*", _BESIDE[-1])
        found.append(big_vision_vit.vision(tensors, root, variant, "siglip", ignored))
    for root in _roots(tensors, _TRANSFORMER) if wanted_decoder else ():
        found.append(decoder(tensors, root, f"layer_{LAYER}/", variant, _BESIDE))
    return found


def _roots(tensors: Tensors, pattern: re.Pattern[str]) -> Iterator[str]:
    for name in tensors.infos:
        if match := pattern.fullmatch(name):
            yield match.group(1)


def decoder(
    tensors: Tensors, root: str, layer: str, variant: str | None, ignored: tuple[str, ...] = ()
) -> Architecture:
    """Recognises a Gemma decoder.

    Args:
        tensors: the checkpoint.
        root: what comes before `embedder/input_embedding`.
        layer: what comes between `root` and the name of a layer's tensor; with `{i}`, one tensor for each layer, else
            the layers are on a leading axis.
        variant: as for `architectures`.
        ignored: regexes of what is known beside the decoder.

    Raises:
        UserError: as `architectures`.
    """
    table = _Table(tensors, root, layer)
    found = table.found()
    family, known = "gemma", "gemma_2b"
    if found["post_norms"]:
        # The settings of Gemma 2 do not depend on the size (but for the 27B's), those of Gemma 3 do.
        family, known = ("gemma3", None) if found["qk_norm"] else ("gemma2", "gemma2_2b")
    config: DecoderConfig = published.decoder(found, variant, tensors.where, known)
    return Architecture("decoder", family, config, tuple(table.rules()), ignored)


class _Table:
    """The names of one checkpoint: several spellings are in use."""

    def __init__(self, tensors: Tensors, root: str, layer: str):
        self._tensors, self._root, self._layer = tensors, root, root + layer
        self._stacked = LAYER not in layer
        self._merged = self._has("attn/qkv_einsum")

    def _name(self, name: str) -> str | None:
        """Full name of a layer's tensor, which may be a module of its own with the weight `w`."""
        for full in (self._layer + name, f"{self._layer}{name}/w"):
            if full.replace(LAYER, "0") in self._tensors.infos:
                return full
        return None

    def _has(self, name: str) -> bool:
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
            "post_norms": self._has("post_ffw_norm/scale"),
            "qk_norm": self._has("attn/_query_norm/scale"),
        }

    def _depth(self) -> int:
        if self._stacked:
            return self._tensors.infos[f"{self._layer}pre_attention_norm/scale"].shape[0]
        each = re.compile(re.escape(self._layer).replace(re.escape(LAYER), r"(\d+)") + ".*")
        return 1 + max(int(match.group(1)) for name in self._tensors.infos if (match := each.fullmatch(name)))

    def rules(self) -> Iterator[Rule]:
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

    def _rule(self, target: str, name: str, layout: Any = SAME) -> Rule:
        return Rule(f"layers/{target}", self._name(name) or self._layer + name, layout)
