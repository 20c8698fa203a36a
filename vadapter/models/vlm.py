"""The composition: vision encoder, adapter, decoder."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vadapter.base.array_types import Array, Float, Int, UInt8
from vadapter.base.batch import Batch, Features
from vadapter.base.errors import UserError
from vadapter.base.trees import Tree
from vadapter.models import adapters, decoder, flops, vit, words  # noqa: F401  so that the shipped parts are registered
from vadapter.models.configuration import TRAINING, AdapterConfig, EncoderConfig, configuration, describe, picture_sizes
from vadapter.models.kv_cache import KVCache
from vadapter.models.losses import LossSums, ObjectiveConfig, cross_entropy
from vadapter.models.stacks import layer_stacks


@configuration("model")
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
        quantization: how soft tokens become words of the decoder's embedding table, as of any adapter; None leaves
            them as the adapter makes them.
    """

    decoder: decoder.DecoderConfig
    encoder: EncoderConfig | None = None
    adapter: AdapterConfig | None = None
    num_frames: int = 1
    repeat_stills: bool = True
    quantization: words.WordQuantizationConfig | None = None

    def __post_init__(self):
        if (self.encoder is None) != (self.adapter is None):
            raise UserError("VLMConfig: encoder and adapter come together; set both, or neither for a language model.")
        if self.quantization is not None and self.adapter is None:
            raise UserError("VLMConfig: quantization is of an adapter's soft tokens; a language model has none.")

    def num_visual_tokens(self, frames: int) -> int:
        """Returns R for media that are stored with `frames` frames (1 for a still image)."""
        if self.encoder is None or self.adapter is None:
            return 0
        return self.adapter.num_tokens(self._frames_seen(frames), self.encoder.num_patches)

    def num_tiny_tokens(self, frames: int) -> int:
        """Returns how many slots of `Batch.tiny` a medium has: the tokens that the adapter's front makes of it.

        Args:
            frames: that media are stored with.

        Raises:
            UserError: the adapter has no tiny LM that reads and writes words.
        """
        if self.encoder is None or not isinstance(self.adapter, adapters.LMAdapterConfig) or not self.adapter.num_words:
            raise UserError(
                "ObjectiveConfig.tiny_loss is the loss of a tiny LM with words, in the adapter; expected an "
                f"LMAdapterConfig with num_words of 1 or more, found {describe(self.adapter)}. Take such an adapter "
                "(models/adapters/words_supervised.gin), or leave tiny_loss at 0."
            )
        return self.adapter.front.num_tokens(self._frames_seen(frames), self.encoder.num_patches)

    def _frames_seen(self, frames: int) -> int:
        """F as the adapter sees it."""
        return self.num_frames if self.repeat_stills and frames == 1 else frames

    @property
    def parts(self) -> tuple[str, ...]:
        """See `configuration.ModelConfig`."""
        return ("encoder", "adapter", "decoder")

    @property
    def vocab_size(self) -> int:
        """See `configuration.ModelConfig`."""
        return self.decoder.vocab_size

    def make(self) -> "VLM":
        """See `configuration.ModelConfig`."""
        return VLM(self)

    def data_sizes(self) -> dict[str, Any]:
        """See `configuration.ModelConfig`."""
        tokens = {frames: self.num_visual_tokens(frames) for frames in {1, self.num_frames}}
        sizes = {"num_frames": self.num_frames, "num_visual_tokens": tokens}
        return sizes if self.encoder is None else {**picture_sizes(self.encoder), **sizes}

    def example_batch(self, rows: int = 1, lengths: Mapping[str, int] | None = None, frames: int = 1) -> Batch:
        """See `configuration.ModelConfig`. A row has one image or video, and text for inputs and targets."""
        lengths = lengths or {"inputs": 1, "targets": 1}

        def shape(dtype: type, *sizes: int) -> Any:
            return jax.ShapeDtypeStruct((rows, *sizes), dtype)

        size = self.encoder.image_size if self.encoder else 1
        row = shape(np.int32, lengths["inputs"] + self.num_visual_tokens(frames) + lengths["targets"])
        target = shape(np.int32, lengths["targets"])
        return Batch(
            tokens=row,
            segment_ids=row,
            positions=row,
            media_index=row,
            media=shape(np.uint8, 1 if self.encoder else 0, frames, size, size, 3),
            target_positions=target,
            target_ids=target,
            target_weights=shape(np.float32, lengths["targets"]),
        )

    def flops(self, abstract: Tree, trainable: Collection[str]) -> flops.FlopsOf:
        """See `configuration.ModelConfig`."""
        counters = flops.counters(self.parts, abstract, trainable)

        def count(batch: Batch) -> dict[str, float]:
            weights = np.asarray(batch.target_weights)
            rows = weights.sum(axis=1) > 0
            lengths = batch.segment_lengths()
            found = self.decoder.flops(counters["decoder"], lengths, float((weights > 0).sum()))
            medium_count, frames = batch.media.shape[1:3]
            media = float(rows.sum()) * medium_count
            if self.encoder is not None and self.adapter is not None and media:
                adapter: Any = self.adapter
                if not isinstance(batch.media, Features):
                    found |= self.encoder.flops(counters["encoder"], media * frames)
                elif batch.media.words is not None:
                    adapter = adapter.given_words()
                seen, patches = self._frames_seen(frames), self.encoder.num_patches
                found |= adapter.flops(counters["adapter"], media, seen, patches)
                if self.quantization is not None:
                    soft = media * self.num_visual_tokens(frames)
                    found["decoder"] += self.quantization.flops(counters["decoder"], "embedder/embedding", soft)
            if batch.tiny is not None and isinstance(self.adapter, adapters.LMAdapterConfig):
                lengths = (np.asarray(batch.tiny.segment_ids)[rows] > 0).sum(axis=1)
                targets = float((np.asarray(batch.tiny.target_weights)[rows] > 0).sum())
                for name, more in self.adapter.tiny_flops(counters["adapter"], lengths, targets).items():
                    found[name] = found.get(name, 0.0) + more
            return found

        return count

    def starts(self) -> dict[str, Callable[..., Array]]:
        """Returns how parameters start that start from others: `VLM.start` by path."""
        found = getattr(self.adapter, "starts", dict)()
        return {f"adapter/{path}": value for path, value in found.items()}


class VLM(nn.Module):
    """Frozen or not is not the model's business: it computes, and `vadapter.training` chooses what is trained."""

    config: VLMConfig

    def setup(self):
        c = self.config
        self.decoder = c.decoder.make()
        if c.encoder is not None and c.adapter is not None:
            self.encoder = c.encoder.make()
            self.adapter = c.adapter.make(c.decoder.width)

    @property
    def has_dropout(self) -> bool:
        """Whether a training step draws what is dropped (`LoraConfig.dropout`)."""
        found = (getattr(stack, "lora", None) for stack in layer_stacks(self.config).values())
        return any(lora is not None and lora.dropout for lora in found)

    def patch_tokens(self, media: UInt8[Array, "B M F h w C"]) -> Float[Array, "B M F P E"]:
        """Returns the encoder's patch tokens of each frame."""
        tokens = self.encoder(media.reshape(-1, *media.shape[3:]))
        config = self.config.encoder
        assert config is not None
        _check_shape(config, "num_patches and width", tokens.shape[1:], (config.num_patches, config.width))
        return tokens.reshape(*media.shape[:3], *tokens.shape[1:])

    def encode(self, media: UInt8[Array, "B M F h w C"] | Features) -> Float[Array, "BM F P E"]:
        """Returns the patch tokens, rows and media joined; a still image's are repeated over the frames."""
        tokens = _floats(media) if isinstance(media, Features) else self.patch_tokens(media)
        tokens = tokens.reshape(-1, *tokens.shape[2:])
        if tokens.shape[1] == 1 and self.config.repeat_stills:
            tokens = jnp.repeat(tokens, self.config.num_frames, axis=1)
        return tokens

    def written(self, media: UInt8[Array, "B M F h w C"] | Features) -> Int[Array, "B M W"]:
        """Returns the words that a tiny LM in the adapter writes about media (`LMAdapterConfig.num_words`)."""
        words = self.adapter.written(self.encode(media))
        return words.reshape(*media.shape[:2], -1)

    def with_words(self, batch: Batch) -> Batch:
        """Returns the batch with `Features` that have the words of `written`, so that they are written once."""
        media = batch.media if isinstance(batch.media, Features) else Features(self.patch_tokens(batch.media))
        words = self.written(media) if media.words is None else media.words
        return batch.replace(media=media.replace(words=words))

    def soft_tokens(self, media: UInt8[Array, "B M F h w C"] | Features) -> Float[Array, "B MR D"]:
        """Returns what the decoder reads in place of text embeddings; see `VLMConfig.quantization`."""
        known = {}
        if isinstance(media, Features) and media.words is not None:
            known = {"words": media.words.reshape(-1, media.words.shape[-1])}
        soft = self.adapter(self.encode(media), **known)
        expected = (self.config.num_visual_tokens(media.shape[2]), self.config.decoder.width)
        _check_shape(self.config.adapter, "num_tokens and the decoder's width", soft.shape[1:], expected)
        soft = soft.reshape(media.shape[0], -1, soft.shape[-1])
        if self.config.quantization is None:
            return soft
        pixels = media.tokens if isinstance(media, Features) else media  # the cache refuses noise, which needs pixels
        return words.quantize(self.config.quantization, soft, self.decoder, pixels, self._training_step())

    def _training_step(self) -> Int[Array, ""] | None:
        return self.get_variable(TRAINING, "step") if self.has_variable(TRAINING, "step") else None

    def nearest_words(
        self, media: UInt8[Array, "B M F h w C"], count: int, most: int | None = None
    ) -> tuple[Int[Array, "B R count"], Float[Array, "B R count"]]:
        """Finds the words of the decoder's table that are nearest to what it reads of media.

        Args:
            media: pixels.
            count: words of each soft token.
            most: soft tokens of a row, the first ones; None takes all.

        Returns:
            Ids, the nearest first, and their cosine similarities in f32.

        Raises:
            UserError: the table has fewer words than `count`, or `count` is below 1.
        """
        return words.nearest(self.soft_tokens(media)[:, :most], self.decoder.word_table(), count)

    def embed(self, batch: Batch) -> Float[Array, "B T D"]:
        """Returns text embeddings with the soft tokens in their slots."""
        x = self.decoder.embed(batch.tokens)
        if batch.media.shape[1] == 0:
            return x
        return _filled(x, self.soft_tokens(batch.media), batch.media_index)

    def __call__(self, batch: Batch) -> Float[Array, "B L D"]:
        """Returns the hidden states that predict the targets, after the final norm."""
        hidden, _ = self.decoder(self.embed(batch), batch.segment_ids, batch.positions)
        hidden = jnp.take_along_axis(hidden, batch.target_positions[..., None], axis=1)
        if self.is_initializing():
            self.decoder.logits(hidden)  # makes the parameters of an untied head
        return hidden

    def logits(self, batch: Batch) -> Float[Array, "B L V"]:
        """Returns f32 logits of the targets, soft-capped as the decoder's configuration says."""
        return self.decoder.logits(self(batch))

    def loss_sums(self, batch: Batch, settings: ObjectiveConfig | None = None) -> LossSums:
        """Returns the cross-entropy of the targets, in nats, as sums over the batch.

        Args:
            batch: rows with targets.
            settings: z-loss, chunks of the vocabulary, and the tiny LM's own loss; default none of these.

        Raises:
            UserError: the tiny LM's loss is asked for, and the batch has no text for it, or the adapter no such LM.
        """
        settings = settings or ObjectiveConfig()
        if settings.tiny_loss and batch.media.shape[1] and self.config.quantization is None:
            # Both language models read what the encoder makes once. Noise of a quantization needs pixels.
            media = batch.media if isinstance(batch.media, Features) else Features(self.patch_tokens(batch.media))
            batch = batch.replace(media=media)
        sums = cross_entropy(
            self(batch),
            self.decoder.head_table(),
            batch.target_ids,
            batch.target_weights,
            multiplier=self.config.decoder.logits_multiplier,
            softcap=self.config.decoder.final_softcap,
            z_loss=settings.z_loss,
            vocab_chunk=settings.vocab_chunk,
        )
        if not settings.tiny_loss:
            return sums
        return dataclasses.replace(sums, tiny_sum=settings.tiny_loss * self._tiny_loss(batch, settings.vocab_chunk))

    def _tiny_loss(self, batch: Batch, vocab_chunk: int | None) -> Float[Array, ""]:
        """The loss of stage 1 of the tiny LM, as a sum. A row counts as much as in the decoder's loss, however many
        tokens its targets have in the other ids."""
        self.config.num_tiny_tokens(batch.media.shape[2])  # refuses adapters without such an LM
        tiny, lm, config = batch.tiny, self.adapter.lm, self.adapter.config.lm
        if tiny is None:
            raise UserError(
                "ObjectiveConfig.tiny_loss needs batches with the text that the tiny LM reads (Batch.tiny), and this "
                "one has none. Train by vadapter train, which writes it (Experiment.tiny_lm), or leave tiny_loss at 0."
            )
        x = lm.embed(tiny.tokens)
        if batch.media.shape[1]:
            front = self.adapter.front(self.encode(batch.media))
            x = _filled(x, front.reshape(x.shape[0], -1, x.shape[-1]), tiny.media_index)
        hidden, _ = lm(x, tiny.segment_ids, tiny.positions)
        hidden = jnp.take_along_axis(hidden, tiny.target_positions[..., None], axis=1)
        counted = tiny.target_weights.sum(axis=1, keepdims=True)
        sums = cross_entropy(
            hidden,
            lm.head_table(),
            tiny.target_ids,
            tiny.target_weights * batch.target_weights.sum(axis=1, keepdims=True) / jnp.maximum(counted, 1e-6),
            multiplier=config.logits_multiplier,
            softcap=config.final_softcap,
            vocab_chunk=vocab_chunk,
        )
        return sums.loss_sum

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
        logits, read = self.verify(tokens[:, None], positions[:, None], cache)
        return logits[:, 0], read

    def verify(
        self, tokens: Int[Array, "B T"], positions: Int[Array, "B T"], cache: KVCache
    ) -> tuple[Float[Array, "B T V"], KVCache]:
        """Reads some more tokens of each row and returns the logits of the next after each of them, and the cache."""
        hidden, read = self.decoder(self.decoder.embed(tokens), jnp.ones_like(tokens), positions, cache)
        assert read is not None
        return self.decoder.logits(hidden), read

    def start(self, path: str) -> Array:
        """Returns the first value of a parameter of `VLMConfig.starts`: what comes of a grey image.

        A grey image has nothing to see: all that tells its tokens apart is where they are.
        """
        assert self.config.encoder is not None
        size = self.config.encoder.image_size
        grey = jnp.full((1, 1, 1, size, size, 3), 128, jnp.uint8)
        return self.config.starts()[path](self.adapter, self.encode(grey))


def _filled(
    x: Float[Array, "B T D"], tokens: Float[Array, "B MR D"], media_index: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Text embeddings with the tokens of media in their slots."""
    filled = jnp.take_along_axis(tokens.astype(x.dtype), jnp.maximum(media_index, 0)[..., None], axis=1)
    return jnp.where((media_index >= 0)[..., None], filled, x)


def _floats(media: Features) -> Float[Array, "B M F P E"]:
    """The patch tokens, in bf16 where they are kept as int8."""
    if media.scale is None:
        return media.tokens
    return (media.tokens.astype(jnp.float32) * media.scale).astype(jnp.bfloat16)


def _check_shape(config: Any, what: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuses a module that does not do what its configuration says: tokens would be lost, or taken twice."""
    if found != expected:
        raise UserError(
            f"{type(config).__name__}: {what} say that a row has tokens of the shape {expected}, and its module made "
            f"{found}. Change the module or the configuration."
        )
