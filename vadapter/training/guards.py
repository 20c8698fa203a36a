"""What watches over the losses of a run: updates that were skipped, spikes, and an earlier run to compare with."""

import collections
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from vadapter.base import buckets, files, local_files
from vadapter.base.errors import UserError
from vadapter.base.paths import is_remote

BAD_BATCHES = "bad_batches.jsonl"
_FEWEST = 5  # losses that a median is taken of


class SkipGuard:
    """Counts updates that were skipped since their loss or gradient was not finite, and stops a run of them.

    Args:
        most: skipped in a row that are accepted.
        model_dir: folder of the run; each skipped batch becomes a line of its `bad_batches.jsonl`.
        total: skipped before this session.
        records: gives the ids of the records in a batch, by the number of steps before it; None does not know.
        write: False writes nothing, as in all processes but the first.
    """

    def __init__(
        self,
        most: int,
        model_dir: str,
        total: int = 0,
        records: Callable[[int], Sequence[str]] | None = None,
        write: bool = True,
    ):
        self.most, self.total, self.in_a_row = most, total, 0
        self._file, self._write = epath.Path(model_dir) / BAD_BATCHES, write
        self.records = records

    def look(self, steps: Sequence[tuple[int, Mapping[str, Any]]], latest: Callable[[], str]) -> None:
        """Looks at the metrics of steps, in their order.

        Args:
            steps: (number of the step, its metrics on the host).
            latest: says in a sentence which checkpoint is the latest.

        Raises:
            UserError: more than `most` in a row were skipped.
        """
        for step, metrics in steps:
            if not metrics["skipped"]:
                self.in_a_row = 0
                continue
            self.in_a_row += 1
            self.total += 1
            ids = self._note(step, metrics)
            if self.in_a_row > self.most:
                raise UserError(self._message(step, metrics, ids, latest()))

    def _note(self, step: int, metrics: Mapping[str, Any]) -> list[str]:
        if not self._write:
            return []
        try:
            ids = [str(x) for x in self.records(step - 1)] if self.records else []
        except Exception:  # that the records cannot be read now must not hide what is wrong
            ids = []
        line = {"step": step, **{k: str(float(metrics[k])) for k in ("loss", "grad_norm")}, "records": ids}
        text = json.dumps(line, ensure_ascii=False) + "\n"
        if is_remote(self._file):  # object stores cannot append
            text = (self._file.read_text() if self._file.exists() else "") + text
            self._file.write_text(text)
        else:
            with open(self._file, "a") as file:
                file.write(text)
        return ids

    def _message(self, step: int, metrics: Mapping[str, Any], ids: Sequence[str], latest: str) -> str:
        which = f"of step {step}" if self.in_a_row == 1 else f"of steps {step - self.in_a_row + 1} to {step}"
        shown = f" The last batch has {', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''}." if ids else ""
        return (
            f"The loss or the gradient {which} is not finite (loss {float(metrics['loss'])}, grad_norm "
            f"{float(metrics['grad_norm'])}). These updates were skipped, and TrainConfig.max_skipped_steps accepts "
            f"{self.most} in a row. Their records are in {self._file}.{shown} {latest} Look at these records; or lower "
            "the learning rate, or set OptimizerConfig.clip_norm. At the first steps of a run, look at the weights "
            "that it starts from."
        )


def check_parameters(step: int, metrics: Mapping[str, float], latest: Callable[[], str]) -> None:
    """Refuses parameters that an update with a finite gradient made infinite, so that they are not saved.

    Raises:
        UserError: their norm after the step is not finite.
    """
    if not math.isfinite(metrics["param_norm"]):
        raise UserError(
            f"The parameters after step {step} are not finite (norm {metrics['param_norm']}), though its gradient was: "
            f"the update was too large. They were not saved. {latest()} Lower the learning rate, or raise "
            "OptimizerConfig.eps."
        )


class SpikeGuard:
    """Finds losses of log windows that stand out of those before.

    Args:
        factor: times the running median that a loss is a spike above; None finds none.
        window: losses that the median is of.
        losses: of log windows before this session, the oldest first.
    """

    def __init__(self, factor: float | None, window: int, losses: Sequence[float] = ()):
        if factor is not None and not factor > 1:
            raise UserError(f"TrainConfig: spike_factor={factor} must be above 1, or None for no rollback.")
        if window < _FEWEST:
            raise UserError(f"TrainConfig: spike_window={window} must be {_FEWEST} or more.")
        self.factor = factor
        self._losses: collections.deque[float] = collections.deque(maxlen=window)
        for loss in losses:  # judged as they were then: a spike is not remembered
            self.spike(loss)

    def spike(self, loss: float | None) -> float | None:
        """Returns the median that the loss is a spike above. Any other loss is remembered."""
        if self.factor is None or loss is None:
            return None
        if len(self._losses) >= _FEWEST:
            median = statistics.median(self._losses)
            if median > 0 and loss > self.factor * median:
                return median
        self._losses.append(loss)
        return None


class Reference:
    """The losses of an earlier run, which this one is compared with.

    Args:
        path: its `curve.jsonl`.
        tolerance: share of its loss that ours may differ by.

    Raises:
        UserError: the file cannot be read, or has no losses.
    """

    def __init__(self, path: str, tolerance: float):
        buckets.check(path)
        self.path, self.tolerance = path, tolerance
        self._told: set[str] = set()
        self._losses: dict[str, dict[int, float]] = {}
        try:
            for line in files.split_lines(local_files.content_of(path).decode("utf-8", "replace"))[0]:
                if isinstance(line.get("loss"), int | float) and math.isfinite(line["loss"]):
                    self._losses.setdefault(str(line["split"]), {})[int(line["step"])] = float(line["loss"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"TrainConfig.reference_curve is {path}, which cannot be read as the curve.jsonl of a run "
                f"({type(error).__name__}: {error}). Give the curve.jsonl in an earlier run's MODEL_DIR."
            ) from error
        if not self._losses:
            raise UserError(f"TrainConfig.reference_curve: {path} has no losses. Give that of a run that has logged.")

    def compare(self, step: int, split: str, loss: float | None) -> str | None:
        """Returns a line at the first loss of a split that differs too much from the reference's of the same step."""
        expected = self._losses.get(split, {}).get(step)
        if loss is None or expected is None or split in self._told:
            return None
        if abs(loss - expected) <= self.tolerance * abs(expected):
            return None
        self._told.add(split)
        return (
            f"WARNING: the {split} loss of step {step} is {loss:.4g}; that of {self.path} is {expected:.4g} there, and "
            f"they may differ by {self.tolerance:.0%}."
        )
