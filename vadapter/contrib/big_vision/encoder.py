"""big_vision's own ViT as vadapter's vision encoder: for those who change theirs.

    vadapter train --module=vadapter.contrib.big_vision.encoder --gin.ENCODER='@BigVisionEncoderConfig()' \
        --gin.BigVisionEncoderConfig.variant='"So400m/14"' --gin.BigVisionEncoderConfig.image_size=224 ...

Its parameters have the names of `ViTConfig`, so imported weights (`vadapter import`) are a source for both.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from big_vision.models import vit
from flax import linen as nn

from vadapter.base.array_types import Array, Float, UInt8
from vadapter.base.errors import UserError
from vadapter.models.configuration import encoder
from vadapter.models.flops import FlopCounter


@encoder
@dataclasses.dataclass(frozen=True)
class BigVisionEncoderConfig:
    """A ViT of `big_vision.models.vit`, without pooling and head.

    Attributes:
        image_size: pixels of each side of the square input.
        variant: a size and a patch size of big_vision, such as `So400m/14`.
        posemb: `learn`, a table; or `sincos2d`, computed.
        dtype: of the computation.
        remat_policy: name in `jax.checkpoint_policies` of what the backward pass keeps.
    """

    stack: ClassVar[str] = "Transformer/encoderblock"

    image_size: int
    variant: str
    posemb: str = "learn"
    dtype: str = "float32"
    remat_policy: str = "nothing_saveable"

    def __post_init__(self):
        try:
            patch = self._sizes["patch_size"][0]
        except (KeyError, ValueError) as error:
            raise UserError(
                f"BigVisionEncoderConfig: variant {self.variant!r} is not known to big_vision ({error}). Give a size "
                "and a patch size, such as 'B/16'."
            ) from error
        if self.image_size % patch:
            raise UserError(
                f"BigVisionEncoderConfig: image_size {self.image_size} is no multiple of the patches' {patch} pixels. "
                "Change one."
            )
        if self.posemb not in ("learn", "sincos2d"):
            raise UserError(f"BigVisionEncoderConfig: posemb is {self.posemb!r}; expected 'learn' or 'sincos2d'.")

    @property
    def _sizes(self) -> dict[str, Any]:
        return vit.decode_variant(self.variant)

    @property
    def width(self) -> int:
        """E, the width of a token."""
        return self._sizes["width"]

    @property
    def num_patches(self) -> int:
        """P, the tokens of a frame."""
        return (self.image_size // self._sizes["patch_size"][0]) ** 2

    def make(self, name: str | None = None) -> nn.Module:
        """See `configuration.EncoderConfig`."""
        settings = {"posemb": self.posemb, "dtype_mm": self.dtype, "remat_policy": self.remat_policy}
        return BigVisionEncoder(**self._sizes, **settings, pool_type="none", scan=True, name=name)

    def flops(self, counter: FlopCounter, frames: float) -> dict[str, float]:
        """See `configuration.EncoderConfig`."""
        tokens = frames * self.num_patches
        attention = counter.attention(tokens, self.num_patches, self.width, self._sizes["depth"])
        return {counter.name: counter.kernels(lambda path: tokens) + attention}


class BigVisionEncoder(vit._Model):
    """big_vision's ViT on bytes, as vadapter calls an encoder."""

    @nn.compact
    def __call__(self, frames: UInt8[Array, "B h w C"]) -> Float[Array, "B P D"]:
        """Returns the patch tokens."""
        _, out = super().__call__(frames.astype(jnp.float32) / 127.5 - 1.0)
        return out["encoded"]
