"""What a checkpoint is: the model that its configuration describes, and the table that maps its tensors to ours.

A source is opened by looking at its files (`Opened`); each kind of source has a module that recognises the models in it
and gives one `Architecture` for each part: the vision encoder, the decoder, or both of a pair.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models.decoder import Decoder, DecoderConfig
from vadapter.models.vit import ViT, ViTConfig
from vadapter.weights.mapping import Rule
from vadapter.weights.tensors import Tensors

Part = Literal["vision", "decoder"]

# Kinds of sources and the modules that know them.
_KINDS = ("huggingface", "big_vision", "t5x", "gemma")


@dataclasses.dataclass(frozen=True)
class Opened:
    """A source, found by looking at its files.

    Attributes:
        kind: `huggingface`, `big_vision`, `t5x` or `gemma`.
        tensors: its tensors.
        config: parsed config.json, or None.
        folder: where files of a tokenizer may lie, or None.
        extra: other parsed JSON files by name, for example `preprocessor_config.json`; {} without any.
    """

    kind: str
    tensors: Tensors
    config: Mapping[str, Any] | None
    folder: str | None
    extra: Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One model of a source.

    Attributes:
        part: whether it is a vision encoder or a decoder.
        family: for example `siglip`, `gemma3`, `qwen2`.
        config: our configuration of it.
        rules: from the source's tensors to the parameters of `config`.
        ignored: regexes of whole names of tensors that are known and not wanted.
    """

    part: Part
    family: str
    config: ViTConfig | DecoderConfig
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()


def expected(architecture: Architecture) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns `{slash path: shape and dtype}` of the model's parameters; nothing is allocated.

    A decoder has its embedding table, and its head where that is a table of its own.
    """
    config = architecture.config
    if isinstance(config, ViTConfig):
        frame = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.uint8)
        made = jax.eval_shape(lambda x: ViT(config).init(jax.random.key(0), x), frame)
    else:
        tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        made = jax.eval_shape(lambda x: Decoder(config).init(jax.random.key(0), x, method=_read), tokens)
    return trees.flatten(nn.unbox(made["params"]))


def _read(model: Decoder, tokens: jax.Array) -> jax.Array:
    hidden, _ = model(model.embed(tokens), jnp.ones_like(tokens), jnp.zeros_like(tokens))
    return model.logits(hidden)


def recognise(opened: Opened, part: Part | None = None, variant: str | None = None) -> Architecture:
    """Finds out what a source is.

    Args:
        opened: the source.
        part: the one to take of a source with two; None where there is one only.
        variant: name of a published size, for sources that do not say their shapes themselves.

    Returns:
        The architecture of the part.

    Raises:
        UserError: the model is not one that we have, or has a setting that we do not; or `part` is needed to choose,
            or is not in the source.
    """
    if opened.kind not in _KINDS:
        raise ValueError(f"no kind of source {opened.kind!r}")
    if part is not None and part not in get_args(Part):
        raise UserError(f"--part {part!r} is unknown. Known: {', '.join(get_args(Part))}.")
    module = importlib.import_module(f"vadapter.weights.{opened.kind}")
    found: list[Architecture] = module.architectures(opened, variant)
    where = opened.tensors.where
    have = " and ".join(f"{a.part} ({a.family})" for a in found)
    if part is None and len(found) > 1:
        raise UserError(f"{where} has two models: {have}. Say which one to take: --part vision or --part decoder.")
    chosen = [a for a in found if part in (None, a.part)]
    if not chosen:
        raise UserError(f"{where} has no {part or 'model'} that can be imported; it has {have or 'none'}.")
    return chosen[0]
