"""big_vision's ViT as a table: plain ViTs, the image towers of SigLIP and PaliGemma, the vision encoder of Gemma 3.

Our ViT has big_vision's names. What differs is age: layers one by one or stacked, positions in one of three places and
with or without one for the class token, and the numbering of modules of the first public ViTs.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vadapter.base.errors import UserError
from vadapter.models.vit import ViTConfig
from vadapter.weights import published_sizes
from vadapter.weights.checkpoint import GEMMA
from vadapter.weights.family import Place
from vadapter.weights.mapping import LAYER, SAME, Layout, Rule, Shape

# An .npz file has the parameters at its top, under `params/` (with an optax state beside them), or under `opt/target/`
# (with an old Flax optimizer). The group is left open for what stands after it.
TOP = r"((?:params/|opt/target/|)"
PATTERN = re.compile(TOP + r"(?:img/|))embedding/kernel")
_PAIR = re.compile(r"txt/.*|(llm/)?embedder/input_embedding")
# Beside the encoder in an Orbax checkpoint of Gemma: the decoder, and what a training run has.
_BESIDE_GEMMA = (
    r"(params/)?transformer/.*",
    r"(params/)?(embedder|layer_\d+|final_norm)/.*",
    r"(opt_state|collections)/.*|step",
)
# What a ViT has beyond its patch tokens.
_HEADS = (
    r"MAPHead_\d+/.*",  # attention pooling of all patches to one vector
    r"(probe|LayerNorm_0/.*|MlpBlock_0/.*|MultiHeadDotProductAttention_0/.*)",  # the same, of the first ViT-G
    r"(head|pre_logits)/.*",  # the class scores, SigLIP's or PaliGemma's last projection
)
_POSITIONS = ("pos_embedding", "Transformer/pos_embedding", "Transformer/posembed_input/pos_embedding")
_STACKED = "Transformer/encoderblock/"
_SINGLE = f"Transformer/encoderblock_{LAYER}/"
# Modules that were once numbered in one count, whatever their class.
_OLD_NUMBERS = {
    "LayerNorm_1": "LayerNorm_2",
    "MlpBlock_0": "MlpBlock_3",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
}
_ATTENTION = "MultiHeadDotProductAttention_0"
_BLOCK = (
    *(f"{norm}/{leaf}" for norm in ("LayerNorm_0", "LayerNorm_1") for leaf in ("scale", "bias")),
    *(f"{_ATTENTION}/{part}/{leaf}" for part in ("query", "key", "value", "out") for leaf in ("kernel", "bias")),
    *(f"MlpBlock_0/{part}/{leaf}" for part in ("Dense_0", "Dense_1") for leaf in ("kernel", "bias")),
)


def _patches_only(shape: Shape) -> Shape:
    return (shape[0], shape[1] - 1, *shape[2:])


# Newer ViTs put the class token before the patches after the positions are added: it has the position 0.
_WITHOUT_CLASS = Layout(
    _patches_only, lambda x, shape: np.concatenate([np.zeros((1, 1, shape[-1]), x.dtype), x], axis=1)
)


def config(place: Place) -> ViTConfig:
    """Returns the configuration of a ViT.

    Raises:
        UserError: it is a ViT of another kind than ours.
    """
    found = _found(_shapes(place), f"{place.tensors.where} ({place.prefix}embedding)")
    return published_sizes.encoder(found, place.variant, place.tensors.where)


def rules(place: Place, config: ViTConfig) -> Iterator[Rule]:
    """Returns the table."""
    return _rules(_shapes(place), place.prefix)


def ignored(place: Place, config: ViTConfig) -> tuple[str, ...]:
    """Returns what is known beside the ViT."""
    heads = tuple(re.escape(place.prefix) + head for head in _HEADS)
    if place.checkpoint.kind == GEMMA:
        return (*heads, *_BESIDE_GEMMA)
    top = place.prefix.removesuffix("img/")
    # The text tower of SigLIP; temperature and bias of its loss.
    return (*heads, rf"{top}txt/.*", rf"{top}[tb]", *beside(place, "img/", "llm/"))


def beside(place: Place, own: str, other: str) -> tuple[str, ...]:
    """Returns what is beside a model in an .npz file: the state of the training run, and the other model of a pair."""
    top = place.prefix.removesuffix(own)
    state = (rf"(?!{top}).*",) if top else ()
    return (*state, rf"{top}{other}.*") if top != place.prefix else state


def in_pair(place: Place) -> bool:
    """Whether a ViT has a text tower or a language model beside it."""
    top = place.prefix.removesuffix("img/")
    return any(_PAIR.fullmatch(name.removeprefix(top)) for name in place.tensors.infos)


def _shapes(place: Place) -> dict[str, Shape]:
    root = place.prefix
    return {name[len(root) :]: info.shape for name, info in place.tensors.infos.items() if name.startswith(root)}


def _found(shapes: Mapping[str, Shape], where: str) -> dict[str, Any]:
    """Fields of the configuration that names and shapes tell, with `grid` for `image_size`."""
    embedding = shapes["embedding/kernel"]
    if len(embedding) != 4 or embedding[0] != embedding[1] or embedding[2] != 3:
        raise UserError(
            f"{where} embeds patches with a kernel of the shape {embedding}; a ViT for square RGB images has (size, "
            "size, 3, width). Encoders of images of any shape (NaFlex) are not supported: use a checkpoint of one size."
        )
    query = shapes.get(f"{_STACKED}{_ATTENTION}/query/kernel", (0,))[1:] or shapes.get(_one(shapes, "query/kernel"))
    up = shapes.get(f"{_STACKED}MlpBlock_0/Dense_0/kernel", (0,))[1:] or shapes.get(_one(shapes, "Dense_0/kernel"))
    if query is None or up is None or len(query) != 3 or len(up) != 2:
        raise UserError(
            f"{where} is a convolution without the layers of a ViT after it (`{_STACKED}` or `{_SINGLE}`). Only ViTs "
            "are supported, not hybrids with a ResNet."
        )
    tokens = _positions(shapes, where)
    return {
        "patch_size": embedding[0],
        "width": embedding[3],
        "depth": _depth(shapes),
        "num_heads": query[1],
        "mlp_dim": up[1],
        "grid": math.isqrt(tokens),
        "positions": "learned",
        "class_token": "cls" in shapes,
        "num_registers": 0,
        "layer_scale": False,
        "gated": False,
        "pre_norm": False,
        "final_norm": "Transformer/encoder_norm/scale" in shapes,
        "patch_bias": "embedding/bias" in shapes,
    }


def _one(shapes: Mapping[str, Shape], ending: str) -> str:
    """Name of the first layer's tensor with this ending; "" without."""
    first = re.compile(re.escape(_SINGLE.replace(LAYER, "0")) + r"\w+/" + re.escape(ending))
    return next((name for name in shapes if first.fullmatch(name)), "")


def _depth(shapes: Mapping[str, Shape]) -> int:
    if f"{_STACKED}LayerNorm_0/scale" in shapes:
        return shapes[f"{_STACKED}LayerNorm_0/scale"][0]
    each = re.compile(r"Transformer/encoderblock_(\d+)/.*")
    return 1 + max(int(match.group(1)) for name in shapes if (match := each.fullmatch(name)))


def _positions(shapes: Mapping[str, Shape], where: str) -> int:
    """Number of positions, that of the class token not counted."""
    name = next((name for name in _POSITIONS if name in shapes), None)
    if name is None:
        raise UserError(
            f"{where} has no learned position embeddings (`pos_embedding`): they are computed (`sincos2d`), for an "
            "image size that the file does not tell. Use a ViT with learned ones."
        )
    _, tokens, _ = shapes[name]
    if "cls" in shapes and math.isqrt(tokens) ** 2 != tokens:
        tokens -= 1
    if math.isqrt(tokens) ** 2 != tokens:
        raise UserError(
            f"{where} has {tokens} position embeddings, which are not a square grid of patches. Only ViTs of square "
            "images are supported."
        )
    return tokens


def _rules(shapes: Mapping[str, Shape], root: str) -> Iterator[Rule]:
    position = next(name for name in _POSITIONS if name in shapes)
    square = math.isqrt(shapes[position][1]) ** 2 == shapes[position][1]
    yield Rule("pos_embedding", root + position, _WITHOUT_CLASS if "cls" in shapes and square else SAME)
    for name in (
        "cls",
        "embedding/kernel",
        "embedding/bias",
        "Transformer/encoder_norm/scale",
        "Transformer/encoder_norm/bias",
    ):
        yield Rule(name, root + name)
    stacked = f"{_STACKED}LayerNorm_0/scale" in shapes
    old = any(name.endswith("/LayerNorm_2/scale") for name in shapes)
    for name in _BLOCK:
        module, leaf = name.split("/", 1)
        theirs = f"{_OLD_NUMBERS.get(module, module) if old else module}/{leaf}"
        yield Rule(f"{_STACKED}{name}", root + (_STACKED if stacked else _SINGLE) + theirs)
