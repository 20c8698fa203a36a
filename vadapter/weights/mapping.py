"""The one mapping engine: rule tables from a checkpoint's tensors to our parameters, with every tensor accounted for.

A table is a list of `Rule`s, a line each: our path, the checkpoint's name, and how the layout changes. The engine
checks the whole table against the model's parameters and the checkpoint before anything is read, and gives each
parameter as pieces along its first axis that are read when needed, so that memory never holds more than one of them.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vadapter.base.errors import UserError
from vadapter.models.stacks import is_stacked
from vadapter.weights.tensors import Tensors, blocks

Shape = tuple[int, ...]

LAYER = "{i}"
_LISTED = 50


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a tensor's layout differs from a parameter's (of one layer, where layers are stacked).

    Attributes:
        stored: the tensor's shape for a parameter of a given shape.
        change: makes the parameter, given the tensor and the parameter's shape.
        by_rows: the parameter's rows are the tensor's rows, so that it can be read a few rows at a time.
    """

    stored: Callable[[Shape], Shape]
    change: Callable[[np.ndarray, Shape], np.ndarray]
    by_rows: bool = False


SAME = Layout(lambda shape: shape, lambda x, shape: x, by_rows=True)
# (D,) to (1, 1, D), (N, D) to (1, N, D): leading axes of size 1 are ours alone.
LEADING_ONES = Layout(
    lambda shape: shape[next((i for i, n in enumerate(shape) if n != 1), len(shape)) :],
    lambda x, shape: x.reshape(shape),
)
# (N * H,) to (N, H), the bias of a map to heads.
MERGED = Layout(lambda shape: (math.prod(shape),), lambda x, shape: x.reshape(shape))
# PyTorch's (out, in, height, width) to (height, width, in, out).
CONV = Layout(lambda s: (s[3], s[2], s[0], s[1]), lambda x, shape: x.transpose(2, 3, 1, 0))


def linear(inputs: int = 1) -> Layout:
    """PyTorch's (out, in) to our kernel, summed over its first `inputs` axes: 2 for (heads, head_dim, D)."""
    return Layout(
        lambda shape: (math.prod(shape[inputs:]), math.prod(shape[:inputs])), lambda x, shape: x.T.reshape(shape)
    )


def transposed(*axes: int) -> Layout:
    """`parameter = tensor.transpose(axes)`."""
    return Layout(lambda shape: tuple(shape[axes.index(i)] for i in range(len(axes))), lambda x, _: x.transpose(axes))


def entry(index: int, of: int, layout: Layout = SAME) -> Layout:
    """The tensor holds `of` parameters on a new first axis; this is number `index`."""
    return Layout(
        lambda shape: (of, *layout.stored(shape)), lambda x, shape: layout.change(x[index], shape), by_rows=False
    )


def part(index: int, of: int, layout: Layout = SAME) -> Layout:
    """The tensor holds `of` parameters one after the other along its first axis; this is number `index`."""

    def stored(shape: Shape) -> Shape:
        first, *rest = layout.stored(shape)
        return (of * first, *rest)

    return Layout(stored, lambda x, shape: layout.change(np.split(x, of)[index], shape))


def rows(start: int, of: int, layout: Layout = SAME) -> Layout:
    """The tensor holds parameters of several sizes along its first axis, `of` rows in all; this begins at `start`."""

    def stored(shape: Shape) -> Shape:
        return (of, *layout.stored(shape)[1:])

    def change(x: np.ndarray, shape: Shape) -> np.ndarray:
        return layout.change(x[start : start + layout.stored(shape)[0]], shape)

    return Layout(stored, change)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table.

    Attributes:
        target: path of our parameter.
        source: name of the tensor. `{i}` stands for the number of the layer, counted from 0, where a checkpoint has a
            tensor for each; without it, a tensor for stacked parameters has the layers on its first axis.
        layout: how the two differ, of one layer.
        layer_axis: the axis of the layers, of a tensor that has all of them.
    """

    target: str
    source: str
    layout: Layout = SAME
    layer_axis: int = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    """Entries start..stop of the first axis of a parameter (start 0 and stop 1 of a scalar), read on demand."""

    start: int
    stop: int
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One of our parameters, still in the checkpoint.

    Attributes:
        path: slash path.
        shape: its shape.
        dtype: that of the checkpoint's tensors.
        pieces: along the first axis, in order, without gap.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclasses.dataclass
class _Account:
    """What does not fit, by name."""

    missing: list[str] = dataclasses.field(default_factory=list)
    misshaped: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)

    def check(self, where: str) -> None:
        if not (self.missing or self.misshaped or self.unused):
            return
        parts = []
        for what, names in (("missing", self.missing), ("mis-shaped", self.misshaped), ("unused", self.unused)):
            if names:
                more = f"\n    and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
                lines = "".join(f"\n    {name}" for name in sorted(names)[:_LISTED])
                parts.append(f"\n  {what} ({len(names)}):{lines}{more}")
        raise UserError(
            f"The tensors of {where} are not those of the model that its configuration describes; nothing was "
            f"imported.{''.join(parts)}\nUse the configuration that belongs to these weights, or a complete download."
        )


def map_tensors(
    tensors: Tensors, rules: Sequence[Rule], expected: Mapping[str, Any], ignored: Iterable[str] = ()
) -> list[Parameter]:
    """Finds each of our parameters in a checkpoint. Reads no tensor.

    Args:
        tensors: the checkpoint.
        rules: the table. A rule for a parameter that the model does not have counts for nothing.
        expected: `{slash path: shape struct}` of all parameters of the model.
        ignored: regexes of whole names of tensors that are known and not wanted.

    Returns:
        A `Parameter` for each of `expected`, sorted by path.

    Raises:
        UserError: tensors are missing, mis-shaped or left over; all of them are listed by name.
    """
    account, used = _Account(), set()
    found: dict[str, Parameter] = {}
    for rule in rules:
        if rule.target not in expected:
            continue
        shape = tuple(expected[rule.target].shape)
        names = _names(rule, shape)
        absent = [name for name in names if name not in tensors.infos]
        used.update(names)
        account.missing += [f"{name} (for {rule.target})" for name in absent]
        if absent:
            found.setdefault(rule.target, _nothing(rule.target, shape))
            continue
        wrong = [name for name in names if tensors.infos[name].shape != _stored(rule, shape)]
        account.misshaped += [
            f"{name} has the shape {tensors.infos[name].shape}; {rule.target} needs {_stored(rule, shape)}"
            for name in wrong
        ]
        pieces = () if wrong else _PIECES[_kind(rule, shape)](tensors, rule, shape)
        found[rule.target] = Parameter(rule.target, shape, tensors.infos[names[0]].dtype, tuple(pieces))
    account.missing += [f"(anything for {path})" for path in expected if path not in found]
    known = [re.compile(pattern) for pattern in ignored]
    left = [name for name in tensors.infos if name not in used and not any(k.fullmatch(name) for k in known)]
    account.unused += [f"{name} {tensors.infos[name].shape}" for name in left]
    account.check(tensors.where)
    return [found[path] for path in sorted(found)]


def _nothing(path: str, shape: Shape) -> Parameter:
    return Parameter(path, shape, np.dtype(np.float32), ())


# Kinds of rules, by where the layers of a parameter are: in a tensor each; on the first or on another axis of one
# tensor; or there are none, and the tensor can be read a few rows at a time, or in one piece only.
_EACH, _FIRST_AXIS, _OTHER_AXIS, _ROWS, _WHOLE = "each", "first axis", "other axis", "rows", "whole"


def _kind(rule: Rule, shape: Shape) -> str:
    if LAYER in rule.source:
        return _EACH
    if is_stacked(rule.target):
        return _OTHER_AXIS if rule.layer_axis else _FIRST_AXIS
    return _ROWS if rule.layout.by_rows and shape else _WHOLE


def _names(rule: Rule, shape: Shape) -> list[str]:
    """Names of the tensors of a rule."""
    return [rule.source.replace(LAYER, str(i)) for i in range(shape[0])] if LAYER in rule.source else [rule.source]


def _stored(rule: Rule, shape: Shape) -> Shape:
    """Shape that the tensors of a rule must have."""
    kind = _kind(rule, shape)
    if kind in (_ROWS, _WHOLE):
        return rule.layout.stored(shape)
    one = rule.layout.stored(shape[1:])
    return one if kind == _EACH else (*one[: rule.layer_axis], shape[0], *one[rule.layer_axis :])


def _pieces_of_each(tensors: Tensors, rule: Rule, shape: Shape) -> Iterator[Piece]:
    def read(name: str) -> np.ndarray:
        return rule.layout.change(tensors.read(name), shape[1:])[None]

    for i, name in enumerate(_names(rule, shape)):
        yield Piece(i, i + 1, functools.partial(read, name))


def _pieces_of_first_axis(tensors: Tensors, rule: Rule, shape: Shape) -> Iterator[Piece]:
    def read(i: int) -> np.ndarray:
        return rule.layout.change(tensors.read(rule.source, i, i + 1)[0], shape[1:])[None]

    for i in range(shape[0]):
        yield Piece(i, i + 1, functools.partial(read, i))


def _pieces_of_other_axis(tensors: Tensors, rule: Rule, shape: Shape) -> Iterator[Piece]:
    def read() -> np.ndarray:
        layers = np.moveaxis(tensors.read(rule.source), rule.layer_axis, 0)
        return np.stack([rule.layout.change(x, shape[1:]) for x in layers])

    yield Piece(0, shape[0], read)  # in one, as only the first axis can be read in parts


def _pieces_of_rows(tensors: Tensors, rule: Rule, shape: Shape) -> Iterator[Piece]:
    for start, stop in blocks(tensors.infos[rule.source]):
        yield Piece(start, stop, functools.partial(tensors.read, rule.source, start, stop))


def _pieces_of_whole(tensors: Tensors, rule: Rule, shape: Shape) -> Iterator[Piece]:
    yield Piece(0, shape[0] if shape else 1, lambda: rule.layout.change(tensors.read(rule.source), shape))


_PIECES: Mapping[str, Callable[[Tensors, Rule, Shape], Iterator[Piece]]] = {
    _EACH: _pieces_of_each,
    _FIRST_AXIS: _pieces_of_first_axis,
    _OTHER_AXIS: _pieces_of_other_axis,
    _ROWS: _pieces_of_rows,
    _WHOLE: _pieces_of_whole,
}
