"""Decoding of image and video files."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.files import clip, picture
from vadapter.base.errors import UserError
from vadapter.data.reading import images, video


def encode(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif"])
def test_files_of_any_format(tmp_path, ending):
    pixels = images.load(picture(tmp_path / f"a.{ending}"), size=16)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (200, 30, 30)).max() < 8


def test_odd_modes_become_rgb():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    np.testing.assert_array_equal(images.decode(encode(clear, "PNG")), 255)
    palette = Image.new("RGB", (4, 4), (0, 0, 255)).convert("P")
    np.testing.assert_array_equal(images.decode(encode(palette, "PNG"))[0, 0], (0, 0, 255))
    deep = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    np.testing.assert_array_equal(images.decode(encode(deep, "PNG")), 127)
    print_colours = Image.new("CMYK", (8, 8), (0, 0, 0, 0))
    assert images.decode(encode(print_colours, "JPEG")).min() > 250


def test_exif_rotation_is_applied():
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    assert images.decode(encode(image, "JPEG", exif=exif)).shape == (20, 10, 3)


def test_resize_modes():
    wide = Image.new("RGB", (40, 20), (9, 9, 9))
    wide.paste((200, 200, 200), (10, 0, 30, 20))
    data = encode(wide, "PNG")
    assert images.decode(data, 20, "stretch")[10, 0, 0] == 9
    assert images.decode(data, 20, "crop").min() > 100
    assert images.decode(data, 20, "pad")[0].max() == 0
    with pytest.raises(UserError, match="found 'squeeze'"):
        images.resize(wide, 20, "squeeze")


def test_damaged_and_missing_images_are_named(tmp_path):
    whole = picture(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    for name, data in (
        ("none.png", None),
        ("text.png", b"hello"),
        ("cut.jpg", whole[: len(whole) // 2]),
        ("e.png", b""),
    ):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name):
            images.load(tmp_path / name)


def test_huge_images_are_refused(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    with pytest.raises(images.MediaError, match="more than 100"):
        images.decode(encode(Image.new("RGB", (20, 20)), "PNG"))


def test_sampling_takes_the_middle_of_equal_segments():
    assert video.sample_indices(8, 4) == [1, 3, 5, 7]
    assert video.sample_indices(100, 2) == [25, 75]
    assert video.sample_indices(2, 4) == [0, 0, 1, 1]
    assert video.sample_indices(1, 3) == [0, 0, 0]


def test_frames_come_in_order_from_the_whole_clip(tmp_path):
    frames = video.load(clip(tmp_path / "a.mp4", range(10, 250, 30)), 4, 16)
    assert frames.shape == (4, 16, 16, 3)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [40, 100, 160, 220], atol=6)


def test_long_videos_are_thinned_not_cut(tmp_path):
    frames = video.load(clip(tmp_path / "a.mp4", [10] * 150 + [200] * 150), 4, 16)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [10, 10, 200, 200], atol=6)


def test_short_clips_repeat_frames(tmp_path):
    frames = video.load(clip(tmp_path / "a.mp4", [20, 200]), 4, 16)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [20, 20, 200, 200], atol=6)


def test_damaged_and_missing_videos_are_named(tmp_path):
    (tmp_path / "text.mp4").write_bytes(b"hello" * 100)
    whole = clip(tmp_path / "whole.mp4", [50] * 8).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[:200])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("none.mp4", "text.mp4", "cut.mp4", "empty.mp4"):
        with pytest.raises(UserError, match=name):
            video.load(tmp_path / name, 4, 16)
