"""How a run ended."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        params: all parameters, trained (or their average, where evaluations take it) and frozen, on the device.
        step: updates made.
        metrics: of the last logged training interval.
        evals: scalars of each evaluator at the end, by its name.
        seconds: of all sessions of the run, from the first step's compilation to the last evaluation.
        interrupted: whether it was told to stop before its end; it then goes on where it was when called again.
        signal: number of the signal that told this process, such as `signal.SIGINT`; None where another process or
            `pause_at` did.
        best: step of the best checkpoint; None without `TrainConfig.best`, or where its metric was never a number.
    """

    params: dict[str, Any]
    step: int
    metrics: dict[str, float]
    evals: dict[str, dict[str, float]]
    seconds: float
    interrupted: bool
    signal: int | None = None
    best: int | None = None
