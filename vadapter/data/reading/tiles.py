"""Tiles of a picture on a grid that fits its shape (AnyRes, LLaVA-NeXT), so that small print can be read."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from vadapter.data.reading import images
from vadapter.data.reading.conversations import MARK, Conversation, File
from vadapter.data.reading.images import MediaError

MOST = 64
"""Tiles of an image."""

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


def tiles_of(image: bytes | Image.Image, most: int, size: int) -> list[np.ndarray]:
    """Returns the tiles of an image, row by row, each uint8 [size, size, 3]; none where its grid has but one.

    Args:
        image: encoded, or an upright picture.
        most: tiles.
        size: width and height of a tile.

    Raises:
        MediaError: as `images.decode`.
    """
    if not most:
        return []
    grid = grid_for(*(images.size_of(image) if isinstance(image, bytes) else image.size), most)
    if grid == (1, 1):
        return []
    return list(cut(opened(image) if isinstance(image, bytes) else image, grid, size))


def opened(content: bytes) -> Image.Image:
    """Returns an encoded image as it is cut. Raises `MediaError` as `images.decode`."""
    return Image.fromarray(images.decode(content, reduced=True))


def cut(picture: Image.Image, grid: Grid, size: int) -> Iterator[np.ndarray]:
    """Yields the tiles of an upright picture, row by row: uint8 [size, size, 3].

    The whole picture keeps its aspect ratio, as large as it fits the grid, in the middle of black.
    """
    columns, rows = grid
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


def with_tiles(conversation: Conversation, most: int, content: Callable[[File], bytes]) -> Conversation:
    """Puts the tiles of each image behind it: as marks in the text, and as media.

    Args:
        conversation: with whole images. Its videos stay as they are, and so do images that cannot be read, which is
            told when they are decoded.
        most: tiles of an image; 0 gives the conversation as it is.
        content: gives the encoded file of an image. It raises `MediaError` or OSError where it cannot.
    """
    if not most or conversation.error:
        return conversation
    media = [_with_tiles(file, most, content) for file in conversation.media]
    counts = iter([len(files) for files in media])
    turns = [
        (role, "".join(MARK * next(counts) if letter == MARK else letter for letter in text))
        for role, text in conversation.turns
    ]
    return dataclasses.replace(conversation, turns=tuple(turns), media=tuple(itertools.chain(*media)))


def _with_tiles(file: File, most: int, content: Callable[[File], bytes]) -> list[File]:
    if file.kind != "image":
        return [file]
    try:
        columns, rows = grid_for(*images.size_of(content(file)), most)
    except (MediaError, OSError):
        return [file]
    count = columns * rows if columns * rows > 1 else 0
    return [file, *[dataclasses.replace(file, grid=(columns, rows))] * count]


def decoded(
    media: Sequence[File], whole: Callable[[File], np.ndarray], content: Callable[[File], bytes], size: int
) -> Iterator[np.ndarray]:
    """Yields the media of a conversation one by one, tiles included, each uint8 of the encoder's size.

    Args:
        media: as `with_tiles` gives them.
        whole: decodes an image or a video. What it raises is raised here.
        content: as of `with_tiles`.
        size: width and height of a tile.

    Raises:
        MediaError: as `images.decode`.
    """
    parts: Iterator[np.ndarray] | None = None
    for file in media:
        if file.grid is None:
            parts = None
            yield whole(file)
        else:  # tiles of the image before
            parts = parts or cut(opened(content(file)), file.grid, size)
            yield next(parts)
