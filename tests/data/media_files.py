"""Videos for tests in several containers, with known frames at known times."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

CODECS = {"mp4": "mpeg4", "mov": "mpeg4", "mkv": "mpeg4", "avi": "mpeg4", "webm": "libvpx", "gif": "gif"}


def movie(
    path,
    shades: Sequence[int],
    *,
    times: Sequence[int] | None = None,
    rate: int = 8,
    size: tuple[int, int] = (64, 48),
    codec: str = "",
    keys_every: int = 12,
    options: dict | None = None,
    audio: bool = False,
    pixels=None,
    pixel: Fraction = Fraction(1, 1),
):
    """Writes a video whose frame i is grey `shades[i]`, and returns the path.

    Args:
        path: its ending chooses the container.
        shades: grey of each frame.
        times: when each frame appears, in milliseconds; by default `rate` frames a second.
        rate: see `times`.
        size: width and height.
        codec: the default is one that fits the container.
        keys_every: frames from one key frame to the next.
        options: of the container.
        audio: adds a silent audio stream.
        pixels: uint8 [h, w, 3] of every frame instead of grey.
        pixel: width over height of a pixel.
    """
    import av

    ending = str(path).rsplit(".", 1)[-1]
    with av.open(str(path), "w", options=options or {}) as file:
        stream: Any = file.add_stream(codec or CODECS[ending], rate=1000 if times else rate)
        stream.width, stream.height = size
        if pixel != 1:
            stream.codec_context.sample_aspect_ratio = pixel
        stream.pix_fmt = "rgb8" if ending == "gif" else "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = keys_every
        stream.codec_context.time_base = Fraction(1, 1000 if times else rate)
        sound: Any = file.add_stream("aac" if ending in ("mp4", "mov") else "libopus", rate=48000) if audio else None
        for i, shade in enumerate(shades):
            image = np.full((size[1], size[0], 3), shade, np.uint8) if pixels is None else pixels
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = times[i] if times else i, stream.codec_context.time_base
            file.mux(stream.encode(frame))
        if sound is not None:
            silence = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            silence.sample_rate, silence.pts = 48000, 0
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            file.mux(sound.encode(silence))
            file.mux(sound.encode(None))
        file.mux(stream.encode(None))
    return path


def claiming(path, frames: int) -> bytes:
    """An MP4 of four frames whose tables claim another number of them."""
    content = bytearray(movie(path, [0, 80, 160, 240]).read_bytes())
    for table in (b"stts", b"stsz"):
        at = content.index(table) + 12
        content[at : at + 4] = frames.to_bytes(4, "big")
    return bytes(content)


def sound(path):
    """Writes a file with audio only."""
    import av

    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("aac", rate=48000)
        for i in range(10):
            frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
            frame.sample_rate, frame.pts = 48000, i * 1024
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def patched(path, what: bytes, offset: int, value: bytes):
    """Overwrites bytes `offset` behind each occurrence of `what` in a file."""
    data = bytearray(path.read_bytes())
    start = data.find(what)
    if start < 0:
        raise ValueError(f"{path} has no {what!r}")
    while start >= 0:
        data[start + offset : start + offset + len(value)] = value
        start = data.find(what, start + 1)
    path.write_bytes(bytes(data))
    return path


def rotated(path, degrees: int):
    """Turns an MP4's display matrix: players show it `degrees` clockwise."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    matrix = at + (40 if data[at] == 0 else 52)
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    for i, value in enumerate((cos, sin, 0, -sin, cos, 0)):
        data[matrix + 4 * i : matrix + 4 * i + 4] = (value * 65536).to_bytes(4, "big", signed=True)
    path.write_bytes(bytes(data))
    return path
