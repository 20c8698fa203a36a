"""Figures of a stage, written to a file one by one, so that a cut loses none."""

import contextlib
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "numpy", "nvidia-cudnn-cu13", "qwix")


def versions() -> dict[str, str]:
    """Returns the versions of the packages that matter and are installed."""
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _command() -> list[str]:
    """The command without this machine's paths."""
    return [os.path.basename(word) for word in sys.argv]


class Record:
    """What a stage has found so far.

    Attributes:
        small: sizes of a rehearsal on a CPU.
        figures: name to settings and results.
    """

    def __init__(self, path: str, stage: str, small: bool, seconds: float):
        """Starts the file.

        Args:
            path: of the JSON file.
            stage: its name.
            small: see the class.
            seconds: the stage's time limit. It begins no new figure that would not end before it.
        """
        self.small, self.figures = small, {}
        self._path, self._start, self._limit = path, time.monotonic(), seconds
        self._head: dict[str, Any] = {"stage": stage, "small": small, "command": _command(), "versions": versions()}
        self._head["status"] = "begun"
        self.write()

    def note(self, **facts: Any) -> None:
        """Adds facts about the whole stage."""
        self._head |= facts
        self.write()

    def write(self) -> None:
        """Writes what there is."""
        body = {**self._head, "seconds": round(self.elapsed, 1), "figures": self.figures}
        with open(f"{self._path}.new", "w") as file:
            json.dump(body, file, indent=1)
        os.replace(f"{self._path}.new", self._path)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return self._limit - self.elapsed

    @contextlib.contextmanager
    def figure(self, name: str, **settings: Any) -> Iterator[dict[str, Any]]:
        """A figure to be filled in. An error becomes the figure's `error`, `out of memory` if it is one.

        Args:
            name: of the figure.
            **settings: what it was measured with.
        """
        entry = self.figures[name] = dict(settings)
        start = time.monotonic()
        try:
            yield entry
        except Exception as error:  # whatever it is, the next figure may still work
            text = f"{type(error).__name__}: {error}"
            full = "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower()
            entry["error"] = "out of memory" if full else text[-1500:]
        entry["wall_s"] = round(time.monotonic() - start, 2)
        self.write()
        print(f"[{self.elapsed:6.1f} s] {name}: {json.dumps(entry)[:600]}", flush=True)

    def skip(self, name: str, why: str) -> None:
        """Notes a figure that was not measured."""
        self.figures[name] = {"skipped": why}
        self.write()


def times(run: Callable[[], Any], repeats: int, calls: int = 1, warm: int = 1) -> dict[str, Any]:
    """Times a function that waits for its own result.

    Args:
        run: the function.
        repeats: timings.
        calls: of `run`'s own work in each; the seconds are divided by it.
        warm: untimed runs before.

    Returns:
        `median_ms`, `min_ms`, `max_ms` and `repeats`.
    """
    for _ in range(warm):
        run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append((time.perf_counter() - start) / calls)
    shown = {"median_ms": statistics.median(seconds), "min_ms": min(seconds), "max_ms": max(seconds)}
    return {name: round(1e3 * x, 3) for name, x in shown.items()} | {"repeats": repeats}


def measured_ceiling(directory: str) -> float | None:
    """Returns the FLOP/s of stage `ceiling`, or None if it has not run."""
    path = os.path.join(directory, "ceiling.json")
    if not os.path.exists(path):
        return None
    with open(path) as file:
        found = json.load(file)["figures"].get("matmul_jax", {})
    return found["tflops"] * 1e12 if "tflops" in found else None


def rates(entry: dict[str, Any], rows: int, count: dict[str, float], ceiling: float | None, peak: float | None) -> None:
    """Adds examples a second and MFU to a step's times."""
    if "median_ms" not in entry:
        return
    seconds = entry["median_ms"] / 1e3
    entry["examples_per_s"] = round(rows / seconds, 2)
    entry["tflop_by_part"] = {part: round(x / 1e12, 4) for part, x in count.items()}
    entry["tflops_per_s"] = round(sum(count.values()) / seconds / 1e12, 2)
    for name, most in (("mfu_of_measured_ceiling", ceiling), ("mfu_of_published_peak", peak)):
        if most:
            entry[name] = round(sum(count.values()) / seconds / most, 4)


def repeats_for(run: Callable[[], None], seconds: float = 5.0) -> dict[str, Any]:
    """Times a step as often as fits in about that many seconds, at least 3 times and at most 10."""
    run()
    start = time.perf_counter()
    run()
    once = time.perf_counter() - start
    return times(run, max(3, min(10, int(seconds / once))), warm=0)


def gib(count: float) -> float:
    """Returns bytes as GiB."""
    return round(count / 2**30, 3)
