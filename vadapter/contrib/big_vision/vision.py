"""Vision encoder and adapter as the image model of `big_vision.models.proj.paligemma.paligemma`.

So PaliGemma's trainer puts any adapter of vadapter between a ViT and its language model:

    model = dict(img_model="vadapter_vision", img=dict(encoder=..., adapter=...), llm=...)
"""

from typing import Any

from flax import linen as nn

from vadapter.base import json_text
from vadapter.base.array_types import Array, Float
from vadapter.base.errors import UserError
from vadapter.contrib.big_vision.pixels import from_unit
from vadapter.models.serialization import from_json


def Model(  # noqa: N802  big_vision's name
    num_classes: int, *, encoder: str, adapter: str, name: str | None = None
) -> nn.Module:
    """Returns the model.

    Args:
        num_classes: D, the width of the language model, which the trainer gives.
        encoder: configuration of the encoder, as `models.serialization.to_json` writes it, as JSON.
        adapter: of the adapter, likewise.
        name: of the module, which the model around it gives.

    Raises:
        UserError: a text is no such configuration.
    """
    return Vision(_config(encoder, "encoder"), _config(adapter, "adapter"), num_classes, name=name)


def _config(text: str, what: str) -> Any:
    try:
        return from_json(json_text.loads(text), f"model.img.{what}")
    except ValueError as error:
        raise UserError(
            f"model.img.{what} is no JSON ({error}). Write it with models.serialization.to_json."
        ) from error


class Vision(nn.Module):
    """Images to soft tokens.

    Attributes:
        encoder_config: of the encoder.
        adapter_config: of the adapter.
        width: D of the soft tokens.
    """

    encoder_config: Any
    adapter_config: Any
    width: int

    def setup(self):
        self.encoder = self.encoder_config.make()
        self.adapter = self.adapter_config.make(self.width)

    def __call__(self, image: Array, *, train: bool = False) -> tuple[Float[Array, "B R D"], dict[str, Array]]:
        """Returns soft tokens, and those of the encoder by name.

        Args:
            image: `[B, h, w, 3]`: bytes, or floats in -1..1.
            train: not read: nothing is dropped out.
        """
        del train
        with nn.logical_axis_rules(()):  # big_vision's rules do not know our axes
            encoded = self.encoder(from_unit(image))
            soft = self.adapter(encoded[:, None])
        return soft, {"encoded": encoded, "pre_logits": soft}


def load(init_params: Any, init_file: Any, model_cfg: Any, dont_load: Any = ()) -> Any:
    """Returns parameters, as `vlm.load` does, of encoder and adapter."""
    from vadapter.contrib.big_vision import vlm

    return vlm.load(init_params, init_file, model_cfg, dont_load)
