"""Tiles of a picture on a grid that fits its shape (AnyRes, LLaVA-NeXT), so that small print can be read."""

import functools
from collections.abc import Iterator

import numpy as np
from PIL import Image

from vadapter.data.reading import images

Grid = tuple[int, int]
"""Columns and rows."""


@functools.lru_cache(4096)
def grid_for(width: int, height: int, most: int) -> Grid:
    """Returns the grid of at most `most` square tiles in which a picture is largest; of equal ones that of fewest
    tiles.

    So LLaVA-NeXT chooses (`select_best_resolution`) for a picture with more pixels than the grids. A grid of one tile
    would be the picture itself.
    """

    def pixels(grid: Grid) -> float:
        # In tiles: of the picture as large as it fits. Rounded, as 3 / 0.3 is not quite 10.
        scale = min(grid[0] / width, grid[1] / height)
        return round(width * height * scale**2, 6)

    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    return min(grids, key=lambda grid: (-pixels(grid), grid[0] * grid[1]))


def cut(content: bytes, grid: Grid, size: int) -> Iterator[np.ndarray]:
    """Yields the tiles of an encoded image, row by row: uint8 [size, size, 3].

    The whole picture keeps its aspect ratio, as large as it fits the grid, in the middle of black.

    Raises:
        MediaError: as `images.decode`.
    """
    picture, (columns, rows) = Image.fromarray(images.decode(content)), grid
    scale = min(columns * size / picture.width, rows * size / picture.height)
    width = min(max(round(picture.width * scale), 1), columns * size)
    height = min(max(round(picture.height * scale), 1), rows * size)
    whole = np.zeros((rows * size, columns * size, 3), np.uint8)
    top, left = (rows * size - height) // 2, (columns * size - width) // 2
    whole[top : top + height, left : left + width] = np.asarray(
        picture.resize((width, height), Image.Resampling.BILINEAR)
    )
    for row in range(rows):
        for column in range(columns):
            yield whole[row * size : (row + 1) * size, column * size : (column + 1) * size]
