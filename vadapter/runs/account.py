"""What a run takes of its devices, told before weights are read; a run that cannot fit is refused.

Weights, optimizer, batch and gradients are exact, since a step holds all gradients at once (their norm is measured).
What a step keeps beside them is the compiler's choice: `vadapter plan` says it for a TPU slice or a card.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vadapter.base.errors import UserError
from vadapter.planning import cards
from vadapter.training.freezing import size_text
from vadapter.training.program import Program


@dataclasses.dataclass(frozen=True)
class Account:
    """Bytes of one device.

    Attributes:
        device: its name.
        frozen: weights that are not trained.
        trained: weights that are.
        optimizer: its state, and a moving average of the weights.
        batch: of a step.
        limit: what a program may take; None where that is not known.
    """

    device: str
    frozen: int
    trained: int
    optimizer: int
    batch: int
    limit: int | None

    @property
    def least(self) -> int:
        """What a step needs at least: gradients are as large as what is trained."""
        return self.frozen + 2 * self.trained + self.optimizer + self.batch

    def __str__(self) -> str:
        parts = {
            "frozen weights": self.frozen,
            "trained weights": self.trained,
            "their gradients": self.trained,
            "optimizer": self.optimizer,
            "batch": self.batch,
        }
        told = ", ".join(f"{size_text(size)} {name}" for name, size in parts.items() if size)
        of = f" of {size_text(self.limit)}" if self.limit else ""
        return (
            f"Each device ({self.device}) holds at least {size_text(self.least)}{of}: {told}; activations come on top."
        )


def account(program: Program) -> Account:
    """Returns what the devices of a training step hold, from shapes alone."""
    state, frozen = program.abstract_state, program.abstract_params[1]
    device = program.partitioner.mesh.local_devices[0]
    trained = _bytes(state.params)
    return Account(
        device=device.device_kind,
        frozen=_bytes(frozen),
        trained=trained,
        optimizer=_bytes(state) - trained,
        batch=_bytes(program.abstract_batch),
        limit=limit(device),
    )


def tell(program: Program, useful_flops: float | None, steps: int, say: Callable[[str], None]) -> None:
    """Says what a run takes, and refuses one that cannot fit.

    Args:
        program: of its step.
        useful_flops: of a step in bf16, over all devices; None says no time.
        steps: that are left.
        say: is given the lines.

    Raises:
        UserError: a device has not even the room for weights, gradients, optimizer and batch.
    """
    found = account(program)
    if found.limit is not None and found.least > found.limit:
        raise UserError(
            f"The run cannot fit. {found} What would help: more devices that share the weights (MeshConfig.fsdp), "
            "frozen weights in int8 or bfloat16 (TrainConfig.frozen_dtype), fewer trained parameters (TRAINABLE, "
            "LoRA), or optimizer 'adafactor'."
        )
    say(str(found))
    if useful_flops and (seconds := _step_seconds(program, found, useful_flops)):
        hours = steps * seconds / 3600
        say(
            f"By a roofline of the card, a step takes about {seconds:.3g} s and the {steps:,} steps {hours:.3g} h: an "
            "estimate, without evaluations and waiting for data."
        )


def limit(device: Any) -> int | None:
    """Returns the bytes that a program may take of a device; of a CPU, its part of the machine's memory."""
    with contextlib.suppress(Exception):  # not every platform says it
        if stats := device.memory_stats():
            return stats.get("bytes_limit")
    if device.platform != "cpu":
        return None
    return _host_memory() // len([d for d in jax.local_devices() if d.platform == "cpu"])


def _host_memory() -> int:
    """The memory of this machine, or what a container may take of it."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            sizes.append(int(Path(file).read_text()))
    return min(sizes)


def _bytes(tree: Any) -> int:
    """Of the shards that one device holds."""
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "sharding")]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _step_seconds(program: Program, found: Account, useful_flops: float) -> float | None:
    """By the published speed of a card that is known; the estimate is of bf16."""
    if program.partitioner.mesh.devices.flat[0].platform != "gpu":
        return None
    try:
        card = cards.card(found.device)
    except UserError:  # another card
        return None
    devices = program.partitioner.mesh.devices.size
    return cards.step_seconds(card, useful_flops / devices, found.least)
