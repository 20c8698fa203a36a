"""Logical axis names and the mesh axes they lie on."""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vadapter.base.array_types import Array
from vadapter.base.errors import UserError

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]

# Parameters first, activations after. Key/value heads stay whole by default: multi-query decoders have only one.
DEFAULT_RULES: Rules = (
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", None),
    ("kv", None),
    ("mlp", "tensor"),
    ("layers", None),
    ("positions", None),
    ("queries", None),
    ("frames", None),
    ("classes", None),
    # fsdp first: with it last XLA (jax 0.10) permutes the rows of (batch x tensor) @ (fsdp x tensor).T, and gradients
    # are wrong where all three axes are larger than 1.
    ("batch", ("fsdp", "dcn", "data")),
    ("length", None),
    ("activation_embed", None),
    ("activation_heads", "tensor"),
    ("activation_mlp", "tensor"),
    ("activation_vocab", "tensor"),
    ("loss_batch", ("dcn", "data")),
    ("loss_vocab", ("tensor", "fsdp")),
)

_active: contextvars.ContextVar[tuple[Mesh, Rules] | None] = contextvars.ContextVar("active_rules", default=None)


def partition_spec(names: Sequence[str | None], shape: Sequence[int], mesh: Mesh, rules: Rules, what: str):
    """Maps logical names to a `PartitionSpec`.

    Args:
        names: a logical name, or None for "whole", for each dimension.
        shape: the array's shape.
        mesh: the mesh.
        rules: the first rule for a name counts.
        what: the array's path, for errors.

    Raises:
        UserError: a name has no rule, a mesh axis is used twice, or a dimension does not divide over its devices.
    """
    table = dict(reversed(list(rules)))
    parts, used = [], set()
    for name, size in zip(names, shape, strict=True):
        if name is None:
            parts.append(None)
            continue
        if name not in table:
            raise UserError(
                f"{what}: the logical axis {name!r} has no rule. Known: {', '.join(table)}. Add a rule for it."
            )
        axes = table[name]
        axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
        if unknown := [a for a in axes if a not in mesh.shape]:
            raise UserError(f"The rule for {name!r} names mesh axes {unknown}; the mesh has {tuple(mesh.shape)}.")
        axes = tuple(a for a in axes if mesh.shape[a] > 1)
        if taken := used.intersection(axes):
            raise UserError(
                f"{what}: two dimensions of {tuple(names)} lie on the mesh axis {taken.pop()!r}. Change the rules."
            )
        ways = math.prod(mesh.shape[a] for a in axes)
        if size % ways:
            raise UserError(
                f"{what} has shape {tuple(shape)}: its {name!r} dimension of {size} does not divide over {ways} "
                f"devices of the mesh axes {axes}. Change the mesh, or map {name!r} to None in the rules."
            )
        used.update(axes)
        parts.append(axes[0] if len(axes) == 1 else axes or None)
    return PartitionSpec(*parts)


@contextlib.contextmanager
def active(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Code traced inside constrains its activations to `mesh` by `rules`."""
    token = _active.set((mesh, rules))
    try:
        yield
    finally:
        _active.reset(token)


def active_rules() -> tuple[Mesh, Rules] | None:
    """Returns the mesh and the rules of the innermost `active`, for what XLA cannot partition; None outside of one."""
    return _active.get()


def ways(name: str) -> int:
    """Returns the number of devices that the active rules split a logical axis over; 1 where none are active."""
    state = _active.get()
    if state is None:
        return 1
    mesh, rules = state
    axes = dict(reversed(list(rules))).get(name) or ()
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))


def constrain(x: Array, *names: str | None) -> Array:
    """Constrains an activation to the active mesh and rules; outside of `Partitioner.activate` returns it as it is."""
    state = _active.get()
    if state is None or state[0].size == 1:
        return x
    mesh, rules = state
    spec = partition_spec(names, x.shape, mesh, rules, f"activation {names}")
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def is_one_cpu() -> bool:
    """Returns whether a program is traced for one CPU device: the active mesh's, or else jax's default."""
    state = _active.get()
    if state is None:
        return jax.default_backend() == "cpu"
    devices = state[0].devices
    return devices.size == 1 and devices.flat[0].platform == "cpu"
