"""Whether a checkpoint is whole, and whether a state is worth to be one."""

import functools
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vadapter.base import checksums, files, terminal
from vadapter.base.array_types import Array, PyTree
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote
from vadapter.partitioning import gather, hosts
from vadapter.training import run_record
from vadapter.training.freezing import named_leaves
from vadapter.training.state import TrainState


class DamagedError(UserError):
    """A checkpoint is not as it was written."""


class NotFiniteError(UserError):
    """A state holds NaN or infinities."""


def is_finished(checkpoint: epath.Path) -> bool:
    """Whether Orbax has noted when everything was written.

    On a disk an unfinished checkpoint has another name. In a bucket, where folders cannot be renamed, it has not.
    """
    try:
        mark = files.read_object(checkpoint / checksums.MARK)
    except (OSError, ValueError):  # absent, or just being written
        return False
    return isinstance(mark.get("commit_timestamp_nsecs"), int)


def damage(checkpoint: epath.Path) -> str | None:
    """Says what is wrong with a checkpoint. All processes of a run call it together, and each reads a part of it.

    One that an earlier version wrote has no checksums: there only what is missing as a whole is found.

    Returns:
        The reason, the same in each process; None if the checkpoint is whole.
    """
    why = _compared(str(checkpoint), _signature(checkpoint), _share())
    return next((each for each in of_all_processes(why) if each), None)


@functools.lru_cache(maxsize=64)
def _compared(path: str, signature: Any, share: tuple[int, int]) -> str | None:
    """A command finds the same checkpoint more than once, and reads it once: the signature says that it is the same."""
    del signature
    checkpoint = epath.Path(path)
    if not is_finished(checkpoint):
        return f"{checksums.MARK} is missing or damaged"
    try:
        record = run_record.read(checkpoint)
    except ValueError as e:
        return str(e)
    if record.get("checksums") or (checkpoint / checksums.FILE).exists():
        return checksums.damage(checkpoint, share)
    missing = [item for item in ("params", "params/_METADATA") if not (checkpoint / item).exists()]
    return f"{missing[0]} is missing" if missing else None


def _signature(checkpoint: epath.Path) -> Any:
    """Changes with each file of a checkpoint; in a bucket, where nothing is changed in its place, with each writing."""
    try:
        if is_remote(checkpoint):
            return (checkpoint / checksums.MARK).read_text()
        stats = [os.stat(os.path.join(at, name)) for at, _, names in os.walk(checkpoint) for name in names]
    except (OSError, ValueError):  # not there, or just being deleted
        return object()
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in stats)


def _share() -> tuple[int, int]:
    # Not connected may mean not yet, and then jax must not be asked who is there.
    return (jax.process_index(), jax.process_count()) if hosts.is_connected() else (0, 1)


def of_all_processes(value: Any) -> list[Any]:
    """Returns the JSON-serialisable value of each process; of this one alone, if it is not connected with others."""
    if not hosts.is_connected():
        return [value]
    return [record["value"] for record in gather.gather_records([{"value": value}])]


@functools.cache
def tell(line: str) -> None:
    """Prints a line to stderr, once and in the first process only."""
    if _share()[0] == 0:
        print(terminal.line(line), file=sys.stderr, flush=True)


def check_finite(state: TrainState, hint: str) -> None:
    """Checks the trained parameters and the optimizer's state.

    Args:
        state: on the devices; waits for it.
        hint: ends the message: how to go on.

    Raises:
        NotFiniteError: a number is NaN or infinite.
    """
    leaves = dict(named_leaves(state.params))
    for name, tree in (("optimizer", state.opt_state), ("ema", state.ema)):
        leaves |= {f"{name}/{p}": x for p, x in named_leaves(tree).items()}
    floats = {path: x for path, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    if not floats:
        return
    finite = np.asarray(_all_finite(state.step.sharding)(list(floats.values())))
    if wrong := [path for path, good in zip(floats, finite, strict=True) if not good]:
        raise NotFiniteError(
            f"Step {int(state.step)} left NaN or infinities in {len(wrong)} of {len(floats)} arrays, the first is "
            f"{wrong[0]}. Such a state is not saved. {hint}"
        )


@functools.cache
def _all_finite(replicated: Any) -> Any:
    def run(leaves: list[PyTree]) -> Array:
        return jnp.stack([jnp.isfinite(x).all() for x in leaves])

    return jax.jit(run, out_shardings=replicated)
