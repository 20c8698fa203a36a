"""Small pictures: a PNG for an image, an animated WebP for a video, or JPEG strips of frames of many examples."""

import base64
import hashlib
import io

import numpy as np
from PIL import Image

MAX_SIDE = 192
FRAME_MS = 220
STRIP_FRAMES = 4
_MAGIC = {"image/png": b"\x89PNG", "image/webp": b"RIFF"}
_GAP = 3  # white pixels between the frames of a strip


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


def jpeg_strip(media: np.ndarray, max_side: int = MAX_SIDE) -> bytes:
    """Encodes uint8 media, [h, w, 3] or [F, h, w, 3], as one JPEG.

    A video is up to `STRIP_FRAMES` of its frames, evenly spread from the first to the last, side by side. A frame's
    longer side is at most `max_side`; frames under half of it are enlarged by a whole factor, with hard pixels.
    """
    frames = frames_of(media)
    chosen = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round().astype(int)
    pictures = []
    for i in chosen:
        picture = Image.fromarray(np.ascontiguousarray(frames[i]))
        factor = max_side // max(picture.size)
        if factor > 1:
            picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        picture.thumbnail((max_side, max_side), Image.Resampling.BILINEAR)
        pictures.append(picture)
    width, height = pictures[0].size
    strip_of_all = Image.new("RGB", (len(pictures) * (width + _GAP) - _GAP, height), "white")
    for place, picture in enumerate(pictures):
        strip_of_all.paste(picture, (place * (width + _GAP), 0))
    out = io.BytesIO()
    strip_of_all.save(out, "JPEG", quality=85)
    return out.getvalue()


def is_strip(uri: str) -> bool:
    """Whether a data URI of `Pictures` shows several frames side by side."""
    width, height = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size
    return width > 2 * height


class Pictures:
    """JPEG strips of many examples, in bounded memory, until it is known which of them are wanted.

    Examples with the same pixels (questions about one image) share a picture. Once the limit is reached no more are
    kept.
    """

    def __init__(self, limit: int = 1 << 29):
        """`limit`: bytes of all JPEGs together; a picture has about 10 kB."""
        self._limit = limit
        self._size = 0
        self._content: dict[str, bytes] = {}

    def __len__(self) -> int:
        return len(self._content)

    def add(self, media: np.ndarray) -> str | None:
        """Keeps the picture of uint8 media, [h, w, 3] or [F, h, w, 3].

        Returns:
            Its name, which follows from the pixels alone; None where the limit is reached.
        """
        media = np.ascontiguousarray(media)
        name = hashlib.blake2b(repr(media.shape).encode() + media.tobytes(), digest_size=12).hexdigest()
        if name not in self._content:
            if self._size >= self._limit:
                return None
            self._content[name] = jpeg_strip(media)
            self._size += len(self._content[name])
        return name

    def uri(self, name: str) -> str | None:
        """The picture as a data URI; None if it is not here."""
        content = self._content.get(name)
        return None if content is None else f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"
