"""Positions of a ViT's patches for any image size: tables that are resampled, rotary angles, and sines of the place."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from vadapter.base.errors import UserError

Resampling = Literal["bilinear_aligned", "bilinear_antialias", "bicubic", "bicubic_antialias"]


def resample(pos: Any, num_tokens: int, extra: int = 0, method: Resampling = "bilinear_aligned") -> Any:
    """Resamples a table of learned positions to another grid, in f32.

    Args:
        pos: [1, extra + side**2, D], row by row of the image; an array of numpy or of jax.
        num_tokens: tokens of the result, `extra` included.
        extra: leading tokens that have no place in the grid (a class token); they are kept as they are.
        method: `bilinear_aligned` puts the corners of both grids on one another (big_vision). The others put the outer
            edges on one another, as PyTorch does: `bicubic` reads four neighbours whatever the sizes (CLIP, SigLIP and
            DINOv2 in transformers), `bicubic_antialias` (DINOv2 with registers) and `bilinear_antialias` (SigLIP 2
            NaFlex) read as many more as the grid becomes coarser.

    Returns:
        [1, num_tokens, D], in the dtype of `pos`; `pos` itself where the number is the same.

    Raises:
        UserError: one of the grids is not square.
    """
    if pos.ndim != 3 or pos.shape[0] != 1:
        raise UserError(f"Position embeddings have the shape (1, tokens, width); found {pos.shape}.")
    old, new = _side(pos.shape[1] - extra), _side(num_tokens - extra)
    if old == new:
        return pos
    xp: Any = jnp if isinstance(pos, jax.Array) else np
    weights = _weights(old, new, method).astype(np.float32)
    grid = pos[:, extra:].astype(np.float32).reshape(old, old, -1)
    with jax.default_matmul_precision("float32"):  # a TPU's default is bf16, which is too coarse for positions
        rows = xp.tensordot(weights, grid, axes=1)
        grid = xp.swapaxes(xp.tensordot(weights, rows, axes=(1, 1)), 0, 1)
    return xp.concatenate([pos[:, :extra], grid.reshape(1, new * new, -1).astype(pos.dtype)], axis=1)


def _side(patches: int) -> int:
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        raise UserError(
            f"{patches} position embeddings are not a square grid of patches and cannot be resampled from or to one. "
            "Images are square: give the encoder the class_token setting and the image_size that its weights have."
        )
    return side


def _weights(old: int, new: int, method: Resampling) -> np.ndarray:
    """What each of `new` points on a line reads of `old` ones: [new, old], rows that sum to 1."""
    if method == "bilinear_aligned":
        centers, stretch = np.linspace(0, old - 1, new), 1.0
    else:
        centers = (np.arange(new) + 0.5) * old / new - 0.5
        stretch = max(old / new, 1.0) if method.endswith("antialias") else 1.0
    points = np.arange(-2, old + 2)  # two beyond each edge, which is as far as a cubic reaches
    distances = np.abs(points - centers[:, None]) / stretch
    weights = {
        "bilinear_aligned": _linear,
        "bilinear_antialias": _linear,
        "bicubic": lambda x: _cubic(x, -0.75),
        "bicubic_antialias": lambda x: _cubic(x, -0.5),
    }[method](distances)
    inside = weights[:, 2:-2]
    if method.endswith("antialias"):  # what lies beyond the edge is left out; else the edge stands for it
        return inside / inside.sum(1, keepdims=True)
    inside[:, 0] += weights[:, :2].sum(1)
    inside[:, -1] += weights[:, -2:].sum(1)
    return inside


def _linear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - x, 0)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution; `a` is its slope at 1."""
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def rotary_angles(grid: int, head_dim: int, base: float, extra: int = 0) -> np.ndarray:
    """Returns angles for rotary positions in two directions (DINOv3), which need no table for any image size.

    A patch's place is that of its centre, between -1 and 1 from edge to edge in each direction.

    Args:
        grid: patches along each side.
        head_dim: channels of a head, a multiple of 4. A quarter of them turns by the row, one by the column, each at
            its own frequency; `positions.apply_rope` turns the other half with them.
        base: the slowest frequency is about 1 / base turns from the middle to the edge.
        extra: leading tokens without a place, which are not turned.

    Returns:
        [extra + grid**2, head_dim / 2] in radians, f32.
    """
    frequencies = 2 * np.pi * base ** -(np.arange(head_dim // 4) * 4 / head_dim)
    places = 2 * (np.arange(grid) + 0.5) / grid - 1
    angles = places[:, None] * frequencies
    rows, columns = np.repeat(angles, grid, axis=0), np.tile(angles, (grid, 1))
    patches = np.concatenate([rows, columns], axis=1)
    return np.concatenate([np.zeros((extra, head_dim // 2)), patches]).astype(np.float32)


def sines(grid: int, width: int) -> np.ndarray:
    """Returns positions that are computed: sines and cosines of column and row (AIMv2 for any image size).

    Args:
        grid: patches along each side.
        width: channels of a token, a multiple of 4.

    Returns:
        [1, grid**2, width], f32: sines of the column, its cosines, then those of the row.
    """
    frequencies = 10_000.0 ** -(np.arange(width // 4) * 4 / width)
    angles = np.arange(grid)[:, None] * frequencies
    one = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.repeat(one, grid, axis=0), np.tile(one, (grid, 1))
    return np.concatenate([columns, rows], axis=1).astype(np.float32)[None]
