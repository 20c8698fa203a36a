"""Pictures of media for a page."""

import base64
import io

import numpy as np
from PIL import Image

_MAX_LOSSLESS, _MAX_SIDE, _MAX_FRAMES = 96, 224, 8


def picture(media: np.ndarray) -> str:
    """Returns a data URI of media as the encoder gets them.

    Args:
        media: uint8 [F, h, w, 3]; of more than eight frames eight are shown, side by side.

    Returns:
        A PNG where the frames are small, else a JPEG with frames of at most 224 pixels.
    """
    chosen = np.linspace(0, len(media) - 1, min(len(media), _MAX_FRAMES)).round().astype(int)
    small = media.shape[1] <= _MAX_LOSSLESS
    frames = [Image.fromarray(np.ascontiguousarray(media[i])) for i in chosen]
    for frame in frames:
        frame.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)  # never enlarges
    out = io.BytesIO()
    strip = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames], axis=1))
    strip.save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 85}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
