"""Processes that are forked from this one, which has imported everything and computed nothing: each starts in a
moment, as fresh as one that was started anew.
"""

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

LIMIT = 480.0  # seconds; a process that takes longer hangs
_TICK = 0.002


class Hangs(Exception):
    """A process did not end in time."""


class Session:
    """A process that does what `work` does, and ends with the status that it returns.

    Args:
        work: what to do.
        output: a file for all that it prints.
        environment: variables that it has beside this process's.
    """

    def __init__(self, work: Callable[[], int], output: Path, environment: Mapping[str, str] | None = None):
        self.output, self.status = output, None
        output.touch()
        sys.stdout.flush()
        sys.stderr.flush()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become(work, output, environment or {})

    def poll(self) -> int | None:
        """Returns the exit status, negative of a signal; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def until(self, condition: Callable[[], object], delay: float = 0.0) -> bool:
        """Waits until something is so, and a little more; returns False where the process ended before."""
        while not condition():
            if self.poll() is not None:
                return False
            self._check_time()
            time.sleep(_TICK)
        time.sleep(delay)
        return self.poll() is None

    def end(self) -> int:
        """Waits for its end, and returns the exit status."""
        while self.poll() is None:
            self._check_time()
            time.sleep(_TICK)
        assert self.status is not None
        return self.status

    def destroy(self) -> None:
        """Ends it if it runs still, however long it has run."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _check_time(self) -> None:
        if time.monotonic() - self.began > LIMIT:
            raise Hangs(f"a process did not end within {LIMIT:.0f} s")


def _become(work: Callable[[], int], output: Path, environment: Mapping[str, str]) -> None:
    """Does the work in the new process, which never comes back from here."""
    status = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        faulthandler.dump_traceback_later(LIMIT - 30, file=2)  # where it hangs, for who looks into it
        os.environ.update(environment)
        status = work()
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()  # processes of jax take leave of one another
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
