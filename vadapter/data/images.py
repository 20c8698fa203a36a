"""Image files to RGB pixels at the encoder's resolution, with Pillow."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vadapter.errors import UserError

MAX_PIXELS = 200_000_000
RESIZE_MODES = ("stretch", "crop", "pad")


class MediaError(Exception):
    """An image or video cannot be read. In training its record is skipped; elsewhere it becomes a `UserError`."""


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB: EXIF rotation applied, transparency on white, 16 bits scaled to 8."""
    if image.format != "PNG" or "exif" in image.info:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        top = 255.0 if values.size and values.max() <= 255 and image.mode == "F" else 65535.0
        return Image.fromarray(np.clip(values * (255 / top), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def resize(image: Image.Image, size: int, mode: str = "stretch") -> np.ndarray:
    """Resizes to a square: uint8 [size, size, 3], bilinear, anti-aliased.

    Args:
        image: an RGB image.
        size: width and height of the result in pixels.
        mode: `stretch` ignores the aspect ratio, `crop` takes the middle square, `pad` adds black at the short side.
    """
    bilinear = Image.Resampling.BILINEAR
    if image.size == (size, size):
        return np.asarray(image)
    if mode == "stretch":
        return np.asarray(image.resize((size, size), bilinear))
    if mode == "crop":
        return np.asarray(ImageOps.fit(image, (size, size), bilinear))
    if mode == "pad":
        return np.asarray(ImageOps.pad(image, (size, size), bilinear))
    raise UserError(f"Expected a resize mode of {', '.join(RESIZE_MODES)}; found {mode!r}. Choose one of them.")


def decode(data: bytes, size: int | None = None, mode: str = "stretch") -> np.ndarray:
    """Decodes the bytes of a JPEG, PNG, WebP or other image file that Pillow knows.

    Args:
        data: the whole file.
        size: width and height of the result; None keeps the image's own.
        mode: see `resize`.

    Returns:
        uint8 [h, w, 3].

    Raises:
        MediaError: not an image, damaged, or above `MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise MediaError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}")
        if size and image.format == "JPEG" and mode == "stretch":
            image.draft("RGB", (size, size))  # decodes large photographs at a fraction of their size
        rgb = _to_rgb(image)
    except MediaError:
        raise
    except Exception as e:  # Pillow's decoders raise many types on damaged data
        raise MediaError(f"not a readable image ({type(e).__name__}: {e})") from e
    return resize(rgb, size, mode) if size else np.asarray(rgb)


def load(path: str | Path, size: int | None = None, mode: str = "stretch") -> np.ndarray:
    """Decodes an image file: uint8 [h, w, 3]. See `decode`.

    Raises:
        UserError: the file is missing or not a readable image.
    """
    try:
        return decode(Path(path).read_bytes(), size, mode)
    except (OSError, MediaError) as e:
        raise UserError(f"Expected an image (JPEG, PNG, WebP) in {path}; {e}. Replace the file or leave it out.") from e
