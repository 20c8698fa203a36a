"""Start-up of a run of many processes, one a host: who they are, and `jax.distributed.initialize`."""

import contextlib
import dataclasses
import os
import sys
from typing import Any

from vadapter.base.errors import UserError
from vadapter.partitioning import rendezvous

# Settings by field, with the environment variables that give them too: those that jax documents or launchers set.
_VARIABLES = {
    "coordinator_address": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """Which processes make up a run. What is None comes from the environment, then from the cluster.

    On Cloud TPU VMs, GKE, SLURM and Open MPI jax finds all of it, and elsewhere a run is one process. A coordinator, a
    number and an id of each process can also be set here or, as they differ between hosts, in the environment variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID. A number of 1 is a run of this host alone, wherever.

    Attributes:
        coordinator_address: `host:port` of process 0, which the others can reach.
        num_processes: number of processes of the run.
        process_id: of this process, from 0.
        initialization_timeout: seconds to wait for all processes.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    initialization_timeout: int = 300


def start(config: HostsConfig | None = None) -> None:
    """Connects this process with the others of the run. To be called before any computation or list of devices.

    Does nothing in a run of one process, or when jax's processes are connected already.

    Args:
        config: default all from the environment and the cluster.

    Raises:
        UserError: settings contradict each other or are incomplete, the cluster does not tell, or a process does not
            come in time (`rendezvous.NotAllThereError`).
    """
    import jax

    config = config or HostsConfig()
    if jax.distributed.is_initialized():
        return
    given = settings(config)
    if given.get("num_processes") == 1:
        return
    found = _detect(given, config.initialization_timeout)
    missing = [name for name in _VARIABLES if getattr(found, name) is None]
    if missing == list(_VARIABLES) or found.num_processes == 1:
        return
    if missing:
        raise UserError(
            f"A run of many processes needs a coordinator, a number of processes and an id of each; found "
            f"{_given_text(given)}, without {_names(missing)}. Set all three, or none where the cluster is known (TPU "
            "VM, GKE, SLURM, Open MPI)."
        )
    _check_range(found)
    member = rendezvous.Member(found.process_id, found.num_processes, found.coordinator_address, tuple(found.addresses))
    if member.process_id == 0:
        print(f"{member.num_processes} processes meet at {member.coordinator_address}.", file=sys.stderr, flush=True)
    rendezvous.meet(member, config.initialization_timeout)
    jax.distributed.initialize(
        found.coordinator_address,
        found.num_processes,
        found.process_id,
        local_device_ids=found.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=max(config.initialization_timeout, 60),  # all are there: only slow now
    )


def settings(config: HostsConfig) -> dict[str, Any]:
    """Returns what is set, here or in the environment.

    Raises:
        UserError: the two differ, a number is none, or an id is out of range.
    """
    found: dict[str, Any] = {}
    for name, variable in _VARIABLES.items():
        setting, text = getattr(config, name), os.environ.get(variable) or None
        from_environment: Any = text
        if text is not None and name != "coordinator_address":
            if not text.isdecimal():
                raise UserError(f"{variable} is {text!r}; expected a whole number. Correct it, or unset it.")
            from_environment = int(text)
        if None not in (setting, from_environment) and setting != from_environment:
            raise UserError(
                f"HostsConfig.{name} is {setting!r} and {variable} is {from_environment!r}. Set one of them, or both "
                "to the same."
            )
        value = from_environment if setting is None else setting
        if value is not None:
            found[name] = value
    if "num_processes" in found:
        _check_range(_Found(**found))
    if "coordinator_address" in found:
        rendezvous.split_address(found["coordinator_address"])
    return found


def is_connected() -> bool:
    """Whether this process is one of many in a run."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def stop_after_error(status: int) -> None:
    """Ends a process of many at once, with an exit status. In a run of one process it does nothing and returns.

    An orderly end waits for the other processes, and they, in the midst of a computation, wait for this one: minutes
    of machines that cost money. When this one is gone at once, jax ends the others.
    """
    if not is_connected():
        return
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


@dataclasses.dataclass
class _Found:
    coordinator_address: Any = None
    num_processes: Any = None
    process_id: Any = None
    local_device_ids: Any = None
    addresses: tuple[str, ...] = ()


def _detect(given: dict[str, Any], timeout: int) -> _Found:
    """Completes what is set by what jax knows of the cluster."""
    found = _Found(**given)
    # jax offers no public way to ask what `initialize` would find.
    from jax._src.clusters import ClusterEnv

    try:
        values = ClusterEnv.auto_detect_unset_distributed_params(
            found.coordinator_address, found.num_processes, found.process_id, None, None, timeout
        )
    except Exception as error:  # each kind of cluster has its own
        raise UserError(
            f"The cluster did not tell which processes this run has: {error}. Set {_names(_VARIABLES)} yourself; "
            "JAX_NUM_PROCESSES=1 runs on this host alone."
        ) from error
    names = [field.name for field in dataclasses.fields(_Found)]
    return _Found(**dict(zip(names, values, strict=False)), addresses=_addresses())


def _addresses() -> tuple[str, ...]:
    """The hosts of a TPU slice by process, where its environment names them."""
    text = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES") or ""
    return tuple(text.split(",")) if text else ()


def _check_range(found: _Found) -> None:
    if found.num_processes < 1 or not 0 <= (found.process_id or 0) < found.num_processes:
        raise UserError(
            f"num_processes is {found.num_processes} and process_id is {found.process_id}; expected an id from 0 to "
            f"one less than the number. Change {_names(('num_processes', 'process_id'))}."
        )


def _names(fields: Any) -> str:
    return ", ".join(f"{name} (HostsConfig.{name} or {_VARIABLES[name]})" for name in fields)


def _given_text(given: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value!r}" for name, value in given.items()) or "none of them"
