"""Image files to RGB pixels at the encoder's resolution, with Pillow."""

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from vadapter.base import resizing
from vadapter.base.errors import UserError
from vadapter.data.reading import storage

# A picture is decoded whole in each thread that reads: a third of a gigabyte of this size, where Pillow warns of
# decompression bombs too. A JPEG is decoded at a fraction of its size, so a photograph may have more: as many as Pillow
# opens, which is twice this number.
MAX_PIXELS = 89_478_485
MAX_BYTES = 256 << 20  # of a file
# Passes of a progressive JPEG, and pixels that all of them go over; encoders write ten. One of thousands takes minutes.
_MAX_PASSES, _MAX_PASSED = 1000, 2_000_000_000
_STRIP = 1 << 22  # pixels of a picture of wide numbers that are converted at once
# Other types are refused, whatever the files are called: Pillow would hand some, such as EPS, to other programs.
TYPES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")
Image.init()
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # of what `MAX_PIXELS` bounds
if "PILLOW_BLOCKS_MAX" not in os.environ:
    # Pillow keeps so many freed blocks of pixels, of 16 MB at most. Otherwise each picture is new memory from the
    # system, which costs a seventh of the time of decoding it.
    Image.core.set_blocks_max(8)
_JPEG, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG, _PNG_TEXTS = b"\x89PNG\r\n\x1a\n", (b"zTXt", b"iTXt", b"iCCP")
_KNOWN = [t for t in TYPES if t in Image.OPEN]  # not every Pillow is built with all
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class MediaError(Exception):
    """An image or video cannot be read. In training its record is skipped; elsewhere it becomes a `UserError`."""


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF data say. Damaged EXIF data say nothing."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's parser raises many types
        return image
    return image if turn is None else image.transpose(turn)


def _deep_to_rgb(image: Image.Image) -> Image.Image:
    """Grey of 16 or more bits, or of floats in 0..1, 0..255 or 0..65535, to 8 bits. NaN is black."""
    grey = Image.new("L", image.size)
    rows = max(1, _STRIP // max(1, image.width))
    boxes = [(0, y, image.width, min(y + rows, image.height)) for y in range(0, image.height, rows)]

    def strips() -> Iterator[np.ndarray]:
        for box in boxes:
            yield np.nan_to_num(np.asarray(image.crop(box), np.float32), posinf=np.inf, neginf=0)

    top = 65535.0
    if image.mode == "F" and boxes:
        highest = max(values.max(initial=0) for values in strips())
        top = next((t for t in (1.0, 255.0) if highest <= t), top)
    for box, values in zip(boxes, strips(), strict=True):
        grey.paste(Image.fromarray((np.clip(values / top, 0, 1) * 255).astype(np.uint8)), box)
    return grey.convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Upright 8-bit RGB: EXIF rotation applied, transparency on white, 16 bits scaled to 8. An animation's first."""
    image.load()
    # Pillow reads every CMYK JPEG as Adobe writes it, inverted.
    inverted = image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info
    # A PNG without EXIF data up to its pixels would be searched for some behind them.
    if image.format != "PNG" or "exif" in image.info:
        image = _upright(image)
    if inverted:
        return ImageChops.invert(image).convert("RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_passes(data: bytes, pixels: int) -> None:
    """Raises `MediaError` for a JPEG that takes too long. Its numbers hold no marker."""
    passes = data.count(b"\xff\xda")
    if passes > _MAX_PASSES or passes * pixels > _MAX_PASSED:
        raise MediaError(f"a JPEG of {pixels} pixels in {passes} passes takes too long to decode")


def _draft_within(image: Image.Image) -> None:
    """Lets a JPEG of more than `MAX_PIXELS` be decoded at a half or less of its size, also where the whole is asked
    for: a photograph of 100 megapixels is to be read, and of its 5,000 pixels a side a model sees some hundreds."""
    for part in (2, 4, 8):
        if image.width * image.height <= MAX_PIXELS:
            return
        image.draft(image.mode, (image.width // part, image.height // part))


def _without_texts(data: bytes) -> bytes:
    """A PNG without its compressed texts and colour profile: nothing here reads them, and Pillow refuses long ones."""
    if not data.startswith(_PNG) or not any(kind in data for kind in _PNG_TEXTS):
        return data
    kept, at = [_PNG], len(_PNG)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _PNG_TEXTS:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


# What other files begin with. Their content itself is in no message: a record may name any file.
_OTHERS = (
    (("<!doctype", "<html", "<?xml", "<svg"), "look like a page of the web or XML"),
    (("%pdf",), "look like a PDF"),
    (("pk\3\4", "\x1f\x8b", "bz", "\xfd7z"), "look like an archive"),
    (("{", "["), "look like JSON"),
    (("version https://git-lfs",), "are a pointer of Git LFS"),
)


def _looks(data: bytes) -> str:
    start = data[:64].lstrip().lower().decode("latin-1")
    if start[4:8] == "ftyp" or start.startswith("\x1aE\xdf\xa3".lower()):
        return "look like a video"
    kind = next((kind for beginnings, kind in _OTHERS if start.startswith(beginnings)), "")
    return kind or ("look like text" if data[:64].isascii() and b"\0" not in data[:64] else "are of no known type")


def resize(image: Image.Image, size: int, mode: str | None = None) -> np.ndarray:
    """Resizes to a square: uint8 [size, size, 3], anti-aliased.

    Args:
        image: an RGB image.
        size: width and height of the result in pixels.
        mode: how, as `resizing.parse` reads it: `stretch` (also None), `crop`, `pad`, "center_crop bicubic".

    Raises:
        UserError: the mode is unknown.
    """
    how = resizing.parse(mode)
    filter = Image.Resampling[how.filter.upper()]  # noqa: A001 Pillow's word
    if image.size == (size, size) and how.shorter == 1:
        return np.asarray(image)
    if how.mode == "stretch":
        return np.asarray(image.resize((size, size), filter))
    if how.mode == "crop":
        return np.asarray(ImageOps.fit(image, (size, size), filter))
    if how.mode == "pad":
        # Not ImageOps.pad: the short side of a very long picture would be no pixel at all.
        scale = size / max(image.size)
        width, height = (min(max(round(side * scale), 1), size) for side in image.size)
        square = np.zeros((size, size, 3), np.uint8)
        top, left = (size - height) // 2, (size - width) // 2
        square[top : top + height, left : left + width] = np.asarray(image.resize((width, height), filter))
        return square
    return _center_crop(image, size, round(size * how.shorter), filter)


def _center_crop(image: Image.Image, size: int, shorter: int, filter: Image.Resampling) -> np.ndarray:  # noqa: A002
    """The middle of the picture whose shorter side has `shorter` pixels; sides are rounded as transformers does it.

    Only the middle is computed: the whole of a very long picture could be very large.
    """
    width, height = image.size
    short = min(width, height)
    wide, high = (int(shorter * side / short) if side > short else shorter for side in image.size)
    left, top = (wide - size) // 2, (high - size) // 2
    x, y = width / wide, height / high
    box = (left * x, top * y, min((left + size) * x, width), min((top + size) * y, height))
    return np.asarray(image.resize((size, size), filter, box=box))


def decode(data: bytes, size: int | None = None, mode: str | None = None, *, reduced: bool = False) -> np.ndarray:
    """Decodes the bytes of an image file of one of `TYPES`, found by its content.

    A JPEG that lacks its end mark alone is read: many cameras and copies leave it out.

    Args:
        data: the whole file.
        size: width and height of the result; None keeps the image's own.
        mode: see `resize`.
        reduced: without `size`, a JPEG of more than `MAX_PIXELS` is decoded at a fraction of its size.

    Returns:
        uint8 [h, w, 3].

    Raises:
        MediaError: not an image, damaged, or more than `MAX_BYTES` or `MAX_PIXELS` (of a JPEG that is made smaller:
            than twice that).
    """
    try:
        return _decode(data, size, mode, reduced)
    except MediaError:
        if not data.startswith(_JPEG) or data.endswith(_JPEG_END):
            raise
        # What stands between the last number and the end mark is passed over. If numbers were missing, it would be
        # taken for them, and the pictures would differ.
        body = data.removesuffix(_JPEG_END[:1])
        found = [
            _decode(body + filling * 256 + _JPEG_END, size, mode, reduced)
            for filling in (b"\x55", b"\xaa", b"\0", b"\xc6")
        ]
        if any(not np.array_equal(found[0], other) for other in found[1:]):
            raise
        return found[0]


def _decode(data: bytes, size: int | None, mode: str | None, reduced: bool) -> np.ndarray:
    """`decode`, as Pillow does it."""
    if len(data) > MAX_BYTES:
        raise MediaError(f"it has {len(data)} bytes, and at most {MAX_BYTES} are read")
    try:
        image = Image.open(io.BytesIO(_without_texts(data)), formats=_KNOWN)
        if image.format in ("JPEG", "MPO"):
            _check_passes(data, image.width * image.height)
        how = resizing.parse(mode)
        if size and not how.whole and image.format in ("JPEG", "MPO"):
            # Decodes large photographs at a fraction of their size, never below what is needed.
            width, height = image.size
            long = max(width, height)
            needed = (size * width // long, size * height // long) if how.mode == "pad" else (size, size)
            image.draft("RGB", (max(needed[0], 1), max(needed[1], 1)))
        if (size or reduced) and image.format in ("JPEG", "MPO"):
            _draft_within(image)
        if image.width * image.height > MAX_PIXELS:
            raise MediaError(
                f"{image.width}x{image.height} pixels are more than {MAX_PIXELS}; make the picture smaller"
            )
        rgb = _to_rgb(image)
    except (MediaError, UserError):
        raise
    except UnidentifiedImageError:
        found = f"{len(data)} bytes that {_looks(data)}" if data else "an empty file"
        raise MediaError(f"not a readable image of a known type: {found}") from None
    except Exception as e:  # Pillow's decoders raise many types on damaged data
        raise MediaError(f"not a readable image ({type(e).__name__}: {e})") from e
    return resize(rgb, size, mode) if size else np.asarray(rgb)


def size_of(data: bytes) -> tuple[int, int]:
    """Returns width and height of an encoded image, upright, without decoding it.

    Raises:
        MediaError: it is no image of a known type.
    """
    try:
        image = Image.open(io.BytesIO(_without_texts(data)), formats=_KNOWN)
        turned = image.format != "PNG" or "exif" in image.info  # as `_to_rgb` has it
        lies = turned and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as e:  # Pillow's decoders raise many types on damaged data
        raise MediaError(f"not a readable image ({type(e).__name__}: {e})") from e
    width, height = image.size
    if not width or not height:
        raise MediaError("an image without pixels")
    return (height, width) if lies else (width, height)


def from_pil(image: Image.Image, size: int, mode: str | None = None) -> np.ndarray:
    """Returns a picture that Pillow has opened or made as uint8 [size, size, 3]; `mode` as of `resize`.

    Raises:
        MediaError: its file turns out to be damaged.
    """
    return resize(rgb(image), size, mode)


def rgb(image: Image.Image) -> Image.Image:
    """Returns a picture that Pillow has opened or made upright, as 8-bit RGB.

    Raises:
        MediaError: its file turns out to be damaged.
    """
    try:
        return _to_rgb(image)
    except Exception as e:  # Pillow's decoders raise many types on damaged data
        raise MediaError(f"not a readable image ({type(e).__name__}: {e})") from e


def load(path: str | Path, size: int | None = None, mode: str | None = None, *, reduced: bool = False) -> np.ndarray:
    """Decodes an image file: uint8 [h, w, 3]. See `decode`.

    Raises:
        UserError: the file is missing or not a readable image.
    """
    try:
        return decode(storage.read_file(str(path), MAX_BYTES), size, mode, reduced=reduced)
    except (OSError, MediaError) as e:
        raise UserError(f"Expected an image (JPEG, PNG, WebP) in {path}; {e}. Replace the file or leave it out.") from e
