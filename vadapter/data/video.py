"""Video files to a fixed number of RGB frames, with PyAV."""

from pathlib import Path

import numpy as np
from PIL import Image

from vadapter.data import images
from vadapter.data.images import MediaError
from vadapter.errors import UserError

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ogv", ".ts")


def sample_indices(total: int, count: int) -> list[int]:
    """Returns the middle frames of `count` equal segments of `total` frames; frames repeat where there are fewer."""
    return [min(total - 1, int((i + 0.5) * total / count)) for i in range(count)]


def decode(path: str | Path, num_frames: int, size: int, mode: str = "stretch") -> np.ndarray:
    """Decodes `num_frames` frames, evenly from the whole clip.

    The frames are counted by decoding, because the counts in files are often wrong, and kept small meanwhile: of a long
    video never more than a few hundred resized frames are in memory. Reading ends at the file's end or at its first
    damaged part.

    Args:
        path: a video file that FFmpeg knows (MP4, WebM, ...).
        num_frames: frames of the result.
        size: width and height of the result in pixels.
        mode: see `images.resize`.

    Returns:
        uint8 [num_frames, size, size, 3].

    Raises:
        MediaError: no such file, no video in it, or not one frame that can be decoded.
    """
    import av

    frames: list[np.ndarray] = []
    stride, seen, keep = 1, 0, max(64, 16 * num_frames)
    try:
        with av.open(str(path), timeout=30) as container:
            if not container.streams.video:
                raise MediaError("has no video stream")
            stream = container.streams.video[0]
            stream.thread_count = 1
            try:
                for frame in container.decode(stream):
                    if seen % stride == 0:
                        if len(frames) == keep:
                            frames, stride = frames[::2], 2 * stride
                        if seen % stride == 0:
                            frames.append(_pixels(frame, size, mode))
                    seen += 1
            except av.error.FFmpegError:
                if not frames:  # the start of a truncated file is better than nothing
                    raise
    except MediaError:
        raise
    except Exception as e:  # FFmpeg's errors are of many types
        raise MediaError(f"not a readable video ({type(e).__name__}: {e})") from e
    if not frames:
        raise MediaError("has no frame that can be decoded")
    positions = np.asarray(sample_indices(seen, num_frames)) // stride
    return np.stack([frames[min(int(p), len(frames) - 1)] for p in positions])


def _pixels(frame, size: int, mode: str) -> np.ndarray:
    """One frame, turned upright (phones write the rotation beside the frames) and resized."""
    image: Image.Image = frame.to_image()
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if turns:
        image = image.rotate(90 * turns, expand=True)
    return images.resize(image, size, mode)


def load(path: str | Path, num_frames: int, size: int, mode: str = "stretch") -> np.ndarray:
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
