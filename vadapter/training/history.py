"""What former sessions of a run left in its `curve.jsonl`."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from vadapter.base import files
from vadapter.base.evaluator import whole_names

_NOT_METRICS = ("step", "split", "seconds")


@dataclasses.dataclass(frozen=True)
class History:
    """Of the lines up to the step where a run goes on, and of later ones, whose work was lost.

    Attributes:
        metrics: of the last interval that was logged.
        losses: of all intervals that were logged, the oldest first.
        skipped: updates that were skipped.
        rollbacks: how often a spike took the run back.
        evaluated: names of the evaluators that were called at the step where the run goes on.
        watched: (step, value) of the metric that the best checkpoint is chosen by.
        last_second: of the run's time, at which the last line was written, kept or lost.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    losses: Sequence[float] = ()
    skipped: int = 0
    rollbacks: int = 0
    evaluated: Sequence[str] = ()
    watched: Sequence[tuple[int, float]] = ()
    last_second: float = 0.0

    @staticmethod
    def read(path: epath.Path, step: int, metric: str | None = None) -> "History":
        """Reads the file as far as it can be read; a line that was cut short by a kill is passed over.

        Args:
            path: of the file.
            step: where the run goes on.
            metric: whole name of what to read for `watched`.
        """
        text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
        rows = [row for row in files.split_lines(text)[0] if isinstance(row.get("step"), int)]
        kept = [row for row in rows if row["step"] <= step]
        logged = [row for row in kept if row.get("split") == "train"]
        metrics = {k: v for k, v in logged[-1].items() if k not in _NOT_METRICS} if logged else {}
        return History(
            metrics,
            [float(row["loss"]) for row in logged if _is_number(row.get("loss"))],
            int(metrics["skipped_steps"]) if _is_number(metrics.get("skipped_steps")) else 0,
            sum(row.get("split") == "rollback" for row in kept),
            sorted({str(row.get("split")) for row in kept if row["step"] == step} - {"train", "rollback"}),
            [(row["step"], value) for row in kept if metric and (value := value_in(row, metric)) is not None],
            max((float(row["seconds"]) for row in rows if _is_number(row.get("seconds"))), default=0.0),
        )


def value_in(row: Mapping[str, Any], metric: str) -> float | None:
    """Returns the value of a metric in a line of `curve.jsonl`; None where the line does not have it."""
    found = whole_names(str(row.get("split")), row).get(metric)
    return float(found) if isinstance(found, int | float) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
