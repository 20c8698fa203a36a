"""Notice of the machine being taken away (SIGTERM): the loop saves and ends in good order."""

import signal
import threading
from types import FrameType
from typing import Any

import jax


class Preemption:
    """Context manager that turns SIGTERM into a flag. Outside of the main thread it does nothing.

    With several processes all of them agree on the step at which to stop (jax's sync point).
    """

    def __init__(self) -> None:
        self._asked = False
        self._former: Any = None
        self._installed = False

    def __enter__(self) -> "Preemption":
        # With several processes jax.distributed handles the signal.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._former = signal.signal(signal.SIGTERM, self._handle)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._former)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        del signum, frame
        self._asked = True

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked
