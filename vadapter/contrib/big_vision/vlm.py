"""A whole VLM as a model of big_vision, for the trainer of PaliGemma."""

from collections.abc import Sequence
from typing import Any

import flax
import jax.numpy as jnp
from flax import linen as nn

from vadapter.base import json_text, trees
from vadapter.base.array_types import Array, Float, Int, PyTree
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.contrib.big_vision import weights
from vadapter.contrib.big_vision.pixels import from_unit
from vadapter.models.serialization import from_json
from vadapter.models.vlm import VLM, VLMConfig

VISUAL = -1  # in `text`, the slot of a visual token
_LAYOUTS = ("slots", "prefix")


def Model(*, config: str, layout: str = "slots") -> nn.Module:  # noqa: N802  big_vision's name
    """Returns the model.

    Args:
        config: a `VLMConfig` as `models.serialization.to_json` writes it, as JSON.
        layout: where the visual tokens are: `slots`, where `text` is `VISUAL`, as `bv:vadapter` lays rows out; or
            `prefix`, before the text, as PaliGemma has them.

    Raises:
        UserError: it is no such text, or the layout is not known.
    """
    try:
        found = from_json(json_text.loads(config), "model.config")
    except ValueError as error:
        raise UserError(f"model.config is no JSON ({error}). Write it with models.serialization.to_json.") from error
    if not isinstance(found, VLMConfig) or found.encoder is None:
        raise UserError("model.config is no VLMConfig with an encoder. Use that of a VLM's model.json.")
    if layout not in _LAYOUTS:
        raise UserError(f"model.layout is {layout!r}; expected {' or '.join(_LAYOUTS)}.")
    return BigVisionVLM(found, layout)


class BigVisionVLM(VLM):
    """vadapter's VLM with the call of `big_vision.models.proj.paligemma.paligemma`."""

    layout: str = "slots"

    def __call__(
        self, image: Array, text: Int[Array, "B T"], mask_ar: Any = None, train: bool = False
    ) -> tuple[Float[Array, "B T V"], dict[str, Array]]:
        """Returns logits of what follows each slot of the text, and more by name.

        Args:
            image: `[B, h, w, 3]`, `[B, F, h, w, 3]` or `[B, M, F, h, w, 3]`: bytes, or floats in -1..1.
            text: ids; slots of visual tokens are `VISUAL` in the layout `slots`.
            mask_ar: not read: the decoder is causal throughout. Where it is 0, as in PaliGemma's prefixes, slots still
                see earlier ones only.
            train: not read: nothing is dropped out.
        """
        del mask_ar, train
        with nn.logical_axis_rules(()):  # big_vision's rules do not know our axes
            batch = self._rows(image, text)
            hidden, _ = self.decoder(self.embed(batch), batch.segment_ids, batch.positions)
            logits = self.decoder.logits(hidden[:, -text.shape[1] :])
        return logits, {"text_logits": logits, "text_tokens": jnp.argmax(logits, axis=-1)}

    def embed_image(self, image: Array, train: bool = False) -> tuple[Float[Array, "B R D"], dict[str, Array]]:
        """Returns the soft tokens, for evaluators that look at images alone."""
        del train
        with nn.logical_axis_rules(()):
            soft = self.soft_tokens(_media(image))
        return soft, {"img/pre_logits": soft, "img/zimg": soft}

    def _rows(self, image: Array, text: Int[Array, "B T"]) -> Batch:
        media = _media(image)
        if self.layout == "prefix":
            count = media.shape[1] * self.config.num_visual_tokens(media.shape[2])
            text = jnp.concatenate([jnp.full((text.shape[0], count), VISUAL, text.dtype), text], axis=1)
        visual = text == VISUAL
        slots = jnp.broadcast_to(jnp.arange(text.shape[1]), text.shape)
        return Batch(
            tokens=jnp.where(visual, 0, text),
            segment_ids=jnp.ones_like(text),  # padding comes last, where no slot of the text sees it
            positions=slots,
            media_index=jnp.where(visual, jnp.cumsum(visual, axis=1) - 1, -1),
            media=media,
            target_positions=slots,
            target_ids=jnp.zeros_like(text),
            target_weights=jnp.zeros(text.shape, jnp.float32),
        )


def _media(image: Array) -> Array:
    image = from_unit(image)
    missing = 6 - image.ndim
    return image.reshape(image.shape[0], *(1,) * missing, *image.shape[1:])


def load(init_params: PyTree, init_file: Any, model_cfg: Any, dont_load: Sequence[str] = ()) -> PyTree:
    """Returns parameters for `Model`, each from where it is said; what is said of none stays as `init_params` has it.

    Args:
        init_params: parameters, or their shapes.
        init_file: a run or a bundle of vadapter; an .npz file of a whole VLM, or a checkpoint of big_vision; a mapping
            from parts (`encoder`, `adapter`, `decoder`) to such, where the encoder's may be any ViT that big_vision
            loads; or {"experiment": text}, all as the experiment starts.
        model_cfg: not read.
        dont_load: regexes of paths that keep their value of `init_params`.

    Raises:
        UserError: parameters have other shapes, or as `vadapter.load`.
    """
    del model_cfg
    shapes = trees.flatten(flax.core.unfreeze(init_params))
    found = weights.find(init_file if isinstance(init_file, str) else dict(init_file), shapes)
    kept = set(trees.match(list(dont_load), shapes, "dont_load pattern"))
    return trees.unflatten({p: found[p] if p in found and p not in kept else x for p, x in shapes.items()})
