"""The many processes of a run, as gin and the environment describe them."""

from collections.abc import Callable
from typing import TypeVar

from vadapter.partitioning import hosts
from vadapter.recipes.gin_front import make

T = TypeVar("T")


def join() -> None:
    """Connects this process with the others of its run: after gin's files are read (and `experiments.register`, which
    makes `HostsConfig` known), before jax does anything.

    Raises:
        UserError: as `hosts.start`.
    """
    hosts.start(make("HostsConfig"))


def first_process_first(make: Callable[[], T]) -> T:
    """Calls `make` in process 0 and then in the others, which find what it wrote, such as the data of a first use."""
    import jax

    if jax.process_count() == 1:
        return make()
    from jax.experimental import multihost_utils

    if jax.process_index() != 0:
        multihost_utils.sync_global_devices("made by process 0")
        return make()
    made = make()
    multihost_utils.sync_global_devices("made by process 0")
    return made
