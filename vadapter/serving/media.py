"""Pictures and videos of a request: from the part of a message to pixels of the model's size, within bounds."""

import io
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from vadapter.data.reading import conversations, images, video
from vadapter.data.reading.conversations import File
from vadapter.data.reading.images import MediaError
from vadapter.data.rows.sizes import Sizes
from vadapter.serving.api_errors import wrong
from vadapter.serving.limits import Limits

Fetch = Callable[[str], bytes]
_DECODED = threading.Semaphore(2)  # at the same time: more would take processors and memory from the model
_KINDS = {"image_url": "image", "video_url": "video"}


def url_of(part: Mapping[str, Any], place: str) -> tuple[str, str]:
    """Returns (image or video, address) of a part of a message.

    Raises:
        ApiError: it is not {"type": "image_url", "image_url": {"url": ...}}, or the same of a video.
    """
    kind = part["type"]
    value = part.get(kind)
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str) or not url:
        raise wrong(f'{place} has no address: write {{"type": "{kind}", "{kind}": {{"url": "data:..."}}}}.', "messages")
    return _KINDS[kind], url


def is_media(kind: Any) -> bool:
    """Whether a part of this type is an image or a video."""
    return isinstance(kind, str) and kind in _KINDS


def content_of(url: str, place: str, fetch: Fetch | None) -> bytes:
    """Returns the bytes behind an address: a data: URL, or one that may be fetched.

    Raises:
        ApiError: the data are damaged, or the address is of another kind. A path is never read: it would be a file of
            the server.
    """
    start = url[:8].lower()
    if start.startswith("data:"):
        try:
            return conversations.data_url(url)
        except ValueError as e:
            raise wrong(f"{place} {e}.", "messages") from None
    if start.startswith(("http://", "https://")):
        if fetch is None:
            raise wrong(
                f"{place} is an address of the web, and this server fetches none: send a data: URL.", "messages"
            )
        return fetch(url)
    raise wrong(
        f"{place} is neither a data: URL nor an address of the web; files of the server are not read.", "messages"
    )


def read(file: File, place: str, sizes: Sizes, resize: str, limits: Limits) -> np.ndarray:
    """Decodes an image [h, w, 3] or a video [F, h, w, 3] to the model's size, uint8.

    Raises:
        ApiError: it cannot be read, or is larger than the limits.
    """
    try:
        with _DECODED:
            if file.kind == "video":
                bounds = {"max_seconds": limits.media_seconds, "max_pixels": limits.pixels}
                return video.decode(file.content, sizes.num_frames, sizes.image_size, resize, **bounds)
            _check_pixels(file.content, limits.pixels)
            return images.decode(file.content, sizes.image_size, resize)
    except MediaError as e:
        raise wrong(f"{place} cannot be read: {' '.join(str(e).split())[:300]}.", "messages", "invalid_media") from None


def _check_pixels(content: bytes, most: int) -> None:
    """Raises `MediaError` for a picture of too many pixels, by its head alone. One without a head passes."""
    try:
        width, height = Image.open(io.BytesIO(content), formats=[t for t in images.TYPES if t in Image.OPEN]).size
    except Image.DecompressionBombError:
        raise MediaError(f"it has far more than the {most} pixels that are read; make it smaller") from None
    except Exception:  # Pillow raises many types; `images.decode` says what is wrong
        return
    if width * height > most:
        raise MediaError(f"it has {width}x{height} pixels, and at most {most} are read; make it smaller")
