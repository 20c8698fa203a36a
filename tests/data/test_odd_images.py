"""Odd and broken images give the right pixels or a `MediaError`, soon."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from vadapter.base import resizing
from vadapter.data.reading import images
from vadapter.data.reading.images import MediaError

RED = (200, 30, 40)


def encode(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def plain(size=(64, 48), colour=RED):
    return Image.new("RGB", size, colour)


def noisy(size=(96, 64)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))


def quarters():
    """Red, green, blue and white quarters, to see how an image is turned."""
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 255, 0), (32, 0, 64, 16))
    image.paste((0, 0, 255), (0, 16, 32, 32))
    image.paste((255, 255, 255), (32, 16, 64, 32))
    return image


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, depth, colour_type, raw, *extra):
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + png_chunk(b"IDAT", zlib.compress(raw)) + png_chunk(b"IEND", b"")
    )


def without_segment(jpeg, marker):
    """A JPEG without its segments of one kind."""
    start = jpeg.index(b"\xff" + bytes([marker]))
    length = struct.unpack(">H", jpeg[start + 2 : start + 4])[0]
    return jpeg[:start] + jpeg[start + 2 + length :]


def with_exif(jpeg, exif):
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def tiff_of_floats(values):
    return encode(Image.fromarray(np.asarray(values, np.float32)), "TIFF")


# Images that can be read: the bytes, and the colour that the middle must have.

GREY16 = Image.fromarray(np.full((8, 8), 200 * 257, np.uint16))
CMYK = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
HALF_CLEAR = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
PALETTE = plain().convert("P", palette=Image.Palette.ADAPTIVE)
FRAMES = [Image.new("RGB", (16, 16), c) for c in ((10, 200, 10), (200, 10, 10))]
RGB_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

GOOD = {
    "jpeg": (lambda: encode(plain(), "JPEG"), RED),
    "progressive jpeg": (lambda: encode(plain(), "JPEG", progressive=True), RED),
    "grey jpeg": (lambda: encode(Image.new("L", (20, 20), 90), "JPEG"), (90, 90, 90)),
    "jpeg without subsampling": (lambda: encode(plain(), "JPEG", subsampling=0), RED),
    "cmyk jpeg of adobe, inverted": (lambda: encode(CMYK, "JPEG"), (255, 0, 0)),
    "cmyk jpeg, not inverted": (
        lambda: without_segment(encode(Image.new("CMYK", (32, 32), (255, 0, 0, 255)), "JPEG"), 0xEE),
        (255, 0, 0),
    ),
    "several pictures in a jpeg": (
        lambda: encode(FRAMES[0].copy(), "MPO", save_all=True, append_images=[f.copy() for f in FRAMES[1:]]),
        (10, 200, 10),
    ),
    "16 bit grey png": (lambda: encode(GREY16, "PNG"), (200, 200, 200)),
    "16 bit colour png": (lambda: png_of(1, 1, 16, 2, b"\0" + struct.pack(">HHH", 51400, 7710, 10280)), RED),
    "16 bit png with alpha": (lambda: png_of(1, 1, 16, 4, b"\0" + struct.pack(">HH", 25700, 65535)), (100, 100, 100)),
    "palette png": (lambda: encode(PALETTE, "PNG"), RED),
    "palette png with transparency": (
        lambda: encode(PALETTE, "PNG", transparency=PALETTE.getpixel((0, 0))),
        (255,) * 3,
    ),
    "half clear png": (lambda: encode(HALF_CLEAR, "PNG"), (127, 127, 127)),
    "grey png with alpha": (lambda: encode(Image.new("LA", (8, 8), (50, 0)), "PNG"), (255, 255, 255)),
    "grey png with a transparent value": (
        lambda: encode(Image.new("L", (8, 8), 50), "PNG", transparency=50),
        (255,) * 3,
    ),
    "1 bit png": (lambda: encode(Image.new("1", (8, 8), 1), "PNG"), (255, 255, 255)),
    "interlaced sizes": (lambda: encode(plain((1, 7)), "PNG"), RED),
    "animated gif": (
        lambda: encode(FRAMES[0].copy(), "GIF", save_all=True, append_images=[f.copy() for f in FRAMES[1:]]),
        (10, 200, 10),
    ),
    "animated webp": (
        lambda: encode(
            FRAMES[0].copy(), "WEBP", save_all=True, append_images=[f.copy() for f in FRAMES[1:]], lossless=True
        ),
        (10, 200, 10),
    ),
    "animated png": (
        lambda: encode(FRAMES[0].copy(), "PNG", save_all=True, append_images=[f.copy() for f in FRAMES[1:]]),
        (10, 200, 10),
    ),
    "gif with transparency": (lambda: encode(PALETTE, "GIF", transparency=PALETTE.getpixel((0, 0))), (255,) * 3),
    "webp with alpha": (lambda: encode(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "WEBP", lossless=True), (255,) * 3),
    "icc profile": (lambda: encode(plain(), "JPEG", icc_profile=RGB_PROFILE), RED),
    "damaged icc profile": (lambda: encode(plain(), "PNG", icc_profile=b"nonsense"), RED),
    "damaged exif": (lambda: with_exif(encode(plain(), "JPEG"), b"MM\0*\xff\xff\xff\xff garbage"), RED),
    "exif of nothing": (lambda: with_exif(encode(plain(), "JPEG"), b""), RED),
    "one pixel": (lambda: encode(plain((1, 1)), "PNG"), RED),
    "one pixel jpeg": (lambda: encode(plain((1, 1)), "JPEG"), RED),
    "very wide": (lambda: encode(plain((5000, 1)), "PNG"), RED),
    "very tall jpeg": (lambda: encode(plain((2, 6000)), "JPEG"), RED),
    "float tiff of 0..1": (lambda: tiff_of_floats(np.full((8, 8), 0.5)), (127, 127, 127)),
    "float tiff of 0..255": (lambda: tiff_of_floats(np.full((8, 8), 90.0)), (90, 90, 90)),
    "nan float tiff": (lambda: tiff_of_floats(np.full((8, 8), np.nan)), (0, 0, 0)),
    "infinite float tiff": (lambda: tiff_of_floats(np.full((8, 8), np.inf)), (255, 255, 255)),
    "tiff of several pages": (
        lambda: encode(FRAMES[0].copy(), "TIFF", save_all=True, append_images=[f.copy() for f in FRAMES[1:]]),
        (10, 200, 10),
    ),
    "cmyk tiff": (lambda: encode(CMYK, "TIFF"), (255, 0, 0)),
    "lab tiff": (lambda: encode(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"), None),
    "bmp": (lambda: encode(plain(), "BMP"), RED),
    "1 bit bmp": (lambda: encode(Image.new("1", (9, 9), 0), "BMP"), (0, 0, 0)),
    "palette bmp": (lambda: encode(PALETTE, "BMP"), RED),
    "bmp without file header": (lambda: encode(plain(), "DIB"), RED),
    "portable pixmap": (lambda: b"P3 1 1 255 200 30 40\n", RED),
    "jpeg 2000": (lambda: encode(plain(), "JPEG2000"), RED),
    "icon": (lambda: encode(plain((32, 32)), "ICO"), RED),
    "jpeg with bytes behind it": (lambda: encode(plain(), "JPEG") + b"more" * 100, RED),
    "png with bytes behind it": (lambda: encode(plain(), "PNG") + b"more" * 100, RED),
}


@pytest.mark.parametrize("mode", resizing.MODES)
@pytest.mark.parametrize("name", GOOD)
def test_odd_images_have_the_right_pixels(name, mode):
    make, colour = GOOD[name]
    pixels = images.decode(make(), 16, mode)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    if colour is not None:
        row = 8 if mode != "pad" or pixels[8].any() else 7  # a line one pixel wide is the one or the other
        column = 8 if mode != "pad" or pixels[:, 8].any() else 7
        assert np.abs(pixels[row, column].astype(int) - colour).max() <= 6


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif():
    assert np.abs(images.decode(encode(plain(), "AVIF"), 16)[8, 8].astype(int) - RED).max() <= 6


# What of the quarters comes to stand at the top left, top right, bottom left, for each orientation.
R, G, B, W = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
TURNED = {
    1: (R, G, B),
    2: (G, R, W),
    3: (W, B, G),
    4: (B, W, R),
    5: (R, B, G),
    6: (B, R, W),
    7: (W, G, B),
    8: (G, W, R),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientations(orientation):
    image = quarters()
    exif = image.getexif()
    exif[0x0112] = orientation
    pixels = images.decode(encode(image, "PNG", exif=exif))
    assert pixels.shape == ((32, 64, 3) if orientation < 5 else (64, 32, 3))
    corners = pixels[2, 2], pixels[2, -3], pixels[-3, 2]
    np.testing.assert_array_equal(corners, TURNED[orientation])


def test_an_unknown_orientation_says_nothing():
    exif = Image.Exif()
    exif[0x0112] = 99
    assert images.decode(encode(quarters(), "JPEG", exif=exif)).shape == (32, 64, 3)


# Images that cannot be read

WHOLE = {"JPEG": {}, "PNG": {}, "WEBP": {}, "GIF": {}, "TIFF": {}, "BMP": {}, "progressive": {"progressive": True}}
CUTS = [(kind, share) for kind, share in itertools.product(WHOLE, (0.02, 0.3, 0.6, 0.9))]


@pytest.mark.parametrize(("kind", "share"), CUTS)
def test_truncated_images_are_refused(kind, share):
    whole = encode(noisy(), "JPEG" if kind == "progressive" else kind, **WHOLE[kind])
    with pytest.raises(MediaError):
        images.decode(whole[: int(len(whole) * share)], 16)


def bomb_png(width, height):
    return png_of(width, height, 8, 2, b"\0")


def bomb_bmp():
    data = bytearray(encode(plain(), "BMP"))
    data[18:26] = struct.pack("<ii", 60000, 60000)
    return bytes(data)


def bomb_jpeg():
    data = bytearray(encode(plain(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    return bytes(data)


def bomb_gif():
    data = bytearray(encode(plain(), "GIF"))
    data[6:10] = struct.pack("<HH", 60000, 60000)
    return bytes(data)


BAD = {
    "nothing": lambda: b"",
    "one byte": lambda: b"\xff",
    "zeros": lambda: bytes(5000),
    "noise": lambda: np.random.default_rng(0).bytes(5000),
    "text": lambda: b"hello world",
    "a page of html": lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "json": lambda: b'{"error": "forbidden"}',
    "vector graphics": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
    "postscript, which would start another program": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    ),
    "a document": lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n",
    "heic": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
    "broken avif": lambda: b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(200),
    "huge png": lambda: bomb_png(60000, 60000),
    "huge png in one dimension": lambda: bomb_png(2**31 - 1, 1),
    "huge jpeg": bomb_jpeg,
    "huge bmp": bomb_bmp,
    "huge gif": bomb_gif,
    "png of no width": lambda: bomb_png(0, 5),
    "png with a bad checksum": lambda: encode(noisy(), "PNG").replace(b"IDAT", b"IDAT", 1)[:-30] + bytes(30),
    "png without pixels": lambda: (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0))
        + png_chunk(b"IEND", b"")
    ),
    "jpeg header only": lambda: encode(plain(), "JPEG")[:20],
    "tiff that points behind its end": lambda: b"II*\0\xff\xff\xff\x7f" + bytes(50),
    "tiff whose directory points to itself": lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
    "a video": lambda: b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41" + bytes(300),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused(name):
    with pytest.raises(MediaError):
        images.decode(BAD[name](), 16)


def test_the_message_says_what_was_found_instead_and_shows_nothing_of_it():
    with pytest.raises(MediaError, match="of a known type: 54 bytes that look like a page of the web") as error:
        images.decode(BAD["a page of html"]())
    assert "DOCTYPE" not in str(error.value)
    with pytest.raises(MediaError, match="look like text") as error:
        images.decode(b"root:x:0:0:root:/root:/bin/bash\n")
    assert "root" not in str(error.value)


@pytest.mark.parametrize("ending", ["jpg", "png", "gif", "mp4"])
def test_the_content_tells_the_type_not_the_ending(tmp_path, ending):
    (tmp_path / f"a.{ending}").write_bytes(encode(plain(), "WEBP", lossless=True))
    np.testing.assert_array_equal(images.load(tmp_path / f"a.{ending}", 16)[8, 8], RED)


def test_a_jpeg_that_lacks_its_end_mark_alone_is_read():
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        data = encode(Image.effect_noise((70, 50), 60).convert("RGB"), "JPEG", **options)
        for cut in (data[:-2], data[:-1]):
            np.testing.assert_array_equal(images.decode(cut), images.decode(data))
        for missing in (30, 200, len(data) // 2):
            with pytest.raises(MediaError):
                images.decode(data[: -2 - missing])


def test_a_png_with_a_long_compressed_text_is_read():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("a", "x" * 3_000_000, zip=True)
    np.testing.assert_array_equal(images.decode(encode(plain(), "PNG", pnginfo=texts), 16)[8, 8], RED)


def test_text_in_a_png_is_not_unpacked():
    text = png_chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(80_000_000)))
    with_text, without = (png_of(4, 4, 8, 2, b"\0" * 13 * 4, more) for more in (text, b""))
    np.testing.assert_array_equal(images.decode(with_text, 16), images.decode(without, 16))
