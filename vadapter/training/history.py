"""What former sessions of a run left in its `curve.jsonl`."""

import dataclasses
import json
from collections.abc import Sequence

from etils import epath

_NOT_METRICS = ("step", "split", "seconds")


@dataclasses.dataclass(frozen=True)
class History:
    """Of the lines up to the step where a run goes on, and of later ones, whose work was lost.

    Attributes:
        metrics: of the last interval that was logged.
        losses: of all intervals that were logged, the oldest first.
        skipped: updates that were skipped.
        rollbacks: how often a spike took the run back.
        last_second: of the run's time, at which the last line was written, kept or lost.
    """

    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    losses: Sequence[float] = ()
    skipped: int = 0
    rollbacks: int = 0
    last_second: float = 0.0

    @staticmethod
    def read(path: epath.Path, step: int) -> "History":
        """Reads the file as far as it can be read; a line that was cut short by a kill is passed over."""
        rows = []
        for line in path.read_bytes().decode("utf-8", "replace").splitlines() if path.exists() else ():
            try:
                row = json.loads(line)
                rows.append((int(row["step"]), str(row["split"]), row))
            except (ValueError, KeyError, TypeError):
                continue
        kept = [(split, row) for at, split, row in rows if at <= step]
        logged = [row for split, row in kept if split == "train"]
        metrics = {k: v for k, v in logged[-1].items() if k not in _NOT_METRICS} if logged else {}
        return History(
            metrics,
            [float(row["loss"]) for row in logged if isinstance(row.get("loss"), int | float)],
            int(metrics.get("skipped_steps", 0)),
            sum(split == "rollback" for split, _ in kept),
            max((float(row.get("seconds", 0.0)) for _, _, row in rows), default=0.0),
        )
