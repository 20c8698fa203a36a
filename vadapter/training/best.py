"""Which checkpoint of a run is the best by a metric, and whether the run gets any better.

Nothing is remembered but what `curve.jsonl` says: a run that goes on reads there what was measured, and so decides as
if it had not been stopped. `MODEL_DIR/best.json` names the checkpoint to whoever asks for `--step=best`.
"""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from etils import epath

from vadapter.base import files, terminal
from vadapter.base.errors import UserError
from vadapter.base.evaluator import Evaluator, whole_names
from vadapter.training.history import History

FILE = "best.json"
Mode = Literal["min", "max"]


@dataclasses.dataclass(frozen=True)
class BestConfig:
    """Which checkpoint is kept beside the newest ones, and when a run stops early.

    At each step where the metric is measured there is a checkpoint. The best is kept, whatever `keep_checkpoints` says;
    of equal ones the first.

    Attributes:
        metric: whole name of a score, as in `metrics.json`: `val/loss` is `loss` of the evaluation `val`; scores of a
            benchmark have its name, as in `vqav2/vqa_accuracy`.
        mode: which is better, the lowest (`min`) or the highest (`max`).
        patience: measurements in a row that are no better than the best, after which the run ends; None is never.
    """

    metric: str
    mode: Mode
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise UserError(
                f"BestConfig.mode is {self.mode!r}; expected 'min', where a lower {self.metric} is better, or 'max'."
            )
        if self.patience is not None and self.patience < 1:
            raise UserError(f"BestConfig.patience is {self.patience}; expected 1 or more, or None to never stop early.")


def evaluator_of(config: BestConfig, evaluators: Sequence[Evaluator], eval_every: int) -> Evaluator:
    """Finds the evaluator that gives a metric.

    Args:
        config: which metric.
        evaluators: of the run. One without `scalar_names` is taken to give whatever begins with its own name.
        eval_every: steps between two calls of those that have no interval of their own.

    Raises:
        UserError: none gives it, more than one does, or the one that does is called at the end only.
    """
    known = {e.name: _names(e) for e in evaluators}
    found = [e for e in evaluators if any(fnmatch.fnmatchcase(config.metric, name) for name in known[e.name])]
    names = ", ".join(name for each in known.values() for name in each) or "none, as the run has no evaluations"
    if len(found) != 1:
        how = "no evaluation of the run gives" if not found else f"{' and '.join(e.name for e in found)} all give"
        raise UserError(
            f"BestConfig.metric is {config.metric!r}, which {how}. The metrics that there are: {names}. Name one of "
            "these, or change the evaluations (EVALUATIONS)."
        )
    every = eval_every if found[0].every_steps is None else found[0].every_steps
    if not every:
        raise UserError(
            f"BestConfig.metric is {config.metric!r}, which is measured at the end of the run only, so there is "
            f"nothing to choose among. Set TrainConfig.eval_every (EVAL_EVERY), or every_steps of the evaluation "
            f"{found[0].name!r}."
        )
    return found[0]


def _names(evaluator: Evaluator) -> list[str]:
    names = getattr(evaluator, "scalar_names", None)
    return [f"{evaluator.name}/*"] if names is None else list(whole_names(evaluator.name, dict.fromkeys(names)))


class Best:
    """What was measured so far.

    Args:
        config: which metric.
        values: (step, value) by rising step, of former sessions.
    """

    def __init__(self, config: BestConfig, values: Sequence[tuple[int, float]] = ()):
        self.config = config
        self._values: dict[int, float] = dict(values)

    def look(self, step: int, evaluator: str, scalars: Mapping[str, float]) -> bool:
        """Adds what was measured at a step. Returns whether it is the best now.

        Raises:
            UserError: the metric is not among the scalars.
        """
        found = whole_names(evaluator, scalars)
        if self.config.metric not in found:
            raise UserError(
                f"BestConfig.metric is {self.config.metric!r}, which {evaluator} did not give at step {step}; it gave "
                f"{', '.join(found) or 'nothing'}. Name one of these, or look at the data of the evaluation."
            )
        self._values[step] = float(found[self.config.metric])
        return self.step == step

    @property
    def step(self) -> int | None:
        """Step of the best value; None where none is a finite number."""
        sign = 1 if self.config.mode == "min" else -1
        finite = {step: sign * value for step, value in sorted(self._values.items()) if math.isfinite(value)}
        return min(finite, key=finite.__getitem__) if finite else None

    def only(self, steps: Sequence[int]) -> None:
        """Forgets what was measured at other steps than these, whose checkpoints are there."""
        self._values = {step: value for step, value in self._values.items() if step in steps}

    @property
    def is_over(self) -> bool:
        """Whether the run has not become better for as long as it may."""
        if self.config.patience is None:
            return False
        since = -1 if self.step is None else self.step
        return sum(step > since for step in self._values) >= self.config.patience

    def record(self) -> dict[str, Any] | None:
        """Returns the content of `best.json`; None where there is no best."""
        step = self.step
        if step is None:
            return None
        return {"metric": self.config.metric, "mode": self.config.mode, "step": step, "value": self._values[step]}

    def __str__(self) -> str:
        if self.step is None:
            return f"No value of {self.config.metric} was a finite number"
        return f"The best is checkpoint_{self.step}, {self.config.metric} {self._values[self.step]:.4g}"


class Kept(Protocol):
    """The part of a `Checkpointer` that is used here."""

    best: int | None

    def wait(self) -> None: ...


class Keeper:
    """Keeps the best checkpoint of a run that trains.

    The order is: the checkpoint is on disk, `best.json` names it, the former best one may be deleted. So a kill between
    any two of these leaves a file that names a checkpoint that is there.

    Args:
        so_far: what former sessions measured. Of a run that went back the best may be none of those that are left.
        evaluator: which gives the metric.
        checkpointer: of the run.
        folder: of the run.
        there: steps of the checkpoints that the run has, the same in all processes.
        write: False writes nothing, as in all processes but the first.
    """

    def __init__(
        self,
        so_far: Best,
        evaluator: Evaluator,
        checkpointer: Kept,
        folder: epath.Path,
        *,
        there: Sequence[int],
        write: bool = True,
    ):
        self.so_far, self._evaluator, self._checkpointer = so_far, evaluator, checkpointer
        self._file, self._write = folder / FILE, write
        if so_far.step is not None and so_far.step not in there:
            if write:
                print(f"{terminal.line(folder)}: {so_far}, which is not there any more: it is left out.", flush=True)
            so_far.only(there)
        self._note()

    def look(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds what was measured at a step that is saved, or being saved. Raises `UserError` as `Best.look`."""
        if self.so_far.look(step, self._evaluator.name, scalars):
            self._checkpointer.wait()
            self._note()

    def _note(self) -> None:
        record = self.so_far.record()
        if record is None:
            return
        if self._write and files.read_record(self._file) != record:
            files.write_json(self._file, record)
        self._checkpointer.best = record["step"]


def has_ended(model_dir: str, step: int, config: BestConfig | None) -> bool:
    """Whether a run that stands at a step has not become better for as long as it may."""
    if config is None:
        return False
    return Best(config, History.read(epath.Path(model_dir) / "curve.jsonl", step, config.metric).watched).is_over


def read(model_dir: str) -> int:
    """Returns the step of a run's best checkpoint.

    Raises:
        UserError: the run does not say which it is.
    """
    file = epath.Path(model_dir) / FILE
    step = files.read_record(file).get("step")
    if not isinstance(step, int) or isinstance(step, bool) or step < 0:
        what = "cannot be read" if file.exists() else "is not there"
        raise UserError(
            f"The best checkpoint of {model_dir} was asked for, but {file} {what}: a run writes it that was trained "
            "with TrainConfig.best, when the metric was measured. Give the step as a number; vadapter eval --step=all "
            "measures every checkpoint."
        )
    return step
