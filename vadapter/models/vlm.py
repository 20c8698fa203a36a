"""The composition: vision encoder, adapter, decoder."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from vadapter.base.array_types import Array, Float, Int, UInt8
from vadapter.base.batch import Batch
from vadapter.base.errors import UserError
from vadapter.models import adapters, decoder
from vadapter.models.kv_cache import KVCache
from vadapter.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class VLMConfig:
    """Any encoder, adapter and decoder; a decoder alone is a language model.

    Attributes:
        decoder: the language model.
        encoder: the vision encoder; None for a language model.
        adapter: what stands between them; None for a language model.
        num_frames: frames of a video.
        repeat_stills: a still image's tokens stand `num_frames` times before the adapter, as the paper duplicates
            images. The encoder runs once either way. Off, the adapter sees the one frame.
    """

    decoder: decoder.DecoderConfig
    encoder: ViTConfig | None = None
    adapter: adapters.AdapterConfig | None = None
    num_frames: int = 1
    repeat_stills: bool = True

    def __post_init__(self):
        if (self.encoder is None) != (self.adapter is None):
            raise UserError("VLMConfig: encoder and adapter come together; set both, or neither for a language model.")

    def num_visual_tokens(self, frames: int) -> int:
        """Returns R for media that are stored with `frames` frames (1 for a still image)."""
        if self.encoder is None or self.adapter is None:
            return 0
        seen = self.num_frames if self.repeat_stills and frames == 1 else frames
        return adapters.num_tokens(self.adapter, seen, self.encoder.num_patches)


class VLM(nn.Module):
    """Frozen or not is not the model's business: it computes, and `vadapter.training` chooses what is trained."""

    config: VLMConfig

    def setup(self):
        c = self.config
        self.decoder = decoder.Decoder(c.decoder)
        if c.encoder is not None and c.adapter is not None:
            self.encoder = ViT(c.encoder)
            self.adapter = adapters.make_adapter(c.adapter, c.decoder.width)

    def encode(self, media: UInt8[Array, "B M F h w C"]) -> Float[Array, "BM F P E"]:
        """Returns the encoder's patch tokens, rows and media joined; a still image's are repeated over the frames."""
        batch, count, frames = media.shape[:3]
        tokens = self.encoder(media.reshape(-1, *media.shape[3:]))
        tokens = tokens.reshape(batch * count, frames, *tokens.shape[1:])
        if frames == 1 and self.config.repeat_stills:
            tokens = jnp.repeat(tokens, self.config.num_frames, axis=1)
        return tokens

    def soft_tokens(self, media: UInt8[Array, "B M F h w C"]) -> Float[Array, "B MR D"]:
        """Returns what the decoder reads in place of text embeddings."""
        soft = self.adapter(self.encode(media))
        return soft.reshape(media.shape[0], -1, soft.shape[-1])

    def embed(self, batch: Batch) -> Float[Array, "B T D"]:
        """Returns text embeddings with the soft tokens in their slots."""
        x = self.decoder.embed(batch.tokens)
        if batch.media.shape[1] == 0:
            return x
        soft = self.soft_tokens(batch.media).astype(x.dtype)
        filled = jnp.take_along_axis(soft, jnp.maximum(batch.media_index, 0)[..., None], axis=1)
        return jnp.where((batch.media_index >= 0)[..., None], filled, x)

    def __call__(self, batch: Batch) -> Float[Array, "B L D"]:
        """Returns the hidden states that predict the targets, after the final norm."""
        hidden, _ = self.decoder(self.embed(batch), batch.segment_ids, batch.positions)
        hidden = jnp.take_along_axis(hidden, batch.target_positions[..., None], axis=1)
        if self.is_initializing():
            self.decoder.logits(hidden)  # makes the parameters of an untied head
        return hidden

    def prefill(self, batch: Batch, max_new_tokens: int) -> tuple[Float[Array, "B V"], KVCache]:
        """Reads the prompts.

        Args:
            batch: rows that end with their prompt.
            max_new_tokens: slots that the cache has after the prompts.

        Returns:
            Logits of each row's first new token, and the cache.
        """
        rows, length = batch.tokens.shape
        cache = self.decoder.empty_cache(rows, length + max_new_tokens)
        hidden, read = self.decoder(self.embed(batch), batch.segment_ids, batch.positions, cache)
        assert read is not None
        last = jnp.maximum((batch.segment_ids > 0).sum(axis=1) - 1, 0)
        hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)
        return self.decoder.logits(hidden)[:, 0], read

    def extend(
        self, tokens: Int[Array, " B"], positions: Int[Array, " B"], cache: KVCache
    ) -> tuple[Float[Array, "B V"], KVCache]:
        """Reads one more token of each row and returns the logits of the next, and the cache."""
        x = self.decoder.embed(tokens[:, None])
        hidden, read = self.decoder(x, jnp.ones_like(tokens)[:, None], positions[:, None], cache)
        assert read is not None
        return self.decoder.logits(hidden)[:, 0], read

    def query_places(self, media: UInt8[Array, "1 1 F h w C"]) -> Float[Array, "Q D"]:
        """Returns the start of position queries, for an LM adapter; see `LMAdapterConfig.query_init`."""
        return self.adapter.places(self.encode(media))


def head_weights(config: VLMConfig, params: dict[str, Any]) -> tuple[Float[Array, "V D"], float | None]:
    """Returns the decoder's vocabulary table and the cap of its logits; see `decoder.head_weights`."""
    return decoder.head_weights(config.decoder, params["decoder"])
