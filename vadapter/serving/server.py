"""The server's process: its port, its signals, and what it tells the terminal."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vadapter.base.errors import UserError

HEAD_SECONDS = 15.0  # for the head of a request, and for the rest of a body of which nobody wants more
TAKE_SECONDS = 30.0  # for a client to take what was sent
_CONNECTIONS = 1000
_BACKLOG = 256


class Protocol(H11Protocol):
    """HTTP/1.1 that waits for no client forever: neither for what it has to send, nor until it takes an answer."""

    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # writing pauses as soon as the client takes nothing
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(TAKE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stuck = _cancel(self._stuck)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late, self._stuck = _cancel(self._late), _cancel(self._stuck)
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Begins the time of what the client has to send; more of it does not begin it anew."""
        if not self._is_owed():
            self._late = _cancel(self._late)
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._close)

    def _is_owed(self) -> bool:
        """Whether a head, or the rest of a body whose request has its answer, is to come. Other bodies are timed by
        those that read them."""
        state = self.conn.their_state
        return state is h11.IDLE or (state is h11.SEND_BODY and self.conn.our_state is h11.DONE)

    def _close(self) -> None:
        self._late = None
        if self._is_owed() and not self.transport.is_closing():
            self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, on which nobody is let in yet.

    Raises:
        UserError: there is no such host, or another program has the port.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"The port is {port}; expected 0 .. 65535, where 0 takes a free one. Correct --port.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as e:
        raise UserError(
            f"The host {host!r} with the port {port} is no address of this machine ({e}). Correct --host."
        ) from e
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as e:
        found.close()
        raise _taken(host, port, e) from e
    return found


def _taken(host: str, port: int, error: Exception) -> UserError:
    return UserError(
        f"The port {port} of {host} cannot be served: {getattr(error, 'strerror', None) or error}. End the program "
        "that has it, or choose another with --port."
    )


def run(app: Any, found: socket.socket, say: Any, *, access_log: bool = False, grace_seconds: float = 120.0) -> None:
    """Serves until SIGTERM or Ctrl-C: then it takes nobody in any more, and ends when all have their answers.

    Another Ctrl-C ends the process at once.

    Args:
        app: the ASGI application.
        found: as `bind` gives it.
        say: is called with the address when clients can come.
        access_log: whether a line is written of every request.
        grace_seconds: that answers may take after the signal.

    Raises:
        UserError: another program began to serve the port.
    """
    host, port = found.getsockname()[:2]
    try:
        found.listen(_BACKLOG)
    except OSError as e:
        raise _taken(host, port, e) from e
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_level="info" if access_log else "warning",
        access_log=access_log,
        server_header=False,
        backlog=_BACKLOG,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=int(grace_seconds) + 1,
        h11_max_incomplete_event_size=64 << 10,
    )
    say(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    with _ended_by_signals():
        _Server(config).run([found])


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit and sig == signal.SIGINT:
            print("vadapter: stopped at once; answers under way are lost.", file=sys.stderr, flush=True)
            os._exit(128 + sig)  # an ordinary exit would pull the device from under the thread that decodes
        super().handle_exit(sig, frame)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """uvicorn raises a signal that ended it once more, for whoever had it before: that is the end that was wanted."""
    former = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
