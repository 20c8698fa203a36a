"""Rotary position embeddings (RoFormer, arXiv 2104.09864), in the half-split layout of Gemma, Qwen and Llama."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base.array_types import Array, Bool, Float, Int
from vadapter.base.errors import UserError
from vadapter.models.configuration import configuration


@configuration("field")
@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies are stretched for contexts longer than the pretraining's.

    Attributes:
        kind: `linear` divides every frequency by `factor` (Gemma 3, 4B and more); `llama3` divides the slow ones only;
            `longrope` divides each by a factor of its own (Phi).
        factor: linear and llama3: how many times longer the context gets.
        low_freq_factor: llama3: wavelengths over original_length / low_freq_factor are stretched fully.
        high_freq_factor: llama3: wavelengths under original_length / high_freq_factor are kept.
        original_length: llama3: tokens of the pretraining context. longrope: slots of a row for which `factors` hold;
            longer rows are refused, as the published models have other factors for them.
        factors: longrope: one for each frequency, the fastest first.
        magnitude: longrope: what the rotated channels of queries and keys are multiplied by.
    """

    kind: Literal["linear", "llama3", "longrope"] = "linear"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    factors: tuple[float, ...] = ()
    magnitude: float = 1.0

    def check_channels(self, rotated: int) -> None:
        """Raises a `UserError` if `factors` are not those of so many rotated channels."""
        if self.kind == "longrope" and len(self.factors) != rotated // 2:
            raise UserError(
                f"RopeScaling: longrope needs a factor for each of the {rotated // 2} frequencies of {rotated} rotated "
                f"channels; `factors` has {len(self.factors)}."
            )

    def check_length(self, slots: int) -> None:
        """Raises a `UserError` if `factors` do not hold for rows of so many slots."""
        if self.kind == "longrope" and slots > self.original_length:
            raise UserError(
                f"The rotary factors of this language model hold for rows of up to {self.original_length} slots "
                f"(RopeScaling.original_length), and a row here has {slots}. Make rows shorter: fewer visual tokens, "
                "shorter texts, or fewer new tokens."
            )


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Rotation:
    """How much the channels of each position are rotated.

    Attributes:
        sin: sine of the angle of each position and frequency.
        cos: cosine.
    """

    sin: Float[Array, "B T half"]
    cos: Float[Array, "B T half"]

    def where(self, condition: Bool[Array, ""], other: "Rotation") -> "Rotation":
        """Returns this rotation where the condition holds, else the other."""
        return jax.tree.map(lambda x, y: jnp.where(condition, x, y), self, other)

    def none(self) -> "Rotation":
        """Returns the rotation that leaves everything as it is (NoPE)."""
        return Rotation(jnp.zeros_like(self.sin), jnp.ones_like(self.cos))


def rope_frequencies(rope_dim: int, base: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Returns the angular frequencies of `rope_dim` channels, two of which share one, in radians a position, f32."""
    freq = base ** -(np.arange(0, rope_dim, 2, dtype=np.float64) / rope_dim)
    if scaling is None:
        return freq.astype(np.float32)
    if scaling.kind == "linear":
        return (freq / scaling.factor).astype(np.float32)
    if scaling.kind == "longrope":
        return (freq / np.asarray(scaling.factors, np.float64)).astype(np.float32)
    # llama3: the share of the original frequency that is kept rises linearly from 0 to 1 in the turns per context.
    turns = scaling.original_length * freq / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, 0.0, 1.0)
    return (freq * keep + freq / scaling.factor * (1 - keep)).astype(np.float32)


def rope_rotation(positions: Int[Array, "B T"], frequencies: np.ndarray, magnitude: float = 1.0) -> Rotation:
    """Returns the rotation of each position. What is rotated by it is multiplied by `magnitude` as well."""
    angles = positions[..., None].astype(jnp.float32) * frequencies
    rotation = Rotation(jnp.sin(angles), jnp.cos(angles))
    return rotation if magnitude == 1 else jax.tree.map(lambda x: magnitude * x, rotation)


def apply_rope(x: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    """Rotates the pairs (x[i], x[i + R/2]) of the first R channels, in f32; returns the input's dtype.

    R is twice the number of frequencies of the rotation. The other H - R channels stay as they are.
    """
    sin, cos = rotation.sin[:, :, None], rotation.cos[:, :, None]
    half = sin.shape[-1]
    a, b, rest = jnp.split(x, (half, 2 * half), axis=-1)
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated
