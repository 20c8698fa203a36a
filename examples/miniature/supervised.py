"""Stage 2 in which the tiny LM goes on to learn captions: its own loss of stage 1 is added to the decoder's.

The paper says of resamplers that they lack direct supervision. Here the adapter keeps it: beside what the large decoder
makes of the soft tokens, the tiny LM itself reads the row, with the front's tokens in the place of the medium, and
predicts the targets. It needs the tiny LM's table (`num_words` of one or more), and a tokeniser that both language
models share, as in the miniature.

    vadapter train --module=examples.miniature.supervised --gin_file=examples/miniature/gin/supervised.gin ...
"""

import dataclasses

import jax.numpy as jnp

from vadapter.base.array_types import Array, Float
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.models.adapters import LMAdapterConfig
from vadapter.models.configuration import configuration
from vadapter.models.losses import LossSums, ObjectiveConfig, cross_entropy
from vadapter.models.vlm import VLM, VLMConfig


@configuration("model")
@dataclasses.dataclass(frozen=True)
class SupervisedVLMConfig(VLMConfig):
    """A `VLMConfig` whose adapter keeps the loss of stage 1.

    Attributes:
        supervision: factor of the tiny LM's loss.
    """

    supervision: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not (isinstance(self.adapter, LMAdapterConfig) and self.adapter.num_words):
            raise UserError("SupervisedVLMConfig: expected an LMAdapterConfig with num_words of one or more.")
        if self.adapter.lm.vocab_size != self.decoder.vocab_size:
            raise UserError("SupervisedVLMConfig: the two language models need the same vocabulary.")

    def make(self) -> "SupervisedVLM":
        """See `configuration.ModelConfig`."""
        return SupervisedVLM(self)


class SupervisedVLM(VLM):
    """What is minimised has the tiny LM's loss in it; what is reported as loss is that of the decoder alone."""

    def loss_sums(self, batch: Batch, settings: ObjectiveConfig | None = None) -> LossSums:
        """Returns the decoder's loss; the tiny LM's is added to the sum that is minimised and not shown (`z_sum`)."""
        sums = super().loss_sums(batch, settings)
        config = self.config
        assert isinstance(config, SupervisedVLMConfig)
        own = self._own_loss(batch)
        return dataclasses.replace(sums, z_sum=sums.z_sum + config.supervision * own.loss_sum)

    def _own_loss(self, batch: Batch) -> LossSums:
        """The tiny LM's loss of the targets, with one medium a row: the front's P tokens stand where R slots were."""
        adapter = self.adapter
        front: Float[Array, "B P D"] = adapter.front(self.encode(batch.media))
        slots = batch.media_index >= 0
        many, count = front.shape[1], self.config.num_visual_tokens(batch.media.shape[2])
        length = batch.tokens.shape[1]
        first = jnp.where(slots.any(axis=1), jnp.argmax(slots, axis=1), length)[:, None]
        at = jnp.arange(length - count + many)[None]
        seen = (at >= first) & (at < first + many)
        source = jnp.clip(jnp.where(at < first, at, at - many + count), 0, length - 1)
        text = adapter.lm.embed(jnp.take_along_axis(batch.tokens, source, axis=1))
        medium = jnp.take_along_axis(front, jnp.clip(at - first, 0, many - 1)[..., None], axis=1)
        x = jnp.where(seen[..., None], medium.astype(text.dtype), text)
        segments = jnp.where(seen, 1, jnp.take_along_axis(batch.segment_ids, source, axis=1))
        hidden, _ = adapter.lm(x, segments, jnp.broadcast_to(at, segments.shape))
        moved = batch.target_positions + jnp.where(batch.target_positions >= first, many - count, 0)
        hidden = jnp.take_along_axis(hidden, moved[..., None], axis=1)
        table = adapter.lm.head_table()
        return cross_entropy(hidden, table, batch.target_ids, batch.target_weights)
