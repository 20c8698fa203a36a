"""Values that a file gives to a dataclass: of the types that its fields are annotated with, and of sane sizes."""

import collections.abc
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

MAX_WHOLE = 1 << 24  # of a whole number in a model's configuration: the rows of a table, the most that there is of one
# What a loop, a table or a picture is as long as.
_LIMITS = {"depth": 1024, "num_layers": 1024, "num_heads": 4096, "image_size": 8192, "num_frames": 4096}


def wrong(kind: type, values: Mapping[str, Any]) -> str:
    """Returns what is wrong with the fields of a dataclass, or "".

    A field whose annotation is of a kind unknown here may have any value: classes of users have what they like.

    Args:
        kind: the dataclass.
        values: of some of its fields.
    """
    try:
        hints = typing.get_type_hints(kind)
    except Exception:  # of a class of a user, whose names cannot be resolved
        return ""
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            return f"{name} is {repr(value)[:80]}, which is no {_name(hints[name])}"
        for number in _numbers(value):
            limit = _LIMITS.get(name, MAX_WHOLE)
            if isinstance(number, float) and not math.isfinite(number):
                return f"{name} is {number}"
            if isinstance(number, int) and not 0 <= number <= limit:
                return f"{name} is {repr(number)[:80]}; expected 0 to {limit}"
    return ""


def _numbers(value: Any) -> list[int | float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint).replace("typing.", "")


def _fits(value: Any, hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint in (None, type(None)):
        return value is None
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in inner)
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in inner)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        if inner[-1:] == (Ellipsis,):
            return all(_fits(item, inner[0]) for item in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in (collections.abc.Mapping, dict):
        return isinstance(value, Mapping) and all(_fits(k, inner[0]) and _fits(v, inner[1]) for k, v in value.items())
    # A configuration inside another one; of the protocols it is known only that it is one.
    if isinstance(hint, type) and (dataclasses.is_dataclass(hint) or getattr(hint, "_is_protocol", False)):
        return isinstance(value, hint) if dataclasses.is_dataclass(hint) else dataclasses.is_dataclass(value)
    return True
