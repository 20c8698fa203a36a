"""Rotary position embeddings (RoFormer, arXiv 2104.09864), in the half-split layout of Gemma, Qwen and Llama."""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base.array_types import Array, Bool, Float, Int
from vadapter.base.errors import UserError
from vadapter.models import layers
from vadapter.models.configuration import configuration

RopeKind = Literal["linear", "llama3", "yarn", "longrope"]


@configuration("field")
@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How frequencies are stretched for contexts longer than the pretraining's.

    Attributes:
        kind: `linear` divides every frequency by `factor` (Gemma 3, 4B and more); `llama3` divides the slow ones only;
            so does `yarn` (Qwen), with another transition; `longrope` divides each by a factor of its own (Phi).
        factor: how many times longer the context gets; not of longrope.
        low_freq_factor: llama3, yarn: wavelengths over original_length / low_freq_factor are stretched fully.
        high_freq_factor: llama3, yarn: wavelengths under original_length / high_freq_factor are kept.
        original_length: llama3, yarn: tokens of the pretraining context. longrope: slots of a row for which `factors`
            hold; longer rows are refused, as the published models have other factors for them.
        factors: longrope: one for each frequency, the fastest first.
        magnitude: longrope, yarn: what the rotated channels of queries and keys are multiplied by.
    """

    kind: RopeKind = "linear"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    factors: tuple[float, ...] = ()
    magnitude: float = 1.0

    def __post_init__(self):
        layers.known("RopeScaling.kind", self.kind, get_args(RopeKind))

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
    keep = np.clip(_kept(freq, rope_dim, base, scaling), 0.0, 1.0)
    return (freq * keep + freq / scaling.factor * (1 - keep)).astype(np.float32)


def _kept(freq: np.ndarray, rope_dim: int, base: float, scaling: RopeScaling) -> np.ndarray:
    """Returns the share of each original frequency that is kept, still beyond 0 and 1."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns_at_one = scaling.original_length / (2 * math.pi)
    if scaling.kind == "llama3":  # linear in the turns per context
        return (turns_at_one * freq - low) / (high - low)

    def number(turns: float) -> float:
        return rope_dim * math.log(turns_at_one / turns) / (2 * math.log(base))

    # yarn: linear in the number of the frequency, between whole numbers.
    first, last = max(math.floor(number(high)), 0), min(math.ceil(number(low)), rope_dim - 1)
    return 1 - (np.arange(rope_dim // 2) - first) / max(last - first, 1e-3)


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
