"""Finds out which family a checkpoint is of."""

from collections.abc import Mapping
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vadapter.base import trees
from vadapter.base.errors import UserError
from vadapter.models.decoder import Decoder
from vadapter.models.vit import ViT, ViTConfig
from vadapter.weights import published_sizes
from vadapter.weights.checkpoint import HUGGING_FACE, Checkpoint
from vadapter.weights.family import Architecture, Config, Family, ModelPart, ModelType, Place, families, refusals
from vadapter.weights.settings import Settings
from vadapter.weights.tensors import TensorInfo


def recognise(checkpoint: Checkpoint, part: ModelPart | None = None, variant: str | None = None) -> Architecture:
    """Finds out what a checkpoint is.

    Args:
        checkpoint: the checkpoint.
        part: the one to take of a checkpoint with two; None where there is one only.
        variant: name of a published size, for checkpoints that do not say their settings themselves. It also says
            which part is meant.

    Returns:
        The architecture of the part.

    Raises:
        UserError: the model is of no family that is known, or has a setting that we do not have; or `part` is needed to
            choose, or is not in the checkpoint.
    """
    if part is not None and part not in get_args(ModelPart):
        raise UserError(f"The part {part!r} is unknown; expected {' or '.join(get_args(ModelPart))}.")
    _check_variant(checkpoint, part, variant)
    where = checkpoint.tensors.where
    for refusal in refusals():
        if checkpoint.kind in refusal.by.kinds and any(refusal.by.places(checkpoint, None)):
            raise UserError(f"{where} cannot be imported: {refusal.why}.")
    found = _find(checkpoint, part or published_sizes.part_of(variant), variant)
    if not found:
        raise _nothing(checkpoint, part or published_sizes.part_of(variant))
    if len(found) > 1:
        raise _several(where, [family for family, _ in found])
    family, place = found[0]
    return family.read(place)


def part_of(settings: Mapping[str, Any], where: str, part: ModelPart | None = None) -> ModelPart | None:
    """Finds out by its config.json alone which part of a model can be imported, before its weights are fetched.

    Args:
        settings: parsed config.json.
        where: the model, for messages.
        part: the one to take of a model with two; None where there is one only.

    Returns:
        The part, or None where the names of the tensors have to tell.

    Raises:
        UserError: as `recognise`, as far as config.json tells.
    """
    checkpoint, known = Checkpoint(HUGGING_FACE, _NoTensors(where), settings, None, {}), Settings(settings, where)
    for refusal in refusals():
        if isinstance(refusal.by, ModelType) and refusal.by.claims(known):
            raise UserError(f"{where} cannot be imported: {refusal.why}.")
    possible = [family for family in families() if HUGGING_FACE in family.by.kinds]
    found = [family for family in possible if isinstance(family.by, ModelType) and family.by.claims(known)]
    if not found:
        if not all(isinstance(family.by, ModelType) for family in possible):
            return None
        raise _nothing(checkpoint, None)
    if not (chosen := [family for family in found if part in (None, family.part)]):
        raise _lacks(where, part, found)
    if len(chosen) > 1:
        raise _several(where, chosen)
    return chosen[0].part


class _NoTensors:
    """A checkpoint of which the weights are not there yet."""

    def __init__(self, where: str):
        self.where = where
        self.infos: dict[str, TensorInfo] = {}

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        raise NotImplementedError


def parameter_shapes(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns `{slash path: shape and dtype}` of a model's parameters; nothing is allocated.

    A decoder has its embedding table, and its head where that is a table of its own.
    """
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


def _check_variant(checkpoint: Checkpoint, part: ModelPart | None, variant: str | None) -> None:
    if variant is None:
        return
    if checkpoint.config is not None:
        where = checkpoint.tensors.where
        raise UserError(f"{where} says the model's shape itself; leave out variant {variant!r}.")
    if part is not None and (other := published_sizes.part_of(variant)) != part:
        raise UserError(f"The variant {variant!r} is one of a {other}, and part is {part!r}. Leave out one of the two.")


def _find(checkpoint: Checkpoint, part: str | None, variant: str | None) -> list[tuple[Family, Place]]:
    known = (f for f in families() if checkpoint.kind in f.by.kinds and part in (None, f.part))
    return [(family, place) for family in known for place in family.by.places(checkpoint, variant)]


def _several(where: str, found: list[Family]) -> UserError:
    parts = sorted((family.part for family in found), key=get_args(ModelPart).index)
    have = " and ".join(
        f"{part} ({family.name})" for part in dict.fromkeys(parts) for family in found if family.part == part
    )
    if len(set(parts)) == len(parts):
        return UserError(f"{where} has two models: {have}. Choose with part: encoder or decoder.")
    return UserError(
        f"{where} is recognised more than once: {have}. Narrow one of the families with `TensorNames.only`, or give a "
        "file with one model."
    )


def _lacks(where: str, part: str | None, found: list[Family]) -> UserError:
    have = " and ".join(f"{family.part} ({family.name})" for family in found)
    return UserError(f"{where} has no {part} that can be imported; it has {have}.")


def _nothing(checkpoint: Checkpoint, part: str | None) -> UserError:
    """The error where no family recognises a checkpoint."""
    where, kind, config = checkpoint.tensors.where, checkpoint.kind, checkpoint.config
    if others := _find(checkpoint, None, None) if part else []:
        return _lacks(where, part, [family for family, _ in others])
    known = [family.by for family in families() if kind in family.by.kinds]
    if kind != HUGGING_FACE:
        expected = dict.fromkeys(by.description for by in known if not isinstance(by, ModelType))
        return UserError(f"{where} has no model that can be imported. Expected one of these: {'; '.join(expected)}.")
    if config is None:
        return UserError(
            f"{where} has tensors of Hugging Face's kind and no config.json, which says what they are. "
            "Put the config.json of the model beside them."
        )
    types = sorted({name for by in known if isinstance(by, ModelType) for name in (*by.names, *by.within)})
    return UserError(
        f"{where} has the model_type {config.get('model_type')!r} ({config.get('architectures') or 'no architectures'}"
        f"), which is not one that can be imported. These are: {', '.join(types)}. A module of your own can add it: "
        "see vadapter.weights.family.Family."
    )
