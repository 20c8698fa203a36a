"""A ViT that names attributes of its image: how the demo's vision encoder is pretrained."""

import dataclasses
import itertools
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vadapter.base.array_types import Array, Float
from vadapter.base.batch import LabelledImages
from vadapter.base.errors import UserError
from vadapter.base.trees import Tree
from vadapter.models import flops
from vadapter.models.configuration import EncoderConfig, configuration, picture_sizes
from vadapter.models.layers import dense
from vadapter.models.losses import LossSums, ObjectiveConfig, label_cross_entropy


@configuration("model")
@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """An encoder and its label groups.

    Attributes:
        encoder: the vision encoder. Its patches form a square.
        num_classes: classes in each label group of a cell.
        cells: the image is divided into cells x cells, and each has the label groups. 1 labels the whole image.
    """

    encoder: EncoderConfig
    num_classes: tuple[int, ...]
    cells: int = 1

    def __post_init__(self):
        if self.grid**2 != self.encoder.num_patches:
            raise UserError(
                f"ClassifierConfig: expected an encoder whose patches form a square, found {self.encoder.num_patches}."
            )
        if self.cells < 1 or self.grid % self.cells:
            raise UserError(
                f"ClassifierConfig: the encoder's {self.grid} patches a side do not divide into {self.cells} "
                "cells. Change cells, or the encoder's image_size or patch_size."
            )

    @property
    def grid(self) -> int:
        """Patches along each side."""
        return math.isqrt(self.encoder.num_patches)

    @property
    def parts(self) -> tuple[str, ...]:
        """See `configuration.ModelConfig`."""
        return ("encoder", "head")

    @property
    def num_frames(self) -> int:
        """1: images are still."""
        return 1

    @property
    def vocab_size(self) -> None:
        """None: there is no text."""
        return None

    def make(self) -> "Classifier":
        """See `configuration.ModelConfig`."""
        return Classifier(self)

    def data_sizes(self) -> dict[str, Any]:
        """See `configuration.ModelConfig`."""
        return picture_sizes(self.encoder)

    def example_batch(self, rows: int = 1, lengths: Mapping[str, int] | None = None, frames: int = 1) -> LabelledImages:
        """See `configuration.ModelConfig`; there is no text, and frames are not asked for."""
        size = self.encoder.image_size
        return LabelledImages(
            media=jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8),  # pyright: ignore
            labels=jax.ShapeDtypeStruct((rows, self.cells**2 * len(self.num_classes)), np.int32),  # pyright: ignore
            weights=jax.ShapeDtypeStruct((rows,), np.float32),  # pyright: ignore
        )

    def flops(self, abstract: Tree, trainable: Collection[str]) -> flops.FlopsOf:
        """See `configuration.ModelConfig`."""
        counters = flops.counters(self.parts, abstract, trainable)

        def count(batch: LabelledImages) -> dict[str, float]:
            images, head = float(batch.counts().examples), counters["head"]
            found = self.encoder.flops(counters["encoder"], images)
            return {**found, "head": head.kernels(images, flows=head.before)}

        return count


class Classifier(nn.Module):
    """Linear heads, the same for every cell, on the cell's mean patch token.

    The mean, not a class token or attention pooling: it asks every patch token for the semantics, which adapters
    read later.
    """

    config: ClassifierConfig

    def setup(self):
        self.encoder = self.config.encoder.make()
        self.head = dense(sum(self.config.num_classes), ("embed", "classes"), bias=True)

    def __call__(self, batch: LabelledImages) -> tuple[Float[Array, "B classes"], ...]:
        """Returns f32 logits of each of the G label groups: those of the first cell, of the second, row by row."""
        c = self.config
        x = self.encoder(batch.media).astype(jnp.float32)
        side = c.grid // c.cells
        x = x.reshape(x.shape[0], c.cells, side, c.cells, side, x.shape[-1]).mean(axis=(2, 4))
        logits = self.head(x.reshape(x.shape[0], c.cells**2, x.shape[-1]))
        ends = list(itertools.accumulate(c.num_classes))[:-1]
        return tuple(part for i in range(c.cells**2) for part in jnp.split(logits[:, i], ends, axis=-1))

    def loss_sums(self, batch: LabelledImages, settings: ObjectiveConfig | None = None) -> LossSums:
        """Returns the cross-entropy of the labels, in nats. There is nothing to set."""
        return label_cross_entropy(self(batch), batch.labels, batch.weights)
