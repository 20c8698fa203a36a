"""Parts of models as a user writes them, in a module outside of the package: an adapter and a vision encoder."""

import dataclasses
import math

import jax.numpy as jnp
from flax import linen as nn

from vadapter.models.configuration import adapter, encoder
from vadapter.models.layers import dense, named


@adapter
@dataclasses.dataclass(frozen=True)
class AveragePoolConfig:
    """Means of `factor` x `factor` neighbouring patches, each mapped to the decoder's width.

    Attributes:
        factor: patches a side that become one token.
        placed: every token has a learned offset, which starts as what the map makes of a grey image.
    """

    factor: int = 2
    placed: bool = False

    def make(self, output_dim, name=None):
        return AveragePool(self, output_dim, name=name)

    def num_tokens(self, frames, patches):
        return frames * patches // self.factor**2

    def flops(self, counter, media, frames, patches):
        return {counter.name: counter.kernels(media * self.num_tokens(frames, patches))}

    def starts(self):
        return {"offset": AveragePool.mapped} if self.placed else {}


class AveragePool(nn.Module):
    config: AveragePoolConfig
    output_dim: int

    def setup(self):
        self.projection = dense(self.output_dim, ("embed", "mlp"), bias=True)
        if self.config.placed:
            self.offset = self.param("offset", named(nn.initializers.zeros, None, None, "embed"), (1, 1, 32))

    def mapped(self, visual):
        batch, frames, patches, width = visual.shape
        side, factor = math.isqrt(patches), self.config.factor
        x = visual.reshape(batch * frames, side // factor, factor, side // factor, factor, width).mean((2, 4))
        return self.projection(x.reshape(batch, -1, width))

    def __call__(self, visual):
        soft = self.mapped(visual)
        return soft + self.offset if self.config.placed else soft


@encoder
@dataclasses.dataclass(frozen=True)
class LinearPatchesConfig:
    """A linear map of the pixels of each patch, and a learned position."""

    image_size: int = 16
    patch_size: int = 8
    width: int = 24

    @property
    def num_patches(self):
        return (self.image_size // self.patch_size) ** 2

    def make(self, name=None):
        return LinearPatches(self, name=name)

    def flops(self, counter, frames):
        return {counter.name: counter.kernels(frames * self.num_patches)}


class LinearPatches(nn.Module):
    config: LinearPatchesConfig

    @nn.compact
    def __call__(self, frames):
        c = self.config
        side = c.image_size // c.patch_size
        x = frames.astype(jnp.float32) / 255 - 0.5
        x = x.reshape(-1, side, c.patch_size, side, c.patch_size, 3).swapaxes(2, 3)
        x = dense(c.width, (None, "embed"), name="patches")(x.reshape(-1, c.num_patches, 3 * c.patch_size**2))
        return x + self.param("positions", named(nn.initializers.normal(0.1), None, "embed"), (c.num_patches, c.width))
