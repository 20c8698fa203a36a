"""A test that would wait without end fails instead."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def stopped(seconds: int = 60) -> Iterator[None]:
    """Raises `TimeoutError` in the body where it takes longer; what is right takes well under a second."""

    def stop(*_) -> None:
        raise TimeoutError(f"still at it after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
