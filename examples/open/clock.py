"""Seconds since the start of the program; to be imported before what takes long to import."""

import time

_START = time.perf_counter()


def seconds() -> float:
    """Returns the seconds since the start."""
    return time.perf_counter() - _START


def say(text: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"[{seconds():6.1f} s] {text}", flush=True)
