"""Small pictures as data URIs: a PNG for an image, an animated WebP for a video."""

import base64
import io

import numpy as np
from PIL import Image

MAX_SIDE = 192
FRAME_MS = 220
_MAGIC = {"image/png": b"\x89PNG", "image/webp": b"RIFF"}


def frames_of(media: np.ndarray) -> np.ndarray:
    """Returns uint8 [F, h, w, 3] of a picture [h, w, 3] or a video [F, h, w, 3]."""
    media = np.asarray(media)
    return media[None] if media.ndim == 3 else media


def data_uri(media: np.ndarray, max_side: int = MAX_SIDE) -> str:
    """Encodes uint8 media, [h, w, 3] or [F, h, w, 3], as a lossless data URI whose longer side is at most `max_side`.

    More than one frame becomes an animation that loops.
    """
    pictures = []
    for frame in frames_of(media):
        picture = Image.fromarray(np.ascontiguousarray(frame))
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)  # never enlarges
        pictures.append(picture)
    out = io.BytesIO()
    if len(pictures) == 1:
        kind = "image/png"
        pictures[0].save(out, "PNG", optimize=True)
    else:
        kind = "image/webp"
        pictures[0].save(
            out, "WEBP", lossless=True, save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0
        )
    return f"data:{kind};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"


def bytes_of(uri: str) -> tuple[str, bytes]:
    """Returns (`png` or `webp`, file content) of a data URI of `data_uri`. ValueError for any other text."""
    head, _, body = uri.partition(";base64,")
    kind = head.removeprefix("data:")
    if kind not in _MAGIC:
        raise ValueError(f"not a PNG or WebP data URI: {uri[:40]!r}")
    content = base64.b64decode(body, validate=True)
    if not content.startswith(_MAGIC[kind]):
        raise ValueError(f"the content is not of type {kind}")
    return kind.removeprefix("image/"), content


def uri_of(content: bytes) -> str | None:
    """Returns the data URI of a PNG's or WebP's bytes, None if they are neither."""
    for kind, magic in _MAGIC.items():
        if content.startswith(magic):
            return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return None


def frames_in(uri: str) -> list[np.ndarray]:
    """Decodes a data URI of `data_uri` into its uint8 [h, w, 3] frames."""
    picture = Image.open(io.BytesIO(bytes_of(uri)[1]))
    frames = []
    for i in range(getattr(picture, "n_frames", 1)):
        picture.seek(i)
        frames.append(np.asarray(picture.convert("RGB")))
    return frames


def is_small(uri: str) -> bool:
    """Whether a picture is so small (under 96 pixels high) that it is best enlarged with hard pixels."""
    return Image.open(io.BytesIO(bytes_of(uri)[1])).height < 96


def strip(media: np.ndarray, max_frames: int = 4, min_height: int = 128) -> np.ndarray:
    """Returns one uint8 picture [h, w, 3] of an image or of up to `max_frames` frames of a video side by side.

    Small pictures are enlarged by a whole factor, so that they can be looked at.
    """
    frames = frames_of(media)
    chosen = np.linspace(0, len(frames) - 1, min(max_frames, len(frames))).round().astype(int)
    factor = max(1, -(-min_height // frames.shape[1]))
    side_by_side = np.concatenate([frames[i] for i in chosen], axis=1)
    return side_by_side.repeat(factor, axis=0).repeat(factor, axis=1)
