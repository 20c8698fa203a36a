"""Processes find one another before jax connects them: who is missing is known and said, on every host.

jax's own start-up ends a process that waited too long without telling for whom. So process 0 listens first, on the port
that jax will use; the others tell it who they are, and it answers all of them once: go on, or what is wrong.
"""

import contextlib
import dataclasses
import json
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vadapter.base.errors import UserError

_RETRY_SECONDS = 0.2
_LINE_SECONDS = 5.0  # for a line from a socket that is open already
_LINE_BYTES = 1 << 16


class NotAllThereError(UserError):
    """Not all processes came in time. They may next time: a machine of theirs may just have been taken away."""

    exit_status = 143


@dataclasses.dataclass(frozen=True)
class Member:
    """One process of a run.

    Attributes:
        process_id: its number, from 0.
        num_processes: how many there are.
        coordinator_address: `host:port` of process 0.
        addresses: of the hosts by process, where they are known; for messages only.
    """

    process_id: int
    num_processes: int
    coordinator_address: str
    addresses: Sequence[str] = ()

    def __str__(self) -> str:
        return f"process {self.process_id} of {self.num_processes}"


@dataclasses.dataclass(frozen=True)
class _Joined:
    connection: socket.socket
    host: str
    num_processes: int

    def gone(self) -> bool:
        """Whether the other end has hung up."""
        self.connection.setblocking(False)
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(_LINE_SECONDS)


def meet(member: Member, timeout: float) -> None:
    """Returns when all processes are there, on all of them.

    Args:
        member: this process.
        timeout: seconds to wait.

    Raises:
        NotAllThereError: a process did not come in time.
        UserError: two have the same number, or they disagree on how many there are.
    """
    host, port = split_address(member.coordinator_address)
    deadline = time.monotonic() + timeout
    if member.process_id == 0:
        _wait_for_all(member, port, deadline, timeout)
    else:
        _report(member, host, port, deadline, timeout)


def split_address(address: str) -> tuple[str, int]:
    """Splits `host:port`. Raises `UserError` for anything else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(
            f"The coordinator's address is {address!r}; expected HOST:PORT, such as 10.0.0.2:8476, where HOST is the "
            "machine of process 0."
        )
    return host.strip("[]"), int(port)


def _wait_for_all(member: Member, port: int, deadline: float, timeout: float) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port))
        joined: dict[int, _Joined] = {}
        try:
            for number, newcomer in _arrivals(server, stack, deadline):
                _check(member, number, newcomer, joined)
                joined[number] = newcomer
                if len(joined) == member.num_processes - 1:
                    break
            else:
                raise NotAllThereError(_missing(member, joined, timeout))
        except UserError as error:
            _tell(joined.values(), {"error": str(error), "late": isinstance(error, NotAllThereError)})
            raise
        _tell(joined.values(), {})
        # The others hang up first, so that the port is free for jax at once.
        for other in joined.values():
            with contextlib.suppress(OSError):
                other.connection.recv(1)


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise UserError(
            f"Process 0 cannot listen on the coordinator's port {port}: {error.strerror or error}. Another run, or a "
            "second process 0, may use it: end that one, or choose another port in the coordinator's address "
            "(JAX_COORDINATOR_ADDRESS, or JAX_COORDINATOR_PORT where the cluster gives the address)."
        ) from error


def _arrivals(server: socket.socket, stack: contextlib.ExitStack, deadline: float) -> Iterator[tuple[int, _Joined]]:
    """Yields the number of each process that comes; ends at the deadline. What does not speak our lines is ignored."""
    while (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, (address, *_) = server.accept()
        except TimeoutError:
            return
        stack.enter_context(connection)
        connection.settimeout(min(left, _LINE_SECONDS))
        try:
            said = _receive(connection)
            host = f"{said['host']} ({address.removeprefix('::ffff:')})"
            yield int(said["process_id"]), _Joined(connection, host, int(said["num_processes"]))
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()


def _check(member: Member, number: int, newcomer: _Joined, joined: dict[int, _Joined]) -> None:
    problem = ""
    if newcomer.num_processes != member.num_processes:
        problem = (
            f"{newcomer.host} is process {number} of {newcomer.num_processes}, but process 0 "
            f"({socket.gethostname()}) expects {member.num_processes} processes. Start all with the same number of "
            "processes."
        )
    elif number == 0 or (number in joined and not joined[number].gone()):
        other = joined[number].host if number else socket.gethostname()
        problem = f"Both {other} and {newcomer.host} are process {number}. Give each process its own number."
    elif number >= member.num_processes:
        problem = f"{newcomer.host} is process {number}, but there are {member.num_processes}, from 0."
    if problem:
        _tell([newcomer], {"error": problem})
        raise UserError(problem)


def _missing(member: Member, joined: dict[int, _Joined], timeout: float) -> str:
    """Says who is missing, and where it should be if that is known."""
    numbers = [i for i in range(1, member.num_processes) if i not in joined]
    known = len(member.addresses) == member.num_processes
    names = [f"{i} ({member.addresses[i]})" if known else str(i) for i in numbers[:8]]
    names += [f"{len(numbers) - 8} more"] * (len(numbers) > 8)
    there = ", ".join(f"{i} on {joined[i].host}" for i in sorted(joined)[:4]) + ", ..." * (len(joined) > 4)
    return (
        f"Of {member.num_processes} processes, {'these' if len(numbers) > 1 else 'this one'} did not join the "
        f"coordinator {member.coordinator_address} within {timeout:g} s: {', '.join(names)}. There were 0 on "
        f"{socket.gethostname()}{', ' * bool(there)}{there}. Start the same command on every host, and see that they "
        "reach that address and port; JAX_NUM_PROCESSES=1 runs on this host alone."
    )


def _report(member: Member, host: str, port: int, deadline: float, timeout: float) -> None:
    """Tells process 0 that this one is there, and waits for its answer."""
    hello = {"process_id": member.process_id, "num_processes": member.num_processes, "host": socket.gethostname()}
    problem = "nobody answered"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(json.dumps(hello).encode() + b"\n")
                # Process 0 may have started later: it answers by its own deadline, at most as much later.
                connection.settimeout(left + timeout)
                answer = _receive(connection)
        except (OSError, ValueError) as error:
            problem = str(error)
            time.sleep(min(_RETRY_SECONDS, max(left, 0)))
            continue
        if error := answer.get("error"):
            raise (NotAllThereError if answer.get("late") else UserError)(str(error))
        return
    raise NotAllThereError(
        f"Process 0 did not answer at {member.coordinator_address} within {timeout:g} s ({problem}); this is {member}, "
        f"on {socket.gethostname()}. Start the same command on that host, and see that its address and port can be "
        "reached from here; JAX_NUM_PROCESSES=1 runs on this host alone."
    )


def _tell(others: Iterable[_Joined], answer: dict[str, Any]) -> None:
    for other in others:
        with contextlib.suppress(OSError):
            other.connection.sendall(json.dumps(answer).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    with connection.makefile("rb") as lines:
        found = json.loads(lines.readline(_LINE_BYTES))
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    return found
