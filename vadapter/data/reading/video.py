"""Video files to a fixed number of RGB frames, with PyAV.

Which frames are taken depends on their times, not on their numbers: files have variable frame rates. Durations and
counts written in a file are often wrong, so the times are read from its packets, which costs reading but no decoding;
only what lies between a wanted frame and the key frame before it is decoded.
"""

import bisect
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vadapter.base import local_files, resizing
from vadapter.base.errors import UserError
from vadapter.data.reading import images
from vadapter.data.reading.images import MediaError

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ogv", ".ts")
SAMPLING = ("uniform", "centre", "random")
_MAX_RATIO = 8  # of the sides of a pixel; anamorphic films have up to 2
MAX_SECONDS = 60.0  # of work on one clip
MAX_FRAME_PIXELS = 8192 * 8192
MAX_FRAMES = 2_000_000  # of a clip, 18 hours of them
# Of larger files the packets are not all read: only those behind the last key frame, for the end.
MAX_SCANNED_BYTES = 1 << 28
_IO_TIMEOUT = 30.0
_LAST = 1 << 50  # a time behind the end of any clip
# A file of another kind, such as a playlist, would have FFmpeg open what it names: files of this machine, or addresses.
_FORMATS = (
    "mov,matroska,webm,avi,gif,mpeg,mpegts,mpegvideo,ogg,flv,asf,webp_pipe,apng,ivf,m4v,h264,hevc,mjpeg,mxf,dv,nut,rm"
)
_OPTIONS = {"format_whitelist": _FORMATS}


def check_sampling(sampling: str) -> None:
    """Raises `UserError` unless `sampling` is one of `SAMPLING`."""
    if sampling not in SAMPLING:
        raise UserError(
            f"Expected frame_sampling to be one of {', '.join(SAMPLING)}; found {sampling!r}. Choose one of them."
        )


def sample_times(start: float, end: float, count: int, sampling: str = "uniform", seed: int = 0) -> np.ndarray:
    """Returns `count` ascending moments of [start, end), one in each of so many equal segments.

    Args:
        start: when the first frame appears.
        end: when the last frame disappears.
        count: how many.
        sampling: `uniform` takes the middle of a segment, `random` a moment in it. (`centre` is not a matter of time:
            see `decode`.)
        seed: of `random`.
    """
    offsets = np.random.default_rng(abs(seed)).random(count) if sampling == "random" else np.full(count, 0.5)
    return start + (np.arange(count) + offsets) * (end - start) / count


def sample_indices(total: int, count: int, sampling: str = "uniform", seed: int = 0) -> list[int]:
    """Returns `count` of `total` frames of equal length, as `decode` does; frames repeat where there are fewer."""
    if sampling == "centre":
        return _centred(total, total // 2, count)
    return [min(total - 1, int(t)) for t in sample_times(0, total, count, sampling, seed)]


def _centred(total: int, middle: int, count: int) -> list[int]:
    """`count` consecutive frames around frame `middle`, moved inwards at the ends."""
    first = min(max(middle - count // 2, 0), max(total - count, 0))
    return [min(first + i, total - 1) for i in range(count)]


def from_images(
    encoded: Sequence[bytes],
    num_frames: int,
    size: int,
    mode: str | None = None,
    sampling: str = "uniform",
    seed: int = 0,
) -> np.ndarray:
    """Decodes frames of a clip that is stored as encoded images. Arguments and result as in `decode`.

    Raises:
        MediaError: there are no frames, or one that is chosen is damaged.
    """
    if not len(encoded):
        raise MediaError("has no frames")
    chosen = sample_indices(len(encoded), num_frames, sampling, seed)
    decoded = {i: images.decode(encoded[i], size, mode) for i in set(chosen)}
    return np.stack([decoded[i] for i in chosen])


def decode(
    source: str | Path | bytes,
    num_frames: int,
    size: int,
    mode: str | None = None,
    sampling: str = "uniform",
    seed: int = 0,
    *,
    max_seconds: float | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Decodes `num_frames` frames of a clip.

    Damaged parts are passed over: the last good frame before a wanted moment, or the first after, takes its place.

    Args:
        source: a video file that FFmpeg knows (MP4, WebM, MKV, AVI, GIF, ...), or its bytes.
        num_frames: frames of the result. A clip with fewer repeats them.
        size: width and height of the result in pixels.
        mode: see `images.resize`.
        sampling: `uniform`, the frames in the middle of so many segments of equal duration; `random`, a frame at a
            random moment of each segment; `centre`, so many consecutive frames around the middle.
        seed: of `random`: the same seed takes the same frames.
        max_seconds: of work; default `MAX_SECONDS`.
        max_pixels: of a frame; default `MAX_FRAME_PIXELS`.

    Returns:
        uint8 [num_frames, size, size, 3].

    Raises:
        MediaError: no such file, no video in it, not one frame that can be decoded, frames of more than
            `max_pixels`, or more than `max_seconds` of work.
        UserError: unknown `sampling`.
    """
    import av

    check_sampling(sampling)
    try:
        length = local_files.check(source).st_size if not isinstance(source, bytes) else len(source)
        opened = io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.path.abspath(source)}"
        with av.open(opened, timeout=_IO_TIMEOUT, options=_OPTIONS) as file:
            pixels = MAX_FRAME_PIXELS if max_pixels is None else max_pixels
            seconds = MAX_SECONDS if max_seconds is None else max_seconds
            clip = _Clip(file, length <= MAX_SCANNED_BYTES, seconds, pixels)
            wanted = clip.wanted(num_frames, sampling, seed)
            return clip.frames(wanted, lambda frame: _pixels(frame, size, mode, clip.pixel_ratio, pixels))
    except MediaError:
        raise
    except Exception as e:  # FFmpeg's errors are of many types
        raise MediaError(f"not a readable video ({type(e).__name__}: {e})") from e


class _Clip:
    """An open file's video, with the times of its frames in units of the stream's time base."""

    def __init__(self, file: Any, scan: bool, max_seconds: float, max_pixels: int):
        """`scan`: read all packets for the frames' times; otherwise believe the file's duration."""
        self._seconds, self._until = max_seconds, time.monotonic() + max_seconds
        self._file = file
        self._stream = _video_stream(file)
        self._stream.thread_count = 1
        self._at_start = True
        self.pixel_ratio = _pixel_ratio(self._stream)
        context = self._stream.codec_context
        if context.width * context.height > max_pixels:
            raise MediaError(f"frames of {context.width}x{context.height} pixels are more than {max_pixels}")
        self._times, self._keys, self._end = self._scan() if scan else ([], [], 0)
        self._exact: set[int] = set()  # times of wanted frames, where they are known
        if scan and not self._times:
            raise MediaError("has no frames")

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise MediaError(f"takes more than {self._seconds:g} seconds to read")

    def _packets(self) -> Iterator[Any]:
        """The stream's packets from where the file stands, to its end or to the first part that cannot be read."""
        import av

        self._at_start = False
        packets = self._file.demux(self._stream)
        while True:
            self._check_time()
            try:
                yield next(packets)
            except (StopIteration, av.error.FFmpegError):
                return

    def _scan(self) -> tuple[list[int], list[int], int]:
        """Returns the times of frames, of key frames, and of the end, and goes back to the start."""
        times, keys, end = [], [], 0
        for packet in self._packets():
            when = packet.pts if packet.pts is not None else packet.dts
            if when is None or not packet.size or packet.is_discard:
                continue
            times.append(when)
            if len(times) > MAX_FRAMES:
                raise MediaError(f"has more than {MAX_FRAMES} frames")
            end = max(end, when + (packet.duration or 0))
            if packet.is_keyframe:
                keys.append(when)
        times.sort()
        if times and end <= times[-1]:  # the last frame has no duration: as long as frames are on average
            end = times[-1] + max((times[-1] - times[0]) // max(len(times) - 1, 1), 1)
        return times, sorted(keys), end

    def _find_end(self) -> int:
        """Returns the time at which the last frame ends, 0 where the file cannot be searched."""
        if not self._seek(_LAST):
            return 0
        return self._scan()[2]

    def wanted(self, count: int, sampling: str, seed: int) -> list[int]:
        """Returns the ascending times of the frames to take."""
        if not self._times:
            return self._believed(count, sampling, seed)
        times = self._times
        if sampling == "centre":
            middle = bisect.bisect_right(times, (times[0] + self._end) // 2) - 1
            return [times[i] for i in _centred(len(times), middle, count)]
        moments = sample_times(times[0], self._end, count, sampling, seed)
        return [times[max(bisect.bisect_right(times, moment) - 1, 0)] for moment in moments]

    def _believed(self, count: int, sampling: str, seed: int) -> list[int]:
        """`wanted`, from the rate that the file states, and from its end, or else the duration that it states."""
        stream, base = self._stream, Fraction(self._stream.time_base)
        start = stream.start_time or 0
        stated = stream.duration or (self._file.duration or 0) / (1_000_000 * base)
        duration = max(self._find_end() - start, 0) or stated
        if duration <= 0:
            raise MediaError(f"states no duration, and has more than {MAX_SCANNED_BYTES} bytes to look for it")
        if sampling == "centre":
            step = 1 / (Fraction(stream.average_rate or 25) * base)
            first = start + (duration - count * step) / 2
            return [int(first + i * step) for i in range(count)]
        return [int(t) for t in sample_times(start, float(start + duration), count, sampling, seed)]

    def frames(self, wanted: list[int], pixels: Callable[[Any], np.ndarray]) -> np.ndarray:
        """Returns for each time the frame that is visible then, or the nearest that can be decoded.

        Args:
            wanted: ascending times.
            pixels: makes an array of a frame. Frames are not kept, as they may be large.
        """
        self._exact = set(wanted) & set(self._times)
        for seek in (True, False):  # without, where the file's index leads astray
            found = self._frames(wanted, seek, pixels)
            if found is not None:
                return np.stack(found)
        raise MediaError("has no frame that can be decoded")

    def _frames(self, wanted: list[int], seek: bool, pixels: Callable[[Any], np.ndarray]) -> list[np.ndarray] | None:
        """`frames`; None if seeking went wrong, or nothing could be decoded."""
        if not self._go_to_start():
            return None
        found: list[np.ndarray] = []
        position, last, before = None, None, None
        decoded = self._decoded()
        current = next(decoded, None)
        for when in wanted:
            if seek and self._far(position, when) and self._seek(when):
                decoded, last = self._decoded(), None
                current = next(decoded, None)
                if current is None or current.pts is None or current.pts > when:
                    return None
            while current is not None and (current.pts is None or current.pts <= when):
                last, current = current, next(decoded, None)
            position = when
            taken = current if last is None else last
            if taken is None:
                return None
            found.append(found[-1] if taken is before else pixels(taken))
            before = taken
        return found

    def _far(self, position: int | None, when: int) -> bool:
        """Whether a key frame lies between, so that seeking saves work."""
        if not self._times:
            return position is None or (when - position) * self._stream.time_base > 2
        before = bisect.bisect_right(self._keys, when) - 1
        first = self._times[0] if position is None else position
        return before >= 0 and self._keys[before] > first

    def _go_to_start(self) -> bool:
        """Goes to the first frame. A file that cannot go back is a `MediaError`."""
        return self._at_start or self._seek(min(self._stream.start_time or 0, *(self._times[:1] or [0]), 0))

    def _seek(self, when: int) -> bool:
        import av

        try:
            self._file.seek(when, stream=self._stream, backward=True)
        except av.error.FFmpegError:
            return False
        return True

    def _decoded(self) -> Iterator[Any]:
        """Frames from where the file stands, without some that are not wanted and that no other frame needs.

        Packets that cannot be decoded are passed over.
        """
        import av

        context = self._stream.codec_context
        for packet in self._packets():
            unwanted = self._exact and packet.pts is not None and packet.pts not in self._exact
            context.skip_frame = "NONREF" if unwanted else "DEFAULT"
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                continue


def _video_stream(file: Any) -> Any:
    """The first video that is not the cover of a piece of music."""
    import av

    for stream in file.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    raise MediaError("has no video stream")


def _pixels(frame: Any, size: int, mode: str | None, ratio: float, max_pixels: int) -> np.ndarray:
    """One frame with square pixels, turned upright (phones write the rotation beside the frames) and resized.

    Args:
        frame: decoded.
        size, mode: see `decode`.
        ratio: width over height of its pixels.
        max_pixels: see `decode`.
    """
    if frame.width * frame.height > max_pixels:
        raise MediaError(f"frames of {frame.width}x{frame.height} pixels are more than {max_pixels}")
    image: Image.Image = frame.to_image()
    if ratio != 1 and resizing.parse(mode).mode != "stretch":
        image = image.resize((max(1, round(image.width * ratio)), image.height), Image.Resampling.BICUBIC)
    if (mirrored := _mirrored(frame)) is not None:
        return images.resize(image.transpose(mirrored), size, mode)
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if turns:
        image = image.rotate(90 * turns, expand=True)
    return images.resize(image, size, mode)


def _mirrored(frame: Any) -> Image.Transpose | None:
    """How a frame is turned whose display matrix mirrors it, of which `rotation` says a half only; None of others."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data)[:20], "<i4").astype(np.float64)
            if a * d - b * c >= 0:
                return None
            if abs(a) + abs(d) > abs(b) + abs(c):
                return Image.Transpose.FLIP_LEFT_RIGHT if a < 0 else Image.Transpose.FLIP_TOP_BOTTOM
            return Image.Transpose.TRANSPOSE if b > 0 else Image.Transpose.TRANSVERSE
    return None


def _pixel_ratio(stream: Any) -> float:
    """Width over height of a pixel, 1 where the file says nothing or nonsense."""
    ratio = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
    return float(ratio) if ratio and 1 / _MAX_RATIO <= ratio <= _MAX_RATIO else 1.0


def load(path: str | Path, num_frames: int, size: int, mode: str | None = None) -> np.ndarray:
    """Decodes a video file: uint8 [num_frames, size, size, 3]. See `decode`.

    Raises:
        UserError: the file is missing, not a video, or has no readable frame.
    """
    try:
        return decode(path, num_frames, size, mode)
    except MediaError as e:
        raise UserError(f"Expected a video (MP4, WebM, ...) in {path}; {e}. Replace the file or leave it out.") from e


def is_video(path: str | Path) -> bool:
    """Whether the file's name ends like a video's."""
    return Path(path).suffix.lower() in SUFFIXES
