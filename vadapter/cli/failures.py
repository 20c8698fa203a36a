"""What a command says of an error, and its exit status. Light: looks only at modules that are loaded."""

import os
import sys
from typing import NamedTuple

import vadapter
from vadapter.base import exit_codes, lost_processes, storage_errors
from vadapter.base.errors import UserError

_NETWORK = ("google.api_core", "google.auth", "requests", "urllib3", "httpx", "aiohttp", "huggingface_hub")
_TENSORFLOW = "tensorflow.python.framework.errors_impl."  # of files in buckets
_PASSING = {
    "socket.gaierror",
    *(f"{_TENSORFLOW}{name}Error" for name in ("Unavailable", "DeadlineExceeded", "Aborted")),
}
# What jax, XLA, Orbax and TensorFlow say in errors that have no class of their own.
_DEVICE_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")
_NO_BACKEND = ("Unable to initialize backend", "Unknown backend")


_PACKAGE = os.path.dirname(vadapter.__file__)


class Failure(NamedTuple):
    """What to print, nothing where it is empty, and the exit status."""

    message: str
    status: int


def explain(error: BaseException) -> Failure | None:
    """Returns what to say of an error that is no fault of vadapter; None for a bug."""
    if isinstance(error, UserError):
        return Failure(str(error).split("\n  In call to configurable")[0], error.exit_status)
    if isinstance(error, KeyboardInterrupt):
        return Failure("interrupted", exit_codes.INTERRUPTED)
    if isinstance(error, BrokenPipeError):
        return Failure("", exit_codes.PIPE)
    if "gin" in sys.modules:
        from vadapter.recipes import gin_front

        if gin_front.is_gin_error(error):
            return Failure(gin_front.explain(error), exit_codes.USER)
    # jax before the network: Orbax makes a TimeoutError of what jax says of a lost process.
    return _disk(error) or _memory(error) or _jax(error) or _network(error) or _file(error)


def _disk(error: BaseException) -> Failure | None:
    if reason := storage_errors.reason(error):
        places = (getattr(one, "filename", None) for one in storage_errors.chain(error))
        place = next((place for place in places if place), None)
        where = f" ({place})" if place else ""
        return Failure(
            f"A file cannot be written or read: {reason}{where}. Make room or mend the disk, or write to another "
            "folder, and give the same command again.",
            exit_codes.USER,
        )
    return None


def _memory(error: BaseException) -> Failure | None:
    said = str(error)
    if isinstance(error, MemoryError):
        return Failure(
            f"The memory of this machine did not suffice{f' ({said})' if said else ''}. Use a smaller batch "
            "(BATCH_SIZE) or model, fewer batches ahead (LoaderConfig.prefetch), or a machine with more memory.",
            exit_codes.USER,
        )
    if lost_processes.of_jax(error) and any(text in said for text in _DEVICE_MEMORY):
        return Failure(
            f"The memory of a device did not suffice: {_first_line(said)} Use a smaller batch (BATCH_SIZE) or more "
            "parts of it (OptimizerConfig.accumulate), recompute activations (remat), spread the model over more "
            "devices (MeshConfig.fsdp), or keep frozen parameters smaller (TrainConfig.frozen_dtype='int8'). "
            "'vadapter plan' says before what a run needs.",
            exit_codes.USER,
        )
    return None


def _network(error: BaseException) -> Failure | None:
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    network = isinstance(error, ConnectionError | TimeoutError) or bool(names & _PASSING)
    if network or any(name.startswith(_NETWORK) for name in names):
        return Failure(
            f"The network or a service in it failed: {type(error).__name__}: {_first_line(str(error))} This may pass: "
            "give the same command again, or look at the address, the login and the network.",
            exit_codes.PASSING,
        )
    return None


def _jax(error: BaseException) -> Failure | None:
    said = str(error)
    if isinstance(error, RuntimeError) and any(text in said for text in _NO_BACKEND):
        return Failure(
            f"jax found no such devices: {_first_line(said)} Set JAX_PLATFORMS to one that this machine has, such as "
            "cpu, or unset it; or install the jax of the device (docs/howto.md).",
            exit_codes.USER,
        )
    if (lost := lost_processes.said(error)) is not None:
        return Failure(
            f"Another process of this run was lost or did not answer: {_first_line(lost)} Start all of them again; "
            "the run goes on from its last checkpoint.",
            exit_codes.PASSING,
        )
    return None


def _file(error: BaseException) -> Failure | None:
    """Of a file that the user named. What a file says that is there is told where it is read."""
    if type(error).__name__ in ("NotFoundError", "PermissionDeniedError") and _TENSORFLOW in repr(type(error)):
        return Failure(f"{_first_line(str(error))} Correct the address, or the rights to it.", exit_codes.USER)
    if not isinstance(error, OSError) or error.strerror is None or not error.filename:
        return None
    place = error.filename if isinstance(error.filename, str) else repr(error.filename)
    if place.startswith(_PACKAGE):  # a file of vadapter's own
        return None
    return Failure(
        f"{place} cannot be used: {error.strerror}. Correct the path, or the rights to it. --debug shows where it is "
        "used.",
        exit_codes.USER,
    )


def _first_line(said: str) -> str:
    line = next((line.strip() for line in said.splitlines() if line.strip()), "it does not say why")
    line = line if len(line) <= 300 else f"{line[:297]}..."
    return line if line.endswith((".", "!", "?")) else f"{line}."
