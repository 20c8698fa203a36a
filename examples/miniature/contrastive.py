"""An encoder that learns from which caption belongs to which picture, as CLIP does, and from nothing else.

The vector of a picture is the mean of its tokens behind the adapter; that of a caption is the mean of the tiny LM's
hidden states, which reads the caption and not the picture. Each picture of a batch is to find its caption among all of
them, and each caption its picture (Radford et al., arXiv 2103.00020).

    vadapter train --module=examples.miniature.contrastive --gin_file=examples/miniature/gin/contrastive.gin ...
"""

import dataclasses

import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, Float
from vadapter.base.batch import Batch
from vadapter.models.configuration import configuration
from vadapter.models.losses import LossSums, ObjectiveConfig
from vadapter.models.vlm import VLM, VLMConfig


@configuration("model")
@dataclasses.dataclass(frozen=True)
class ContrastiveConfig(VLMConfig):
    """A `VLMConfig` that is trained by contrast of the pictures and captions of a batch.

    Attributes:
        temperature: what cosines are divided by; CLIP starts from this value and learns it.
    """

    temperature: float = 0.07

    def make(self) -> "Contrastive":
        """See `configuration.ModelConfig`."""
        return Contrastive(self)


class Contrastive(VLM):
    """One medium a row. Rows without a weight take no part."""

    def loss_sums(self, batch: Batch, settings: ObjectiveConfig | None = None) -> LossSums:
        """Returns the mean of both directions' cross-entropies, as sums over rows; `correct_sum` is of pictures."""
        config = self.config
        assert isinstance(config, ContrastiveConfig)
        rows = batch.target_weights.sum(axis=1) > 0
        cosines = _unit(self._pictures(batch)) @ _unit(self._captions(batch)).T
        logits = jnp.where(rows[:, None] & rows[None], cosines / config.temperature, -1e9)
        found = -(jnp.diagonal(jax.nn.log_softmax(logits, axis=1)) + jnp.diagonal(jax.nn.log_softmax(logits, axis=0)))
        correct = jnp.argmax(logits, axis=1) == jnp.arange(len(rows))

        def total(x: Array) -> Float[Array, ""]:
            return jnp.where(rows, x, 0).astype(jnp.float32).sum()

        return LossSums(total(found / 2), total(rows), total(correct), jnp.zeros(()))

    def _pictures(self, batch: Batch) -> Float[Array, "B D"]:
        return self.soft_tokens(batch.media).mean(axis=1)

    def _captions(self, batch: Batch) -> Float[Array, "B D"]:
        seen = batch.target_weights > 0
        positions = jnp.broadcast_to(jnp.arange(seen.shape[1]), seen.shape)
        hidden, _ = self.decoder(self.decoder.embed(batch.target_ids), seen.astype(jnp.int32), positions)
        many = jnp.maximum(seen.sum(axis=1, keepdims=True), 1)
        return jnp.where(seen[..., None], hidden, 0).sum(axis=1) / many


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-6)
