"""Work that each slice of a multi-slice machine does by itself, so that results cross the slow network once."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vadapter.base.array_types import Array, PyTree
from vadapter.base.errors import UserError
from vadapter.partitioning.rules import active, active_rules

_AXIS = "dcn"


def num_slices() -> int:
    """Slices of the mesh of the innermost `Partitioner.activate`; 1 outside of one."""
    state = active_rules()
    return state[0].shape.get(_AXIS, 1) if state else 1


def split_rows(batch: PyTree, parts: int) -> PyTree:
    """Splits a batch into parts and each part into the rows of each slice. No row moves to another device.

    Args:
        batch: leaves `[B, ...]`, sharded as `Partitioner.batch_sharding`.
        parts: that are computed one after the other.

    Returns:
        Leaves `[parts, slices, B / parts / slices, ...]`.

    Raises:
        UserError: the rows do not divide like this.
    """
    state = active_rules()
    assert state is not None
    mesh, rules = state
    axes = _axes(dict(reversed(list(rules))).get("batch"))
    before = math.prod(mesh.shape[axis] for axis in axes[: axes.index(_AXIS)]) if _AXIS in axes else 1
    slices = mesh.shape[_AXIS]
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % (before * slices * parts):
        raise UserError(
            f"A batch of {rows} rows cannot be computed in {parts} equal parts on each of {slices} slices. Make it a "
            f"multiple of {before * slices * parts}, or change OptimizerConfig.accumulate."
        )

    def split(x: Array) -> Array:
        x = x.reshape(before, slices, -1, parts, *x.shape[1:])
        x = jnp.moveaxis(x, (3, 1), (0, 1))
        return x.reshape(parts, slices, -1, *x.shape[4:])

    return jax.tree.map(split, batch)


def per_slice(function: Callable[[PyTree, PyTree], PyTree]) -> Callable[[PyTree, PyTree], PyTree]:
    """Makes a function of (parameters, batch) one of (parameters, batch of each slice).

    Args:
        function: constrains its activations, if at all, with `constrain`.

    Returns:
        A function of parameters and a batch with leaves `[slices, B, ...]`; its results have a leading axis of slices,
        on the mesh axis dcn. To sum over that axis is the only step that crosses slices.
    """
    state = active_rules()
    assert state is not None
    mesh, rules = state
    within = [(name, tuple(axis for axis in _axes(axes) if axis != _AXIS) or None) for name, axes in rules]

    def run(params: PyTree, batch: PyTree) -> Any:
        with active(mesh, within):
            return jax.vmap(function, in_axes=(None, 0), spmd_axis_name=_AXIS)(params, batch)

    return run


def _axes(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else tuple(axes or ())
