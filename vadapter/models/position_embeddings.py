"""Position embeddings of a ViT for another image size."""

import math

import numpy as np

from vadapter.base.errors import UserError


def resample(pos: np.ndarray, num_tokens: int, extra: int = 0) -> np.ndarray:
    """Resamples learned position embeddings to another grid: bilinear, the corners of both grids on one another.

    That is big_vision's resampling; `jax.image.resize` and PyTorch's default put the corners elsewhere and give other
    values.

    Args:
        pos: [1, extra + side**2, D], row by row of the image.
        num_tokens: tokens of the result, `extra` included.
        extra: leading tokens that have no place in the grid (a class token); they are kept as they are.

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
    from scipy import ndimage

    grid = pos[:, extra:].astype(np.float32).reshape(old, old, -1)
    grid = np.asarray(ndimage.zoom(grid, (new / old, new / old, 1), order=1))
    return np.concatenate([pos[:, :extra], grid.reshape(1, new * new, -1).astype(pos.dtype)], axis=1)


def _side(patches: int) -> int:
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        raise UserError(
            f"{patches} position embeddings are not a square grid of patches and cannot be resampled from or to one. "
            "Images are square: give the encoder the class_token setting and the image_size that its weights have."
        )
    return side
