"""Pictures for pages: small lossless ones (an animation of a video), and strips of frames side by side."""

import base64
import hashlib
import io

import numpy as np
from PIL import Image

_SIDE = 192  # longest side of a picture
_FRAME_MS = 220
_STRIP_FRAMES = 4
_STRIP_HEIGHT = 128  # least height of a strip of pixels
_INPUT_FRAMES, _INPUT_SIDE, _INPUT_LOSSLESS = 8, 224, 96
_MAGIC = {"image/png": b"\x89PNG", "image/webp": b"RIFF"}
_GAP = 3  # white pixels between the frames of a strip


def frames_of(media: np.ndarray) -> np.ndarray:
    """Returns uint8 [F, h, w, 3] of a picture [h, w, 3] or a video [F, h, w, 3]."""
    media = np.asarray(media)
    return media[None] if media.ndim == 3 else media


def _some(frames: np.ndarray, most: int) -> np.ndarray:
    """Up to `most` frames, evenly spread from the first to the last."""
    return frames[np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int)]


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def data_uri(media: np.ndarray) -> str:
    """Encodes uint8 media, [h, w, 3] or [F, h, w, 3], as a lossless data URI whose longer side is at most 192.

    More than one frame becomes an animation that loops.
    """
    pictures = []
    for frame in frames_of(media):
        picture = Image.fromarray(np.ascontiguousarray(frame))
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)  # never enlarges
        pictures.append(picture)
    out = io.BytesIO()
    if len(pictures) == 1:
        kind = "image/png"
        pictures[0].save(out, "PNG", optimize=True)
    else:
        kind = "image/webp"
        pictures[0].save(
            out, "WEBP", lossless=True, save_all=True, append_images=pictures[1:], duration=_FRAME_MS, loop=0
        )
    return _uri(kind, out.getvalue())


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
            return _uri(kind, content)
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


def strip(media: np.ndarray) -> np.ndarray:
    """Returns one uint8 picture [h, w, 3] of an image or of up to four frames of a video side by side.

    Small pictures are enlarged by a whole factor, so that they can be looked at.
    """
    frames = _some(frames_of(media), _STRIP_FRAMES)
    factor = max(1, -(-_STRIP_HEIGHT // frames.shape[1]))
    side_by_side = np.concatenate(list(frames), axis=1)
    return side_by_side.repeat(factor, axis=0).repeat(factor, axis=1)


def jpeg_strip(media: np.ndarray) -> bytes:
    """Encodes uint8 media, [h, w, 3] or [F, h, w, 3], as one JPEG.

    A video is up to four of its frames, evenly spread from the first to the last, side by side. A frame's longer side
    is at most 192; frames under half of it are enlarged by a whole factor, with hard pixels.
    """
    pictures = []
    for frame in _some(frames_of(media), _STRIP_FRAMES):
        picture = Image.fromarray(np.ascontiguousarray(frame))
        factor = _SIDE // max(picture.size)
        if factor > 1:
            picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        pictures.append(picture)
    width, height = pictures[0].size
    strip_of_all = Image.new("RGB", (len(pictures) * (width + _GAP) - _GAP, height), "white")
    for place, picture in enumerate(pictures):
        strip_of_all.paste(picture, (place * (width + _GAP), 0))
    out = io.BytesIO()
    strip_of_all.save(out, "JPEG", quality=85)
    return out.getvalue()


def input_uri(media: np.ndarray) -> str:
    """Encodes media as an encoder gets them: a data URI of up to eight frames side by side.

    Args:
        media: uint8 [h, w, 3] or [F, h, w, 3].

    Returns:
        A PNG where the frames are small, else a JPEG with frames of at most 224 pixels.
    """
    frames = frames_of(media)
    small = frames.shape[1] <= _INPUT_LOSSLESS
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in _some(frames, _INPUT_FRAMES)]
    for picture in pictures:
        picture.thumbnail((_INPUT_SIDE, _INPUT_SIDE), Image.Resampling.LANCZOS)  # never enlarges
    out = io.BytesIO()
    joined = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    joined.save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    return _uri("image/png" if small else "image/jpeg", out.getvalue())


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
        return None if content is None else _uri("image/jpeg", content)
