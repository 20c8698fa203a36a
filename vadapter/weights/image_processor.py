"""How a model's pictures were made square when it was trained, by the file of its image processor in transformers."""

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from vadapter.base import resizing
from vadapter.weights.checkpoint import Checkpoint

FILE, _NEWER_FILE = "preprocessor_config.json", "processor_config.json"
# What transformers' classes do where the file leaves it out, by the beginning of the class's name.
_CENTER_CROP: Mapping[str, Any] = {"do_center_crop": True, "resample": 3, "edge": True}
_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "CLIP": {**_CENTER_CROP, "size": 224, "crop_size": 224},
    "Bit": {**_CENTER_CROP, "size": 224, "crop_size": 224},
    "Siglip": {"do_center_crop": False, "resample": 3, "edge": False, "size": 224},
}
_OTHERS: Mapping[str, Any] = {"do_center_crop": False, "resample": 2, "edge": False, "size": 224}


def settings(checkpoint: Checkpoint) -> tuple[str, Mapping[str, Any]]:
    """Returns the file of the image processor and its settings; {} where there is none."""
    found: Mapping[str, Any] = checkpoint.extra.get(FILE) or {}
    inner = (checkpoint.extra.get(_NEWER_FILE) or {}).get("image_processor")  # beside the processor's other parts
    if isinstance(inner, Mapping) and "image_mean" not in found:
        return _NEWER_FILE, inner
    return FILE, found


def resize(checkpoint: Checkpoint) -> str:
    """Returns how pictures become square: the published way, or the nearest that we have. See `resizing.parse`."""
    return _read(checkpoint)[0]


def notes(checkpoint: Checkpoint, image_size: int) -> Iterator[str]:
    """Returns sentences that say where a run makes pictures in another way than the published one."""
    way, side, odd = _read(checkpoint)
    file = settings(checkpoint)[0]
    if odd:
        yield f"{file} of {checkpoint.tensors.where} {odd}. Pictures become square by {way!r} (encoder.resize) instead."
    if side not in (None, image_size):
        yield (
            f"{file} of {checkpoint.tensors.where} makes pictures of {side} pixels, and config.json says {image_size}, "
            f"which a run takes. encoder.image_size = {side} gives the published pixels."
        )


def _read(checkpoint: Checkpoint) -> tuple[str, int | None, str | None]:
    """Returns the way, the side of the published square, and what is published that we do otherwise."""
    file, given = settings(checkpoint)
    if not given:
        return resizing.DEFAULT, None, None
    name = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "")
    usual = next((usual for start, usual in _CLASSES.items() if name.startswith(start)), _OTHERS)
    known = {**usual, **given}
    filter = _filter(known["resample"])  # noqa: A001 the word of the field
    way = f"stretch {filter or 'bilinear'}"
    if filter is None:
        return way, None, f"resamples by {known['resample']!r}, which is unknown here"
    if not known.get("do_resize", True):
        return way, None, "resizes nothing"
    size = _size(known["size"], known["edge"])
    crop = _size(known.get("crop_size"), edge=False)
    if size is None:
        return way, None, f"resizes to {known['size']}"
    side, edge = size
    if not known["do_center_crop"]:
        odd = "keeps the aspect ratio and cuts nothing off" if edge else None
        return way, side, odd
    if not edge or crop is None or crop[0] > side:
        return way, None, f"resizes to {known['size']} and cuts {known.get('crop_size')} out"
    ratio = Fraction(side, crop[0])
    return f"center_crop {filter}" + (f" {side}/{crop[0]}" if ratio != 1 else ""), crop[0], None


def _filter(resample: Any) -> str | None:
    known = isinstance(resample, int) and not isinstance(resample, bool) and 0 <= resample < len(resizing.FILTERS)
    return resizing.FILTERS[resample] if known else None


def _size(value: Any, edge: bool) -> tuple[int, bool] | None:
    """Returns a side, and whether it is the shorter one of a picture that keeps its shape; None for what else there is.

    `edge` says what a number alone means.
    """
    if isinstance(value, Mapping):
        sides = {key: side for key, side in value.items() if side is not None}
        if sides.keys() == {"shortest_edge"}:
            value, edge = sides["shortest_edge"], True
        elif sides.keys() == {"height", "width"} and sides["height"] == sides["width"]:
            value, edge = sides["height"], False
    return (value, edge) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
