"""Regexes that a file brings along: only those that match in bounded time are taken."""

import math
import re
from collections.abc import Iterable
from re import _constants as kinds  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from vadapter.base.errors import UserError

_MAX_LENGTH = 1000
_MAX_REPEATS = 4  # one behind the other: time grows with the length of a path to this power
_CHOICE = 0.2  # of a repeat: what an optional part or an alternative adds


def check(patterns: Iterable[Any], where: str) -> None:
    """Refuses patterns that are no regexes, or that could take without end on some path.

    Taken is what path rules need: characters, classes, groups, alternatives, and repeats such as `.*` that are not
    inside of another repeat. There are no back references.

    Args:
        patterns: regexes.
        where: the file that has them, for messages.

    Raises:
        UserError: one is none of these.
    """
    for pattern in patterns:
        problem = _problem(pattern)
        if problem:
            raise UserError(
                f"{where} has the path rule {repr(pattern)[:80]}, which {problem}. Expected a regular expression like "
                "(encoder/.*), without repeats inside of repeats. Use the file as it was written."
            )


def _problem(pattern: Any) -> str:
    if not isinstance(pattern, str) or len(pattern) > _MAX_LENGTH:
        return "is no text" if not isinstance(pattern, str) else f"has more than {_MAX_LENGTH} characters"
    try:
        tree = _parser.parse(pattern)
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError, ValueError) as e:
        return f"is no regular expression ({e})"
    try:
        return "repeats too much" if _repeats(tree) > _MAX_REPEATS else ""
    except ValueError as e:
        return str(e)


def _repeats(tree: Any, inside: bool = False) -> float:
    """Returns how many repeats there are; a choice counts as a part of one. ValueError for what is not taken."""
    found = 0.0
    for kind, value in tree:
        if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, kinds.POSSESSIVE_REPEAT):
            _, most, body = value
            if inside:
                raise ValueError("has a repeat inside of a repeat")
            found += (1 if most > 1 else _CHOICE) + _repeats(body, inside=most > 1)
        elif kind is kinds.SUBPATTERN:
            found += _repeats(value[-1], inside)
        elif kind in (kinds.ASSERT, kinds.ASSERT_NOT):
            found += _repeats(value[1], inside)
        elif kind is kinds.BRANCH:
            if inside:
                raise ValueError("has alternatives inside of a repeat")
            options = value[1]
            found += _CHOICE * math.log2(len(options)) + max(_repeats(option) for option in options)
        elif kind not in (kinds.LITERAL, kinds.NOT_LITERAL, kinds.ANY, kinds.IN, kinds.AT, kinds.CATEGORY):
            raise ValueError(f"has {str(kind).lower()}")
    return found
