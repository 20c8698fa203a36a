"""Videos of many kinds, odd and broken ones: the right frames or a `MediaError`, soon."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from tests.data.media_files import movie, patched, rotated, sound
from vadapter.data.reading import video
from vadapter.data.reading.images import MediaError

LIGHTER = list(range(10, 250, 30))  # eight frames


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm", "avi", "gif"])
def test_containers(tmp_path, ending):
    path = movie(tmp_path / f"a.{ending}", [s for s in LIGHTER for _ in range(10)])  # a GIF's times are rounded
    for source in (path, path.read_bytes()):
        frames = video.decode(source, 4, 16)
        np.testing.assert_allclose(frames.mean((1, 2, 3)), [40, 100, 160, 220], atol=6)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm", "avi", "gif"])
@pytest.mark.parametrize("count", [1, 2])
def test_very_short_clips(tmp_path, ending, count):
    frames = video.decode(movie(tmp_path / f"a.{ending}", [60, 180][:count]), 4, 16)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [60] * 4 if count == 1 else [60, 60, 180, 180], atol=6)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm", "gif"])
def test_variable_frame_rates_are_sampled_by_time(tmp_path, ending):
    """One frame stays for three seconds, eight others for a tenth each."""
    times = [0, *range(3000, 3800, 100)]
    frames = video.decode(movie(tmp_path / f"a.{ending}", [20, *range(60, 220, 20)], times=times), 8, 16)
    np.testing.assert_allclose(frames[:6].mean((1, 2, 3)), 20, atol=6)
    assert frames[7].mean() > 100


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_flags(tmp_path, degrees):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24] = 255  # light at the top
    frame = video.decode(rotated(movie(tmp_path / "a.mp4", [0] * 3, pixels=pixels), degrees), 1, 16)[0]
    side = {0: frame[:4], 90: frame[:, -4:], 180: frame[-4:], 270: frame[:, :4]}[degrees]
    assert side.mean() > 240 and frame.mean() < 150


# What a player shows of a picture whose upper left quarter is light, by the display matrix a, b, c, d.
MATRICES = {
    (1, 0, 0, 1): (0, 0),
    (-1, 0, 0, 1): (0, 1),  # mirrored left and right
    (1, 0, 0, -1): (1, 0),
    (-1, 0, 0, -1): (1, 1),
    (0, 1, -1, 0): (0, 1),
    (0, -1, 1, 0): (1, 0),
    (0, 1, 1, 0): (0, 0),
    (0, -1, -1, 0): (1, 1),
}


@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_a_display_matrix_may_mirror(tmp_path, matrix):
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255
    pixels[:12, 16:32] = 0  # no mirror maps it to itself
    path = movie(tmp_path / "a.mp4", [0] * 3, pixels=pixels)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    turned = np.asarray(matrix, float).reshape(2, 2)
    expected = np.zeros((16, 16))
    for y in range(16):
        for x in range(16):
            there = np.asarray([x - 7.5, y - 7.5]) @ turned + 7.5
            expected[int(there[1]), int(there[0])] = pixels[int(y * 3 + 1), int(x * 4 + 2), 0]
    found = video.decode(path, 1, 16)[0].mean(-1)
    assert np.abs(found - expected).mean() < 20


def test_pixels_that_are_not_square(tmp_path):
    pixels = np.full((48, 48, 3), 200, np.uint8)
    path = movie(tmp_path / "a.mp4", [0] * 3, pixels=pixels, size=(48, 48), pixel=Fraction(2, 1))
    padded = video.decode(path, 1, 16, "pad")[0].mean((1, 2))
    assert padded[:3].max() < 5 and padded[6:10].min() > 150  # twice as wide as high
    assert video.decode(path, 1, 16)[0].mean() > 150


@pytest.mark.parametrize("size", [(17, 13), (2, 2), (400, 2), (33, 17)])
def test_odd_frame_sizes(tmp_path, size):
    path = movie(tmp_path / "a.mkv", [90] * 4, size=size, codec="ffv1")
    np.testing.assert_allclose(video.decode(path, 2, 16).mean(), 90, atol=4)


def with_duration(path, factor):
    """Changes the durations that an MP4 states, in its headers and in its track."""
    data = bytearray(path.read_bytes())
    for box, at in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        start = data.index(box) + at
        value = int(struct.unpack(">I", data[start : start + 4])[0] * factor)
        data[start : start + 4] = struct.pack(">I", value)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("factor", [0, 0.1, 1.5, 100])
def test_wrong_durations_do_not_matter(tmp_path, factor):
    frames = video.decode(with_duration(movie(tmp_path / "a.mp4", LIGHTER), factor), 4, 16)
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [40, 100, 160, 220], atol=6)


@pytest.mark.parametrize("factor", [0, 0.1, 10])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_of_very_large_files_the_end_is_looked_for(tmp_path, monkeypatch, factor, ending):
    path = movie(tmp_path / f"a.{ending}", LIGHTER, keys_every=2)
    monkeypatch.setattr(video, "MAX_SCANNED_BYTES", 1)
    if ending == "mp4":
        with_duration(path, factor)
    np.testing.assert_allclose(video.decode(path, 4, 16).mean((1, 2, 3)), [40, 100, 160, 220], atol=6)


def test_of_very_large_files_a_duration_that_is_believed_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_SCANNED_BYTES", 1)
    path = movie(tmp_path / "a.mp4", LIGHTER, keys_every=2)
    np.testing.assert_allclose(video.decode(path, 4, 16).mean((1, 2, 3)), [40, 100, 160, 220], atol=6)
    np.testing.assert_allclose(video.decode(path, 2, 16, sampling="centre").mean((1, 2, 3)), [100, 130], atol=6)
    monkeypatch.setattr(video._Clip, "_believed", lambda *_: [0, 1 << 40])  # a duration that is far too long
    np.testing.assert_allclose(video.decode(path, 2, 16).mean((1, 2, 3)), [10, 220], atol=6)


def test_a_long_video_is_not_decoded_as_a_whole(tmp_path, monkeypatch):
    path = movie(tmp_path / "a.mp4", [i // 100 for i in range(2400)], rate=24, keys_every=12, size=(32, 32))
    decoded = []
    real = video._Clip._decoded
    monkeypatch.setattr(video._Clip, "_decoded", lambda self: (decoded.append(1) or f for f in real(self)))
    frames = video.decode(path, 8, 16)
    assert len(decoded) < 8 * 15
    np.testing.assert_allclose(frames.mean((1, 2, 3)), [1, 4, 7, 10, 13, 16, 19, 22], atol=2)


def test_random_and_centre_sampling(tmp_path):
    path = movie(tmp_path / "a.mp4", range(0, 250, 5), keys_every=5)
    drawn = [video.decode(path, 5, 16, sampling="random", seed=s).mean((1, 2, 3)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 4 and (np.diff(drawn[0]) > 0).all()
    for shades in drawn:  # one in each fifth
        assert ((shades + 3) // 50 == range(5)).all()
    middle = video.decode(path, 4, 16, sampling="centre").mean((1, 2, 3))
    np.testing.assert_allclose(middle, [115, 120, 125, 130], atol=5)


def test_broken_packets_are_passed_over(tmp_path):
    path = movie(tmp_path / "a.mkv", [s for s in LIGHTER for _ in range(4)], keys_every=4, size=(128, 96))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\x55" * 40
    path.write_bytes(bytes(data))
    shades = video.decode(path, 4, 16).mean((1, 2, 3))
    np.testing.assert_allclose(shades[[0, 3]], [40, 220], atol=40)


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_the_start_of_a_truncated_stream_is_used(tmp_path, share):
    path = movie(tmp_path / "a.webm", [120] * 40, keys_every=4)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    np.testing.assert_allclose(video.decode(path, 4, 16).mean((1, 2, 3)), 120, atol=6)


def test_an_mp4_whose_header_comes_first_may_be_truncated(tmp_path):
    path = movie(tmp_path / "a.mp4", [120] * 40, keys_every=4, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])
    np.testing.assert_allclose(video.decode(path, 4, 16).mean((1, 2, 3)), 120, atol=6)


def test_a_cover_is_not_a_video(tmp_path):
    """Sound is passed over, and so is the picture that goes with it."""
    frames = video.decode(movie(tmp_path / "a.mp4", [70] * 8, audio=True), 2, 16)
    np.testing.assert_allclose(frames.mean(), 70, atol=6)


def truncated(share):
    def make(folder):
        path = movie(folder / "a.mp4", LIGHTER)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return make


def no_frames(folder):
    """A container with a video stream and not one packet of it."""
    import av

    with av.open(str(folder / "a.mkv"), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.open()
        file.start_encoding()
    return folder / "a.mkv"


def of(data, name="a.mp4"):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def all_broken(folder):
    path = movie(folder / "a.mp4", LIGHTER, size=(64, 64))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    end = data.index(b"moov") - 4
    data[start:end] = bytes(end - start)
    path.write_bytes(bytes(data))
    return path


def huge(folder):
    """30000 x 30000 pixels, as the file says."""
    path = movie(folder / "a.mp4", LIGHTER, codec="mjpeg")
    return patched(path, b"\xff\xc0", 5, struct.pack(">HH", 30000, 30000))


BAD_VIDEOS = {
    "missing": lambda folder: folder / "a.mp4",
    "a folder": lambda folder: folder,
    "nothing": of(b""),
    "text": of(b"hello" * 100),
    "html": of(b"<!DOCTYPE html><html>404</html>"),
    "noise": of(np.random.default_rng(0).bytes(20000)),
    "zeros": of(bytes(20000)),
    "riff without streams": of(b"RIFF\x04\0\0\0AVI LIST", "a.avi"),
    "gif header only": of(b"GIF89a\x10\0\x10\0\0\0\0", "a.gif"),
    "sound only": lambda folder: sound(folder / "a.mp4"),
    "no frames": no_frames,
    "all packets broken": all_broken,
    "huge frames": huge,
    "header cut off": truncated(0.5),
    "header cut": truncated(0.75),
    "a few bytes": truncated(0.01),
}


@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_bad_videos_are_refused(tmp_path, name):
    with pytest.raises(MediaError):
        video.decode(BAD_VIDEOS[name](tmp_path), 4, 16)


def test_work_on_a_video_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_SECONDS", -1.0)
    with pytest.raises(MediaError, match="takes more than"):
        video.decode(movie(tmp_path / "a.mp4", LIGHTER), 4, 16)


def test_frames_of_too_many_pixels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 1000)
    with pytest.raises(MediaError, match="frames of 64x48 pixels"):
        video.decode(movie(tmp_path / "a.mp4", LIGHTER), 4, 16)
