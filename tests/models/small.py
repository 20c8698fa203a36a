"""Small models and batches for the tests of the models."""

import numpy as np

from vadapter.base.batch import Batch
from vadapter.models.adapters import LMAdapterConfig, MlpConfig
from vadapter.models.decoder import DecoderConfig
from vadapter.models.resampler import PerceiverConfig, PoolerConfig
from vadapter.models.vit import ViTConfig
from vadapter.models.vlm import VLMConfig

F32 = "float32"


def decoder(**changes) -> DecoderConfig:
    fields = dict(vocab_size=64, width=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64, dtype=F32)
    return DecoderConfig(**{**fields, **changes})


def vit(**changes) -> ViTConfig:
    fields = dict(image_size=16, patch_size=8, width=32, depth=2, num_heads=4, mlp_dim=64, dtype=F32)
    return ViTConfig(**{**fields, **changes})


def perceiver(**changes) -> PerceiverConfig:
    fields = dict(num_layers=2, num_queries=4, query_dim=16, hidden_dim=32, num_heads=4, num_frames=2, dtype=F32)
    return PerceiverConfig(**{**fields, **changes})


def pooler(**changes) -> PoolerConfig:
    return PoolerConfig(**{**dict(num_queries=4, query_dim=16, num_heads=4, num_frames=2, dtype=F32), **changes})


def mlp(**changes) -> MlpConfig:
    return MlpConfig(**{**dict(dtype=F32), **changes})


TINY = decoder(width=16, head_dim=4, num_kv_heads=1)
ADAPTERS = {
    "mlp": mlp(depth=2),
    "pixel_shuffle": mlp(pixel_shuffle=2),
    "perceiver": perceiver(),
    "pooler": pooler(),
    "paper": LMAdapterConfig(TINY, perceiver(num_layers=1)),
    "queries": LMAdapterConfig(TINY, mlp(), "appended", 3, "positions"),
    "pooler_reused": LMAdapterConfig(TINY, pooler(residual=True), "appended", 3),
}


def vlm(adapter="queries", **changes) -> VLMConfig:
    return VLMConfig(**{**dict(decoder=decoder(), encoder=vit(), adapter=ADAPTERS[adapter]), **changes})


def batch(config: VLMConfig, rows=8, media=1, frames=1, seed=0) -> Batch:
    """Rows of two prompt tokens, the visual tokens, and six text tokens of which the last four are targets."""
    rng = np.random.default_rng(seed)
    visual = media * config.num_visual_tokens(frames)
    length = 2 + visual + 6
    index = np.full((rows, length), -1, np.int32)
    index[:, 2 : 2 + visual] = np.arange(visual)
    size = config.encoder.image_size if config.encoder else 8
    return Batch(
        tokens=np.where(index < 0, rng.integers(3, config.decoder.vocab_size, index.shape), 0).astype(np.int32),
        segment_ids=np.ones_like(index),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        media_index=index,
        media=rng.integers(0, 256, (rows, media, frames, size, size, 3), np.uint8),
        target_positions=np.tile(np.arange(length - 5, length - 1, dtype=np.int32), (rows, 1)),
        target_ids=rng.integers(3, config.decoder.vocab_size, (rows, 4)).astype(np.int32),
        target_weights=np.ones((rows, 4), np.float32),
    )
