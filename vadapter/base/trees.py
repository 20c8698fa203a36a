"""Parameter trees as slash paths, and the regexes that select from them.

The one idiom of the package for naming parameters: a path such as `adapter/lm/layers/mlp/up/kernel`, and a regex that
must match the whole path (big_vision's and t5x's convention). Freezing, sharding, learning rates, weight decay,
loading and stage hand-off all use it.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import traverse_util

from vadapter.base.errors import UserError

Tree = Mapping[str, Any]
_COMPARED = 200  # characters of a name: comparing takes the square of them


def flatten(tree: Tree) -> dict[str, Any]:
    """Returns `{slash path: leaf}` of a nested dict, sorted by path."""
    return dict(sorted(traverse_util.flatten_dict(tree, sep="/").items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the nested dict of `{slash path: leaf}`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def merge(*trees: Tree) -> dict[str, Any]:
    """Returns the union of nested dicts. A path in two of them is a bug and raises `ValueError`."""
    flat: dict[str, Any] = {}
    for tree in trees:
        part = flatten(tree)
        if twice := sorted(flat.keys() & part.keys()):
            raise ValueError(f"parameter paths in two trees: {twice[:5]}")
        flat.update(part)
    return unflatten(flat)


def nearest(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Returns the up to `n` names of `known` that look most like `name`."""
    return difflib.get_close_matches(name[:_COMPARED], list(known), n=n, cutoff=0.0)


def match(patterns: Sequence[str], paths: Iterable[str], what: str = "pattern") -> dict[str, int]:
    """Finds the first pattern that matches each path.

    Args:
        patterns: regexes; each must match the whole of at least one path.
        paths: slash paths.
        what: what the patterns are for, named in the error.

    Returns:
        `{path: index of the first matching pattern}` for the paths that some pattern matches.

    Raises:
        UserError: a pattern is not a regex, or matches no path at all.
    """
    paths = list(paths)
    try:
        compiled = [re.compile(p) for p in patterns]
    except re.error as e:
        raise UserError(f"{what} {e.pattern!r} is not a regular expression: {e}.") from e
    for pattern in compiled:
        if not any(pattern.fullmatch(p) for p in paths):
            raise UserError(
                f"{what} {pattern.pattern!r} matches no parameter. It must match a whole slash path; "
                f"the nearest paths are: {', '.join(nearest(pattern.pattern, paths)) or '(no parameters)'}."
            )
    first = {p: next((i for i, c in enumerate(compiled) if c.fullmatch(p)), None) for p in paths}
    return {p: i for p, i in first.items() if i is not None}


def split(tree: Tree, patterns: Sequence[str], what: str = "pattern") -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a tree into (paths that some pattern matches, the rest). Raises as `match`."""
    flat = flatten(tree)
    chosen = match(patterns, flat, what)
    return unflatten({p: flat[p] for p in flat if p in chosen}), unflatten(
        {p: flat[p] for p in flat if p not in chosen}
    )
