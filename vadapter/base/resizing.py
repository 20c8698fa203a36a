"""How pictures become squares, as a text: what an encoder, a task and the record of a trained model say."""

import dataclasses
import functools
from fractions import Fraction

from vadapter.base.errors import UserError

MODES = ("stretch", "crop", "pad", "center_crop")
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in Pillow's numbers
DEFAULT = "stretch"


@dataclasses.dataclass(frozen=True)
class Resize:
    """A way to make a square of a picture.

    Attributes:
        mode: `stretch` ignores the aspect ratio; `crop` takes the middle square; `pad` adds black at the short side;
            `center_crop` resizes the shorter side and cuts the middle out, as the image processors of transformers do.
        filter: of the resampling, one of `FILTERS`; always anti-aliased.
        shorter: of `center_crop`: the shorter side before the cut, as a multiple of the square's. 1 cuts the longer
            side alone.
        whole: whether all pixels of a file are decoded. Otherwise a large JPEG is decoded at a fraction of its size,
            which is quicker and gives pixels that are a little different.
    """

    mode: str
    filter: str = "bilinear"
    shorter: Fraction = Fraction(1)
    whole: bool = False


@functools.cache
def parse(text: str | None) -> Resize:
    """Reads a mode, and behind it, as far as they are not the usual ones, a filter and a ratio.

    `stretch`, `crop` and `pad` alone are bilinear and quick. With a filter, and as `center_crop`, every pixel is
    computed as by the PIL image processors of transformers: "stretch bicubic", "center_crop bicubic",
    "center_crop bicubic 256/224".

    Args:
        text: as above; None is `DEFAULT`.

    Raises:
        UserError: it is none of these.
    """
    mode, *more = (DEFAULT if text is None else text).split() or [""]
    whole = bool(more) or mode == "center_crop"
    filter = more.pop(0) if more and more[0] in FILTERS else "bilinear"  # noqa: A001 the word of the field
    shorter = _ratio(more.pop(0)) if more and mode == "center_crop" else Fraction(1)
    if mode not in MODES or more or shorter is None:
        raise UserError(
            f"Expected a resize mode of {', '.join(MODES)}, with a filter behind it if it is not bilinear "
            f"({', '.join(FILTERS)}), such as 'center_crop bicubic 256/224'; found {text!r}. Choose one of them."
        )
    return Resize(mode, filter, shorter, whole)


def _ratio(text: str) -> Fraction | None:
    """A fraction of 1 or more, or None."""
    try:
        found = Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
    return found if found >= 1 else None
