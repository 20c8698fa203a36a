"""A ViT that names attributes of its image: how the demo's vision encoder is pretrained."""

import dataclasses
import itertools

import jax.numpy as jnp
from flax import linen as nn

from vadapter.base.array_types import Array, Float
from vadapter.base.batch import LabelledImages
from vadapter.base.errors import UserError
from vadapter.models.layers import dense
from vadapter.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """An encoder and its label groups.

    Attributes:
        encoder: the vision encoder, a ViT.
        num_classes: classes in each label group of a cell.
        cells: the image is divided into cells x cells, and each has the label groups. 1 labels the whole image.
    """

    encoder: ViTConfig
    num_classes: tuple[int, ...]
    cells: int = 1

    def __post_init__(self):
        if self.cells < 1 or self.encoder.grid % self.cells:
            raise UserError(
                f"ClassifierConfig: the encoder's {self.encoder.grid} patches a side do not divide into {self.cells} "
                "cells. Change cells, or the encoder's image_size or patch_size."
            )


class Classifier(nn.Module):
    """Linear heads, the same for every cell, on the cell's mean patch token.

    The mean, not a class token or attention pooling: it asks every patch token for the semantics, which adapters
    read later.
    """

    config: ClassifierConfig

    def setup(self):
        self.encoder = ViT(self.config.encoder)
        self.head = dense(sum(self.config.num_classes), ("embed", "classes"), bias=True)

    def __call__(self, batch: LabelledImages) -> tuple[Float[Array, "B classes"], ...]:
        """Returns f32 logits of each of the G label groups: those of the first cell, of the second, row by row."""
        c = self.config
        x = self.encoder(batch.media).astype(jnp.float32)
        side = c.encoder.grid // c.cells
        x = x.reshape(x.shape[0], c.cells, side, c.cells, side, x.shape[-1]).mean(axis=(2, 4))
        logits = self.head(x.reshape(x.shape[0], c.cells**2, x.shape[-1]))
        ends = list(itertools.accumulate(c.num_classes))[:-1]
        return tuple(part for i in range(c.cells**2) for part in jnp.split(logits[:, i], ends, axis=-1))
