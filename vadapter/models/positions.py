"""Rotary position embeddings (RoFormer, arXiv 2104.09864), in the half-split layout of Gemma, Qwen and Llama."""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np

from vadapter.base.array_types import Array, Float, Int
from vadapter.models.configuration import configuration


@configuration("field")
@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies are stretched for contexts longer than the pretraining's.

    Attributes:
        kind: `linear` divides every frequency by `factor` (Gemma 3, 4B and more); `llama3` divides the slow ones only.
        factor: how many times longer the context gets.
        low_freq_factor: llama3: wavelengths over original_length / low_freq_factor are stretched fully.
        high_freq_factor: llama3: wavelengths under original_length / high_freq_factor are kept.
        original_length: llama3: tokens of the pretraining context.
    """

    kind: Literal["linear", "llama3"] = "linear"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


def rope_frequencies(head_dim: int, base: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Returns the head_dim / 2 angular frequencies in radians a position, f32."""
    freq = base ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return freq.astype(np.float32)
    if scaling.kind == "linear":
        return (freq / scaling.factor).astype(np.float32)
    # llama3: the share of the original frequency that is kept rises linearly from 0 to 1 in the turns per context.
    turns = scaling.original_length * freq / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (freq * keep + freq / scaling.factor * (1 - keep)).astype(np.float32)


def rope_angles(positions: Int[Array, "B T"], frequencies: np.ndarray) -> Float[Array, "B T half"]:
    """Returns the rotation angle of each position and frequency."""
    return positions[..., None].astype(jnp.float32) * frequencies


def apply_rope(x: Float[Array, "B T N H"], angles: Float[Array, "B T half"]) -> Float[Array, "B T N H"]:
    """Rotates the pairs (x[i], x[i + H/2]) by the angles, in f32; returns the input's dtype."""
    sin, cos = jnp.sin(angles)[:, :, None], jnp.cos(angles)[:, :, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
