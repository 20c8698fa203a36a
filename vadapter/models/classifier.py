"""A ViT that names attributes of its image: how the demo's vision encoder is pretrained."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from vadapter.array_types import Array, Float
from vadapter.batch import LabelledImages
from vadapter.models.layers import dense
from vadapter.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """An encoder and its label groups.

    Attributes:
        encoder: the ViT.
        num_classes: classes in each of the G label groups.
    """

    encoder: ViTConfig
    num_classes: tuple[int, ...]


class Classifier(nn.Module):
    """Linear heads on the mean patch token.

    The mean, not a class token or attention pooling: it asks every patch token for the semantics, which adapters
    read later.
    """

    config: ClassifierConfig

    def setup(self):
        self.encoder = ViT(self.config.encoder)
        self.head = dense(sum(self.config.num_classes), ("embed", "classes"), bias=True)

    def __call__(self, batch: LabelledImages) -> tuple[Float[Array, "B classes"], ...]:
        """Returns f32 logits of each label group."""
        x = self.encoder(batch.media).astype(jnp.float32).mean(axis=1)
        logits, ends = self.head(x), []
        for size in self.config.num_classes[:-1]:
            ends.append(size + (ends[-1] if ends else 0))
        return tuple(jnp.split(logits, ends, axis=-1))
