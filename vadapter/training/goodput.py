"""Where the time of a run goes: the share of it that is spent on updates is its goodput."""

import time
from collections.abc import Callable, Mapping
from typing import Any

# Kinds of time, with what the console calls them.
STEPS = "steps"
KINDS = {
    STEPS: "steps",
    "compile": "compilation",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "checkpoint": "checkpoints",
    "restart": "work lost at interruptions",
}


class Goodput:
    """Adds up the seconds of a run by kind, over all its sessions. It never waits for the device.

    Args:
        former: seconds by kind of the sessions before this one.
        clock: gives seconds.
    """

    def __init__(self, former: Mapping[str, float] | None = None, clock: Callable[[], float] = time.perf_counter):
        known = former or {}
        self.seconds: dict[str, float] = {kind: float(known.get(kind, 0.0)) for kind in KINDS}
        self._clock = clock
        self._last = clock()

    def begin(self) -> None:
        """The time until now is not the run's."""
        self._last = self._clock()

    def lap(self, kind: str) -> None:
        """The time since the last lap was of this kind."""
        now = self._clock()
        self.seconds[kind] += now - self._last
        self._last = now

    def lose(self, seconds: float, session: bool = False) -> None:
        """So many seconds of updates were in vain; `session`: of a former session, which did not count them yet."""
        lost = max(0.0, seconds) if session else min(max(0.0, seconds), self.seconds[STEPS])
        self.seconds["restart"] += lost
        if not session:
            self.seconds[STEPS] -= lost

    def shares(self) -> dict[str, float]:
        """Returns the share of each kind in the whole, 0..1; zeros where no time has passed."""
        whole = sum(self.seconds.values())
        return {kind: seconds / whole if whole else 0.0 for kind, seconds in self.seconds.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns `{kind: seconds}`."""
        return {kind: round(seconds, 3) for kind, seconds in self.seconds.items()}

    def summary(self) -> str:
        """Returns a line such as `71% steps, 20% compilation, 9% evaluation`, without kinds below half a percent."""
        parts = [f"{share:.0%} {KINDS[kind]}" for kind, share in self.shares().items() if share >= 0.005]
        return ", ".join(parts)
