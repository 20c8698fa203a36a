"""Ctrl-C and SIGTERM: the first one lets a run save what it has, the second ends it at once.

A run that has something to save holds signals (`Signals.hold`), and asks at the points where it can stop whether one
came. Before that, and at the second signal, a process ends at once with the status that a shell gives for the signal:
130 after Ctrl-C, 143 after SIGTERM.
"""

import collections
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_NAMES: dict[int, str] = {signal.SIGINT: "Ctrl-C"}
_current: "Signals | None" = None


class Stopped(BaseException):
    """The run was told to stop and leaves what it is doing. As KeyboardInterrupt, it is no error that code mends."""


class Signals:
    """SIGINT, SIGTERM and SIGHUP for as long as it is open. In other threads than the main one it sees none.

    Args:
        own_process: whether the process is the run's own, as a command's is. Then "at once" is the process's end, even
            while its main thread waits for a compiler or a file. Otherwise the program's own handlers decide, such as
            the one that raises KeyboardInterrupt.

    Attributes:
        first: number of the signal that came first while they were held, or None.
    """

    def __init__(self, own_process: bool):
        self.own_process = own_process
        self.first: int | None = None
        self._former: dict[int, Any] = {}
        self._former_descriptor: int | None = None
        self._saved: Callable[[], str] | None = None
        self._agreed: Callable[[], bool] | None = None
        self._lock = threading.RLock()
        # Counts by signal: Python calls handlers of pending signals by number, not in the order in which they came.
        self._handled, self._read, self._taken = (collections.Counter[int]() for _ in range(3))

    def __enter__(self) -> "Signals":
        global _current
        _current = self
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                # What is ignored stays ignored, as SIGHUP under nohup. jax takes SIGTERM where processes are many.
                ours = number != signal.SIGTERM or not is_one_of_many()
                if ours and signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._former[number] = signal.signal(number, self._handle)
            if self.own_process:
                self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        global _current
        _current = None
        if self._former_descriptor is not None:
            os.close(signal.set_wakeup_fd(self._former_descriptor))
        for number, former in self._former.items():
            if number != signal.SIGTERM or not is_one_of_many():
                signal.signal(number, former)

    def leave(self, status: int) -> None:
        """Ends a process of its own that was told to stop; otherwise it returns.

        An ordinary end of Python waits for all threads, of which one may read a file that never comes. One process of
        many takes leave of the others, so it ends the ordinary way.
        """
        if self.own_process and self.first is not None and status and not is_one_of_many():
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
            _leave(status)

    def hold(self, saved: Callable[[], str], agreed: Callable[[], bool] | None = None) -> None:
        """From now on the first signal waits until the run asks for it.

        Args:
            saved: says in a sentence where the run would go on if it ended now.
            agreed: where processes are many, whether all of them stop at this point; all ask at the same points.
        """
        self._agreed, self._saved = agreed, saved

    def let_go(self) -> None:
        """From now on there is nothing to save."""
        self._agreed = self._saved = None

    def asked(self) -> bool:
        """Whether the run is to stop at this point."""
        if self._saved is None:
            return False
        return self._agreed() if self._agreed else self.first is not None

    def asked_alone(self) -> bool:
        """Whether the run is to stop though no other process knows of it: never where they are many."""
        return self._saved is not None and self._agreed is None and self.first is not None

    def _listen(self) -> None:
        """Starts a thread that sees each signal as it comes; Python's handlers wait for the main thread's next line."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        self._former_descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

        def listen() -> None:
            while found := os.read(reading, 1):
                if found[0] in self._former:
                    self._read[found[0]] += 1
                    self._take(self._read[found[0]], found[0])
            os.close(reading)

        threading.Thread(target=listen, daemon=True, name="signals").start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled[number] += 1
        self._take(self._handled[number], number, frame)

    def _take(self, count: int, number: int, frame: FrameType | None = None) -> None:
        """Deals with the `count`-th signal of a number once, though both the handler and the thread bring it."""
        with self._lock:
            if count <= self._taken[number]:
                return
            self._taken[number] = count
            if self._saved is None or self.first is not None:
                self._end(number, frame)
            else:
                self.first = number
                say(f"{name(number)}: the run saves at the next step and ends. Once more ends it at once.")
                if self._agreed is not None and number != signal.SIGTERM:
                    os.kill(os.getpid(), signal.SIGTERM)  # jax tells the other processes

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.own_process:
            nothing = "Nothing was to be saved. The same command starts again, or goes on from the latest checkpoint."
            try:
                say(f"{name(number)}: ended at once. {self._saved() if self._saved else nothing}")
            finally:
                _leave(128 + number)
        former = self._former[number]
        if callable(former):
            former(number, frame)
        else:
            signal.signal(number, former)
            signal.raise_signal(number)


@contextlib.contextmanager
def watch() -> Iterator[Signals]:
    """Gives the signals that are open, or else opens them for a run inside another program."""
    if _current is not None:
        yield _current
        return
    with Signals(own_process=False) as found:
        yield found


def current() -> Signals | None:
    """Returns the signals that are open."""
    return _current


def point() -> None:
    """Where a run can be left. Raises `Stopped` if it is to stop; does nothing outside of a run."""
    if _current is not None and _current.asked():
        raise Stopped


def is_one_of_many() -> bool:
    """Whether jax has connected this process with others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def name(number: int) -> str:
    """`Ctrl-C` or `SIGTERM`."""
    return _NAMES.get(number, signal.Signals(number).name)


def say(text: str) -> None:
    """Writes a line to stderr if it is still there, whatever the main thread is in the midst of writing."""
    with contextlib.suppress(OSError):
        os.write(2, f"vadapter: {text}\n".encode())


def _leave(status: int) -> None:
    """Ends the process now, without what Python does at its end: that may wait for a thread that hangs."""
    with contextlib.suppress(Exception):
        if os.isatty(1):
            os.write(1, b"\x1b[?25h")  # a progress bar hides the cursor
        sys.stderr.flush()
    os._exit(status)
