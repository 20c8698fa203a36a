"""Pixels of scenes: anti-aliased shapes and real handwritten digits on uneven dark grounds."""

import functools
import io
import random

import numpy as np
from PIL import Image, ImageDraw

from vadapter.data.scenes.config import SPLITS
from vadapter.data.scenes.world import GRID, SHAPES, Object, Scene

RGB = {
    "red": (230, 40, 40),
    "green": (40, 170, 60),
    "blue": (60, 90, 240),
    "yellow": (245, 225, 50),
    "purple": (165, 60, 190),
    "orange": (250, 140, 20),
    "cyan": (60, 215, 225),
    "white": (250, 250, 250),
}
_SHARE = {"big": 0.86, "small": 0.5}  # of the cell's width
_SMOOTH = 8  # shapes are drawn this many times larger, then reduced


@functools.cache
def digit_indices(split: str) -> dict[str, tuple[int, ...]]:
    """Returns, for each digit, the images of scikit-learn's digits that the split may use. Splits share none."""
    _, targets = _digits()
    part = SPLITS.index(split)
    found: dict[str, tuple[int, ...]] = {}
    for digit in range(10):
        mine = np.flatnonzero(targets == digit)
        # Of ten images in turn: seven to train, one and a half to each of the others.
        place = np.arange(len(mine)) % 20
        owner = np.where(place < 14, 0, np.where(place < 17, 1, 2))
        found[str(digit)] = tuple(int(i) for i in mine[owner == part])
    return found


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images, data.target


@functools.lru_cache(maxsize=8192)
def _mask(kind: str, digit_index: int, pixels: int) -> np.ndarray:
    """Coverage 0..1 of the object's square, float32 [pixels, pixels]."""
    if kind not in SHAPES:
        small = Image.fromarray((_digits()[0][digit_index] * (255 / 16)).astype(np.uint8))
        return np.asarray(small.resize((pixels, pixels), Image.Resampling.BICUBIC), np.float32) / 255
    n = pixels * _SMOOTH
    image = Image.new("L", (n, n))
    draw = ImageDraw.Draw(image)
    last, third = n - 1, n // 3
    match kind:
        case "circle":
            draw.ellipse((0, 0, last, last), fill=255)
        case "square":
            draw.rectangle((n // 16, n // 16, last - n // 16, last - n // 16), fill=255)
        case "triangle":
            draw.polygon([(n // 2, 0), (last, last), (0, last)], fill=255)
        case "diamond":
            draw.polygon([(n // 2, 0), (last, n // 2), (n // 2, last), (0, n // 2)], fill=255)
        case "cross":
            draw.rectangle((third, 0, last - third, last), fill=255)
            draw.rectangle((0, third, last, last - third), fill=255)
        case "ring":
            draw.ellipse((0, 0, last, last), fill=255)
            draw.ellipse((n // 4, n // 4, last - n // 4, last - n // 4), fill=0)
    return np.asarray(image.resize((pixels, pixels), Image.Resampling.BOX), np.float32) / 255


@functools.cache
def _ramps(resolution: int) -> np.ndarray:
    """A few smooth patterns [n, resolution, resolution] in -1..1 that grounds are mixed from."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, resolution, dtype=np.float32)] * 2, indexing="ij")
    return np.stack([x, y, x * y, 2 * x * x - 1, 2 * y * y - 1])


def _ground(rng: np.random.Generator, resolution: int) -> np.ndarray:
    """Dark, weakly coloured and uneven: [resolution, resolution, 3] float32 of about 0..80."""
    base = 30 + rng.uniform(-15, 15) + rng.uniform(-12, 12, 3).astype(np.float32)
    ramps = _ramps(resolution)
    pattern = np.tensordot(rng.uniform(-9, 9, len(ramps)).astype(np.float32), ramps, 1)
    noise = rng.integers(-3, 4, (resolution, resolution, 1), np.int8)
    return base + pattern[..., None] + noise


def _paint(image: np.ndarray, o: Object, digit_index: int, centre: tuple[float, float]) -> None:
    """Blends the object into the image. `centre` is (y, x) in cells, (0.5, 0.5) being the first cell's middle."""
    resolution = image.shape[0]
    cell = resolution / GRID
    pixels = max(4, round(cell * _SHARE[o.size]))
    top, left = (min(max(round(c * cell - pixels / 2), 0), resolution - pixels) for c in centre)
    alpha = _mask(o.kind, digit_index, pixels)[..., None]
    region = image[top : top + pixels, left : left + pixels]
    region += alpha * (np.asarray(RGB[o.colour], np.float32) - region)


def draw(scene: Scene, split: str, rng: random.Random, resolution: int, num_frames: int = 1) -> np.ndarray:
    """Draws a scene: uint8 [frames, resolution, resolution, 3].

    A still scene has one frame. In a clip the first object goes evenly from its cell to `scene.end`.
    """
    noise = np.random.Generator(np.random.Philox(rng.getrandbits(63)))
    ground = _ground(noise, resolution)
    digits = digit_indices(split)
    chosen = [rng.choice(digits[o.kind]) if o.kind in digits else -1 for o in scene.objects]
    jitter = [(rng.uniform(-0.05, 0.05), rng.uniform(-0.05, 0.05)) for _ in scene.objects]
    frames = []
    for f in range(num_frames if scene.direction else 1):
        image = ground.copy()
        for i, o in reversed(list(enumerate(scene.objects))):
            y, x = divmod(o.cell, GRID)
            if scene.end is not None and i == 0:
                share = f / max(num_frames - 1, 1)
                y, x = y + share * (scene.end // GRID - y), x + share * (scene.end % GRID - x)
            _paint(image, o, chosen[i], (y + 0.5 + jitter[i][0], x + 0.5 + jitter[i][1]))
        frames.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(frames)


def png(image: np.ndarray) -> bytes:
    """Encodes one uint8 [h, w, 3] image."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
