"""Floating-point operations of a training step, counted as they are needed: frozen parts cost less.

For N weights that multiply each of n tokens: 2Nn forwards; 2Nn more if a gradient goes on to the tokens, because
something before them is trained; 2Nn more if the weights themselves are trained. A frozen encoder costs 2N a token, a
frozen decoder behind a trained adapter 4N, what is trained 6N. Padding is not counted.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from vadapter import trees
from vadapter.batch import Batch, LabelledImages
from vadapter.models.adapters import AdapterConfig, LMAdapterConfig, MlpConfig, num_tokens
from vadapter.models.classifier import ClassifierConfig
from vadapter.models.decoder import DecoderConfig
from vadapter.models.resampler import PerceiverConfig, PoolerConfig
from vadapter.models.vit import ViTConfig
from vadapter.models.vlm import VLMConfig

FlopsOf = Callable[[Any], dict[str, float]]

# Dense bf16 FLOP/s of one jax device, by the start of its device_kind; the longest that fits counts. Vendors' figures.
# TPU v2 and v3 chips have two devices, and so has TPU7x.
_PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns the peak of one jax device in bf16 FLOP/s, or None if it is not known (CPUs)."""
    known = [name for name in _PEAKS if device_kind.startswith(name)]
    return _PEAKS[max(known, key=len)] if known else None


@dataclasses.dataclass(frozen=True)
class Matmul:
    """Weights that multiply tokens: a parameter path, its number of weights, and the tokens."""

    path: str
    weights: int
    tokens: float


def matmul_flops(work: Matmul, trainable: bool, flows: bool) -> float:
    """FLOPs of one step; `flows` says whether a gradient goes on to the tokens."""
    return 2.0 * work.weights * work.tokens * (1 + trainable + flows)


def attention_flops(queries: float, keys: float, width: int, layers: int, flows: bool, causal: bool = False) -> float:
    """FLOPs of scores and weighted sums of one step: 4 a (query, key, channel) forwards, twice that backwards.

    Args:
        queries: number of queries.
        keys: keys that each sees, before the causal mask.
        width: heads times head dimension.
        layers: number of layers.
        flows: whether there is a backward pass through it.
        causal: half of the keys are seen.
    """
    return 4.0 * queries * keys * width * layers * (3 if flows else 1) * (0.5 if causal else 1)


@dataclasses.dataclass(frozen=True)
class _Counter:
    """Counts on one model: the sizes of its kernels and which are trained."""

    sizes: Mapping[str, int]
    trainable: Collection[str]

    def trains(self, prefix: str) -> bool:
        return any(p.startswith(prefix) for p in self.trainable)

    def kernels(self, prefix: str, tokens: float, flows: bool, exclude: str | None = None) -> float:
        """FLOPs of all kernels below a path."""
        chosen = (p for p in self.sizes if p.startswith(prefix) and p.endswith("/kernel"))
        return sum(
            matmul_flops(Matmul(p, self.sizes[p], tokens), p in self.trainable, flows)
            for p in chosen
            if exclude is None or not p.startswith(exclude)
        )

    def encoder(self, config: ViTConfig, frames: float) -> float:
        tokens, flows = frames * config.num_patches, self.trains("encoder/")
        attention = attention_flops(tokens, config.num_patches, config.width, config.depth, flows)
        return self.kernels("encoder/", tokens, flows) + attention

    def front(self, config: AdapterConfig, prefix: str, media: float, visual: int, flows: bool) -> float:
        """A map, pooler or perceiver with its projection, on `visual` tokens of each medium."""
        if isinstance(config, MlpConfig):
            return self.kernels(prefix, media * visual, flows)
        assert isinstance(config, PerceiverConfig | PoolerConfig)
        concat = isinstance(config, PerceiverConfig) and config.concat_keys
        layers, width = 1, config.query_dim
        if isinstance(config, PerceiverConfig):
            layers, width = config.num_layers, config.hidden_dim
        keys, queries = visual + config.num_queries * concat, media * config.num_queries
        total = attention_flops(queries, keys, width, layers, flows)
        for path, size in self.sizes.items():
            if path.startswith(prefix) and path.endswith("/kernel"):
                tokens = queries
                if path.endswith("input_projection/kernel"):
                    tokens = media * visual
                elif path.endswith(("/key/kernel", "/value/kernel")):
                    tokens = media * keys
                total += matmul_flops(Matmul(path, size, tokens), path in self.trainable, flows)
        return total

    def adapter(self, config: AdapterConfig, media: float, visual: int) -> dict[str, float]:
        before = self.trains("encoder/")
        if not isinstance(config, LMAdapterConfig):
            return {"adapter": self.front(config, "adapter/", media, visual, before or self.trains("adapter/"))}
        front_flows = before or self.trains("adapter/front/")
        flows = front_flows or self.trains("adapter/")
        length = num_tokens(config.front, 1, visual) + config.num_queries + config.num_prefix
        read = config.num_queries or length
        lm = self.kernels("adapter/lm/", media * length, flows) + _decoder_attention(config.lm, [length], flows) * media
        return {
            "adapter/front": self.front(config.front, "adapter/front/", media, visual, front_flows),
            "adapter/lm": lm,
            "adapter/projection": self.kernels("adapter/projection/", media * read, flows),
        }

    def decoder(self, config: DecoderConfig, lengths: np.ndarray, targets: float) -> float:
        flows = any(self.trains(p) for p in ("encoder/", "adapter/", "decoder/"))
        total = self.kernels("decoder/", float(lengths.sum()), flows, exclude="decoder/head/")
        table = "decoder/embedder/embedding" if config.tied_head else "decoder/head/embedding"
        head = Matmul(table, config.vocab_size * config.width, targets)
        return total + matmul_flops(head, table in self.trainable, flows) + _decoder_attention(config, lengths, flows)


def _decoder_attention(config: DecoderConfig, lengths: Any, flows: bool) -> float:
    width, total = config.num_heads * config.head_dim, 0.0
    lengths = np.asarray(lengths, np.float64)
    for local in (False, True):
        layers = sum(x == local for x in config.local_layers)
        keys = np.minimum(lengths, config.window or math.inf) if local else lengths
        causal = config.causal and not local
        total += attention_flops(float((lengths * keys).sum()), 1, width, layers, flows, causal)
    return total


def _counter(abstract: trees.Tree, trainable: Collection[str]) -> _Counter:
    return _Counter({p: int(x.size) for p, x in trees.flatten(abstract).items()}, frozenset(trainable))


def vlm_flops(config: VLMConfig, abstract: trees.Tree, trainable: Collection[str]) -> FlopsOf:
    """Returns a function that counts the FLOPs of a step on a `Batch`, by part.

    Args:
        config: of the model.
        abstract: its parameters or their shapes, unboxed.
        trainable: slash paths of the trained parameters.
    """
    counter = _counter(abstract, trainable)

    def count(batch: Batch) -> dict[str, float]:
        weights = np.asarray(batch.target_weights)
        rows = weights.sum(axis=1) > 0
        lengths = (np.asarray(batch.segment_ids)[rows] > 0).sum(axis=1)
        parts = {"decoder": counter.decoder(config.decoder, lengths, float((weights > 0).sum()))}
        medium_count, frames = batch.media.shape[1:3]
        media = float(rows.sum()) * medium_count
        if config.encoder is not None and config.adapter is not None and media:
            seen = config.num_frames if config.repeat_stills and frames == 1 else frames
            parts["encoder"] = counter.encoder(config.encoder, media * frames)
            parts |= counter.adapter(config.adapter, media, seen * config.encoder.num_patches)
        return parts

    return count


def classifier_flops(config: ClassifierConfig, abstract: trees.Tree, trainable: Collection[str]) -> FlopsOf:
    """Returns a function that counts the FLOPs of a step on `LabelledImages`; see `vlm_flops`."""
    counter = _counter(abstract, trainable)

    def count(batch: LabelledImages) -> dict[str, float]:
        rows = float((np.asarray(batch.weights) > 0).sum())
        return {
            "encoder": counter.encoder(config.encoder, rows),
            "head": counter.kernels("head/", rows, counter.trains("encoder/")),
        }

    return count


@dataclasses.dataclass(frozen=True)
class Counts:
    """What this process's part of a batch holds: examples with a loss, and text and visual tokens without padding."""

    examples: int
    tokens: int


def count(batch: Any) -> Counts:
    """Counts a batch on the host."""
    if isinstance(batch, LabelledImages):
        return Counts(int((np.asarray(batch.weights) > 0).sum()), 0)
    if isinstance(batch, Batch):
        rows = np.asarray(batch.target_weights).sum(axis=1) > 0
        return Counts(int(rows.sum()), int((np.asarray(batch.segment_ids)[rows] > 0).sum()))
    return Counts(int(jax.tree.leaves(batch)[0].shape[0]), 0)
